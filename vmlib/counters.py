"""What a machine has used so far, as its cgroups count it, or /proc for one that has none of its own.

Nothing here asks a VMM, which may hang, and no file that is gone is an error: what cannot be read is not there this
time. What the counts come to over a span of time is `vmlib.meter`'s.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from vmlib import process
from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import RunPaths
from vmlib.process import Identity

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READ_BYTES = 1 << 14
_HUGE_PAGES = re.compile(r"^HugetlbPages:\s*([0-9]+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTime:
    """CPU time that `origin` has counted. Counts of two origins cannot be compared."""

    origin: str
    total_ns: int
    user_ns: int
    system_ns: int
    throttled_periods: int | None = None  # None: nobody counts them
    throttled_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that are in use now; None: nobody counts them."""

    rss_bytes: int | None = None  # of RAM, whatever it is for, but for the cache: shared memory and huge pages, too
    cache_bytes: int | None = None  # of files
    usage_bytes: int | None = None  # all that the limit counts
    max_usage_bytes: int | None = None  # the most that this was so far
    kernel_bytes: int | None = None
    swap_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One part of a machine."""

    cpu: CpuTime | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Where one cgroup is in the hierarchies that count something; None: in none of them."""

    cpu_v2: Path | None = None
    cpuacct: Path | None = None
    quota: Path | None = None  # that is not in cpu_v2
    memory_v2: Path | None = None
    memory_v1: Path | None = None

    def reader(self) -> Callable[[], Count]:
        """Reads what it counts, again and again: of a thousand machines each second, so names are made only once."""
        cpu, memory = self._cpu(), self._memory()
        return lambda: Count(cpu=cpu(), memory=memory())

    def _cpu(self) -> Callable[[], CpuTime | None]:
        if self.cpu_v2 is not None:
            origin, stat = str(self.cpu_v2), f"{self.cpu_v2}/cpu.stat"
            quota = f"{self.quota}/cpu.stat" if self.quota is not None else None
            return lambda: parse_cpu_stat(_text(stat), origin, quota and _text(quota))
        if self.cpuacct is not None:
            origin = str(self.cpuacct)
            total, ticks = f"{origin}/cpuacct.usage", f"{origin}/cpuacct.stat"
            quota = f"{self.quota}/cpu.stat" if self.quota is not None else None
            return lambda: parse_cpuacct(_text(total), _text(ticks), origin, quota and _text(quota))
        return lambda: None

    def _memory(self) -> Callable[[], Memory | None]:
        if self.memory_v2 is not None:
            stat, usage, peak, swap = (
                f"{self.memory_v2}/memory.{name}" for name in ("stat", "current", "peak", "swap.current")
            )
            return lambda: parse_memory_v2(_text(stat), usage=_text(usage), peak=_text(peak), swap=_text(swap))
        if self.memory_v1 is not None:
            stat, usage, peak = (
                f"{self.memory_v1}/memory.{name}" for name in ("stat", "usage_in_bytes", "max_usage_in_bytes")
            )
            return lambda: parse_memory_v1(_text(stat), usage=_text(usage), peak=_text(peak))
        return lambda: None


def find_group(paths: Iterable[str]) -> Group:
    """Which of one group's directories, one in each hierarchy, count what. CPU time is v2's to tell: in one file."""
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        stat = _text(f"{path}/cpu.stat")
        if "usage_usec " in stat:
            found["cpu_v2"] = path
        elif "nr_throttled " in stat:
            found["quota"] = path
        for name, file in (
            ("cpuacct", "cpuacct.usage"),
            ("memory_v2", "memory.current"),
            ("memory_v1", "memory.usage_in_bytes"),
        ):
            if (path / file).exists():
                found[name] = path
    return Group(**found)


class MachineCounter:
    """Reads what one machine has used, again and again. `vcpus` and `guest` apart, its parts add up to the machine."""

    def __init__(self, run: RunPaths, vmm: Identity, *, memory_mib: int, hugepages: bool = False) -> None:
        self._run = run
        self._vmm = vmm
        self._ram = Memory(usage_bytes=memory_mib << 20)
        self._hugepages = hugepages
        self._paths: tuple[Sequence[str], Sequence[str]] | None = None
        self._readers: tuple[Callable[[], Count], Callable[[], Count]] | None = None
        self._keeper: Identity | None = None
        self._tids: list[int] = []

    def read(self) -> "MachineCount | None":
        """None once the VMM is gone."""
        vmm = of_process(self._vmm)
        if vmm is None:
            return None
        counted, keeper = (read() for read in self._found())
        if not (counted.cpu and counted.memory and keeper.cpu):
            self._readers = None  # looked for again: they may be made anew
        keeper = _either(keeper, self._told_of_keeper())
        counted = _either(counted, vmm)
        if self._hugepages:  # which neither cgroups nor the process's own count have in them
            counted = _with_huge_pages(counted, self._vmm.pid)
        vcpus = self._vcpus()
        return MachineCount(
            vmm=counted,
            keeper=keeper,
            vcpus=vcpus,
            guest=Count(cpu=_together([vcpu.cpu for vcpu in vcpus if vcpu.cpu is not None]), memory=self._ram),
        )

    def _found(self) -> "tuple[Callable[[], Count], Callable[[], Count]]":
        if self._paths is None:
            try:
                plan = KeeperPlan.load(self._run.plan.read_bytes())
            except (OSError, ValueError):
                return Count, Count
            self._paths = plan.cgroups, plan.keeper_cgroups
        if self._readers is None:
            vmm, keeper = self._paths
            # A keeper brings most of its memory along into its group, which therefore does not count it.
            only_time = replace(find_group(keeper), quota=None, memory_v1=None, memory_v2=None)
            self._readers = find_group(vmm).reader(), only_time.reader()
        return self._readers

    def _told_of_keeper(self) -> Count | None:
        told = None if self._keeper is None else of_process(self._keeper)
        if told is None:  # there may be another one
            self._keeper = process.load_identity(self._run.keeper)
            told = None if self._keeper is None else of_process(self._keeper)
        return told

    def _vcpus(self) -> tuple[Count, ...]:
        """None while the threads are being made anew, as some VMMs do at a reboot of the guest."""
        found = [_of_thread(self._vmm.pid, tid) for tid in self._tids]
        if None in found or not found:
            self._tids = self._known_threads()
            found = [_of_thread(self._vmm.pid, tid) for tid in self._tids]
        return tuple(Count(cpu=one) for one in found if one is not None) if None not in found else ()

    def _known_threads(self) -> list[int]:
        try:
            return [int(tid) for tid in json.loads(_text(str(self._run.threads)) or "[]")]
        except (ValueError, TypeError):
            return []


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCount:
    """What each part of a machine has used: the VMM with its helpers, and its keeper, are all of it.

    The guest is what the VMM's vCPUs did, and the RAM that it was given.
    """

    vmm: Count
    keeper: Count = field(default_factory=Count)
    guest: Count = field(default_factory=Count)
    vcpus: tuple[Count, ...] = ()


def sum_counted(numbers: Iterable[int | None]) -> int | None:
    """What one of them does not count is nothing; what none counts is not there."""
    counted = [number for number in numbers if number is not None]
    return sum(counted) if counted else None


def sum_memory(memories: Sequence[Memory]) -> Memory:
    """Of several parts. The most that they were together is at most the sum of what each was at its most."""
    return Memory(**{each.name: sum_counted(getattr(one, each.name) for one in memories) for each in fields(Memory)})


# -- from the kernel's words -----------------------------------------------------------------------------------------


def parse_cpu_stat(text: str, origin: str, quota: str | None = None) -> CpuTime | None:
    """v2's cpu.stat. `quota` is v1's, if that has the cpu controller: without it there is no word of throttling."""
    counts = _counts(_CPU_V2, text)
    total = counts.get("usage_usec")
    if total is None:
        return None
    throttled = counts.get("throttled_usec")
    if quota:
        counts |= _counts(_QUOTA_V1, quota)
    return CpuTime(
        origin=origin,
        total_ns=total * 1000,
        user_ns=counts.get("user_usec", 0) * 1000,
        system_ns=counts.get("system_usec", 0) * 1000,
        throttled_periods=counts.get("nr_throttled"),
        throttled_ns=counts.get("throttled_time") if throttled is None else throttled * 1000,
    )


def parse_cpuacct(usage: str, stat: str, origin: str, quota: str | None = None) -> CpuTime | None:
    """v1's cpuacct.usage, in ns, and cpuacct.stat, in clock ticks."""
    total, counts = _number(usage), _counts(_CPUACCT, stat)
    if total is None:
        return None
    throttled = _counts(_QUOTA_V1, quota) if quota else {}
    return CpuTime(
        origin=origin,
        total_ns=total,
        user_ns=counts.get("user", 0) * _TICK_NS,
        system_ns=counts.get("system", 0) * _TICK_NS,
        throttled_periods=throttled.get("nr_throttled"),
        throttled_ns=throttled.get("throttled_time"),
    )


def parse_memory_v2(stat: str, *, usage: str, peak: str, swap: str) -> Memory | None:
    """An empty text is a file that this kernel does not have: `peak` is of Linux 5.19, and `kernel` in stat of 5.18."""
    counts = _counts(_MEMORY_V2, stat)
    if "anon" not in counts:
        return None
    shared = counts.get("shmem", 0)  # is in `file`, and is the guest's RAM where a helper shares it
    return Memory(
        rss_bytes=counts["anon"] + shared,
        cache_bytes=max(0, counts.get("file", 0) - shared),
        usage_bytes=_number(usage),
        max_usage_bytes=_number(peak),
        kernel_bytes=counts.get("kernel"),
        swap_bytes=_number(swap),
    )


def parse_memory_v1(stat: str, *, usage: str, peak: str) -> Memory | None:
    counts = _counts(_MEMORY_V1, stat)
    if "rss" not in counts:
        return None
    shared = counts.get("shmem", 0)
    return Memory(
        rss_bytes=counts["rss"] + shared,
        cache_bytes=max(0, counts.get("cache", 0) - shared),
        usage_bytes=_number(usage),
        max_usage_bytes=_number(peak),
        swap_bytes=counts.get("swap"),
    )


def _lines(*names: str) -> re.Pattern[str]:
    return re.compile(rf"^({'|'.join(names)}) ([0-9]+)$", re.MULTILINE)


_CPU_V2 = _lines("usage_usec", "user_usec", "system_usec", "nr_throttled", "throttled_usec")
_CPUACCT = _lines("user", "system")
_QUOTA_V1 = _lines("nr_throttled", "throttled_time")
_MEMORY_V2 = _lines("anon", "file", "shmem", "kernel")
_MEMORY_V1 = _lines("rss", "cache", "shmem", "swap")


def _counts(wanted: re.Pattern[str], text: str) -> dict[str, int]:
    return {name: int(value) for name, value in wanted.findall(text)}


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _text(path: str) -> str:
    """A small file of the kernel's; empty when it cannot be read. Thrice as fast as Path.read_text."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _READ_BYTES).decode("ascii", "replace")
        finally:
            os.close(fd)
    except OSError:  # the group or the process is gone (ENOENT, ENODEV, ESRCH)
        return ""


# -- /proc -----------------------------------------------------------------------------------------------------------


def of_process(who: Identity) -> Count | None:
    """What one process says of itself; None when that very process is gone."""
    fields = _stat(f"/proc/{who.pid}/stat")
    if fields is None or int(fields[19]) != who.start_time:
        return None
    return Count(cpu=_cpu_of(fields, who.pid), memory=Memory(rss_bytes=int(fields[21]) * _PAGE_BYTES))


def _of_thread(pid: int, tid: int) -> CpuTime | None:
    fields = _stat(f"/proc/{pid}/task/{tid}/stat")
    return None if fields is None else _cpu_of(fields, tid)


def _stat(path: str) -> list[str] | None:
    text = _text(path)
    return None if not text else text[text.rindex(")") + 2 :].split()


def _cpu_of(fields: Sequence[str], number: int) -> CpuTime:
    user, system = int(fields[11]) * _TICK_NS, int(fields[12]) * _TICK_NS
    origin = f"{number} {fields[19]}"  # with its start time
    return CpuTime(origin=origin, total_ns=user + system, user_ns=user, system_ns=system)


def _either(counted: Count, told: Count | None) -> Count:
    return counted if told is None else Count(cpu=counted.cpu or told.cpu, memory=counted.memory or told.memory)


def _together(times: Sequence[CpuTime]) -> CpuTime | None:
    if not times:
        return None
    return CpuTime(
        origin=" ".join(one.origin for one in times),
        total_ns=sum(one.total_ns for one in times),
        user_ns=sum(one.user_ns for one in times),
        system_ns=sum(one.system_ns for one in times),
    )


def _with_huge_pages(count: Count, pid: int) -> Count:
    found, memory = _HUGE_PAGES.search(_text(f"/proc/{pid}/status")), count.memory
    if found is None or memory is None or memory.rss_bytes is None:
        return count
    return Count(cpu=count.cpu, memory=replace(memory, rss_bytes=memory.rss_bytes + (int(found[1]) << 10)))
