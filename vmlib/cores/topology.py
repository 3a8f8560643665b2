"""What the host's CPUs are: physical cores, their siblings, caches, NUMA nodes. A pure parser and a thin reader."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vmlib import process
from vmlib.cores.cpulist import parse_cpus
from vmlib.errors import HostError

CoreKind = Literal["", "performance", "efficiency"]

_SYS = Path("/sys")
_CPU = "devices/system/cpu"
_NODE = "devices/system/node"
_HYBRID = {"performance": "devices/cpu_core/cpus", "efficiency": "devices/cpu_atom/cpus"}
_HOST_FILES = (
    *(f"{_CPU}/{name}" for name in ("online", "present", "isolated", "nohz_full", "smt/active", "smt/control")),
    f"{_NODE}/online",
    *_HYBRID.values(),
)
_ONE_CPU = re.compile(rf"{_CPU}/cpu([0-9]+)/(.+)")
_ONE_NODE = re.compile(rf"{_NODE}/node([0-9]+)/(.+)")
_L3_CPUS = re.compile(r"(cache/index[0-9]+)/shared_cpu_list")
_MEM_TOTAL = re.compile(r"MemTotal:\s*([0-9]+) kB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One physical core with the logical CPUs of it that are online."""

    id: int  # its lowest CPU that is online; a number that people can find in /proc/cpuinfo
    cpus: tuple[int, ...]  # ascending
    package: int = 0
    die: int = 0
    l3: int = 0  # the lowest CPU that shares its L3; without an L3 the lowest CPU of its NUMA node
    node: int = 0
    kind: CoreKind = ""  # "" where all cores of the host are alike


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """One NUMA node; `cpus` may be empty."""

    id: int
    cpus: frozenset[int]
    distances: Mapping[int, int] = field(default_factory=dict)  # to other nodes by id, itself included
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All of one host at one moment. Offline CPUs belong to no core."""

    cores: tuple[Core, ...]  # by id
    nodes: tuple[NumaNode, ...]  # by id, those without CPUs as well
    online: frozenset[int]
    present: frozenset[int]
    smt_active: bool = False
    smt_control: str = ""  # the kernel's word: on, off, forceoff, notsupported, notimplemented
    isolated: frozenset[int] = frozenset()  # boot parameter isolcpus
    nohz_full: frozenset[int] = frozenset()
    mhz: Mapping[int, int] = field(default_factory=dict)  # base frequency by CPU, where the host says it
    _by_cpu: Mapping[int, Core] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_cpu", {cpu: core for core in self.cores for cpu in core.cpus})

    @property
    def offline(self) -> frozenset[int]:
        """Present, and switched off."""
        return self.present - self.online

    def core_of(self, cpu: int) -> Core | None:
        """None when the CPU is not online."""
        return self._by_cpu.get(cpu)

    def node_of(self, cpu: int) -> int | None:
        """None when the CPU is not online."""
        core = self._by_cpu.get(cpu)
        return None if core is None else core.node

    def split(self, cpus: AbstractSet[int]) -> tuple[tuple[Core, ...], tuple[int, ...]]:
        """The cores of which `cpus` has every online sibling, and the CPUs left over. Offline ones are in neither."""
        touched = {core.id: core for cpu in cpus if (core := self._by_cpu.get(cpu)) is not None}
        whole = tuple(core for _, core in sorted(touched.items()) if cpus >= set(core.cpus))
        rest = self.online & cpus - {cpu for core in whole for cpu in core.cpus}
        return whole, tuple(sorted(rest))


def flat_topology(cpus: Iterable[int]) -> Topology:
    """All alike on one node, for a host that says nothing: each CPU is a core."""
    online = frozenset(cpus)
    first = min(online, default=0)
    return Topology(
        cores=tuple(Core(id=cpu, cpus=(cpu,), l3=first) for cpu in sorted(online)),
        nodes=(NumaNode(id=0, cpus=online),),
        online=online,
        present=online,
    )


# -- from text -------------------------------------------------------------------------------------------------------


def parse_topology(files: Mapping[str, str]) -> Topology:
    """From the text of files by their path below /sys. Any may be missing; raises HostError on a list that is none."""
    by_cpu = _below(_ONE_CPU, files)
    listed = _cpus(files, f"{_CPU}/online")
    online = listed or frozenset(
        cpu for cpu, own in by_cpu.items() if any(name.startswith("topology/") for name in own)
    )
    nodes = _nodes(files, online)
    kinds = _kinds(files, by_cpu, online)
    node_by_cpu = {cpu: node for node in nodes for cpu in node.cpus}
    cores: list[Core] = []
    taken: set[int] = set()
    for cpu in sorted(online):
        if cpu in taken:
            continue
        own = by_cpu.get(cpu, {})
        siblings = _siblings(cpu, own) & online - taken | {cpu}
        taken |= siblings
        node = node_by_cpu[cpu]
        l3 = _l3(cpu, own) & online or node.cpus
        cores.append(
            Core(
                id=cpu,
                cpus=tuple(sorted(siblings)),
                package=_number(own, "topology/physical_package_id"),
                die=_number(own, "topology/die_id"),
                l3=min(l3),
                node=node.id,
                kind=kinds.get(cpu, ""),
            )
        )
    return Topology(
        cores=tuple(cores),
        nodes=nodes,
        online=online,
        present=_cpus(files, f"{_CPU}/present") | online,
        smt_active=files.get(f"{_CPU}/smt/active", "").strip() == "1",
        smt_control=files.get(f"{_CPU}/smt/control", "").strip(),
        isolated=_cpus(files, f"{_CPU}/isolated"),
        nohz_full=_cpus(files, f"{_CPU}/nohz_full"),
        mhz={cpu: mhz for cpu in sorted(online) if (mhz := _mhz(by_cpu.get(cpu, {})))},
    )


def _below(pattern: re.Pattern[str], files: Mapping[str, str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for path, text in files.items():
        if match := pattern.fullmatch(path):
            found.setdefault(int(match[1]), {})[match[2]] = text
    return found


def _cpus(files: Mapping[str, str], path: str) -> frozenset[int]:
    try:
        return parse_cpus(files.get(path, ""))
    except ValueError as exc:
        raise HostError(f"{path}: {exc}") from exc


def _number(files: Mapping[str, str], path: str) -> int:
    """0 for what is missing, and for the -1 of a kernel that does not know."""
    text = files.get(path, "").strip()
    return int(text) if text.isdecimal() else 0


def _siblings(cpu: int, own: Mapping[str, str]) -> frozenset[int]:
    """By either of the list's two names; it wears the CPU's path in a message."""
    for name in ("topology/thread_siblings_list", "topology/core_cpus_list"):
        if name in own:
            return _cpus({f"{_CPU}/cpu{cpu}/{name}": own[name]}, f"{_CPU}/cpu{cpu}/{name}")
    return frozenset()


def _l3(cpu: int, own: Mapping[str, str]) -> frozenset[int]:
    for name in own:
        match = _L3_CPUS.fullmatch(name)
        if match and own.get(f"{match[1]}/level", "").strip() == "3":
            return _cpus({f"{_CPU}/cpu{cpu}/{name}": own[name]}, f"{_CPU}/cpu{cpu}/{name}")
    return frozenset()


def _nodes(files: Mapping[str, str], online: frozenset[int]) -> tuple[NumaNode, ...]:
    """Every CPU that is online is in exactly one of them; a CPU that the host puts nowhere is in the first."""
    by_node = _below(_ONE_NODE, files)
    ids = sorted(_cpus(files, f"{_NODE}/online") or by_node) or [0]
    nodes: list[NumaNode] = []
    placed: frozenset[int] = frozenset()
    for id_ in ids:
        own = by_node.get(id_, {})
        cpus = _cpus(files, f"{_NODE}/node{id_}/cpulist") & online - placed
        placed |= cpus
        memory = _MEM_TOTAL.search(own.get("meminfo", ""))
        row = own.get("distance", "").split()
        nodes.append(
            NumaNode(
                id=id_,
                cpus=cpus,
                # One number for each node that is online, in their order: the ids may have gaps.
                distances=dict(zip(ids, map(int, row), strict=True)) if _fits(row, ids) else {},
                memory_bytes=int(memory[1]) * 1024 if memory else 0,
            )
        )
    if lost := online - placed:
        nodes[0] = replace(nodes[0], cpus=nodes[0].cpus | lost)
    return tuple(nodes)


def _fits(row: list[str], ids: list[int]) -> bool:
    return len(row) == len(ids) and all(word.isdecimal() for word in row)


def _kinds(
    files: Mapping[str, str], by_cpu: Mapping[int, Mapping[str, str]], online: frozenset[int]
) -> dict[int, CoreKind]:
    big, small = (_cpus(files, path) & online for path in _HYBRID.values())
    if big and small:
        return {cpu: "performance" if cpu in big else "efficiency" for cpu in online}
    capacities = {cpu: _number(own, "cpu_capacity") for cpu, own in by_cpu.items() if cpu in online}
    if len(set(capacities.values())) < 2 or 0 in capacities.values():
        return {}
    most = max(capacities.values())
    return {cpu: "performance" if capacity == most else "efficiency" for cpu, capacity in capacities.items()}


def _mhz(own: Mapping[str, str]) -> int:
    return _number(own, "cpufreq/base_frequency") // 1000 or _number(own, "acpi_cppc/nominal_freq")


# -- from the host ---------------------------------------------------------------------------------------------------


def read_topology(root: Path = _SYS) -> Topology:
    """This host now, or flat over the CPUs that this process may use when sysfs says nothing. Raises HostError."""
    topology = parse_topology(read_files(root))
    return topology if topology.online else flat_topology(os.sched_getaffinity(0))


def read_files(root: Path = _SYS) -> dict[str, str]:
    """The files that `parse_topology` knows, and no others: there are hundreds for each CPU."""
    base = os.fspath(root)
    files: dict[str, str] = {}
    for path in _HOST_FILES:
        _take(base, path, files)
    for cpu in _numbered(f"{base}/{_CPU}", "cpu"):
        _take_cpu(base, f"{_CPU}/cpu{cpu}", files)
    for node in _numbered(f"{base}/{_NODE}", "node"):
        for name in ("cpulist", "distance", "meminfo"):
            _take(base, f"{_NODE}/node{node}/{name}", files)
    return files


def _take_cpu(base: str, cpu: str, files: dict[str, str]) -> None:
    if not _take(base, f"{cpu}/topology/thread_siblings_list", files):
        _take(base, f"{cpu}/topology/core_cpus_list", files)
    for name in ("topology/physical_package_id", "topology/die_id", "cpu_capacity"):
        _take(base, f"{cpu}/{name}", files)
    if not _take(base, f"{cpu}/cpufreq/base_frequency", files):
        _take(base, f"{cpu}/acpi_cppc/nominal_freq", files)
    # The L3 is index 3 nearly everywhere.
    usual = f"{cpu}/cache/index3"
    if _take(base, f"{usual}/level", files).strip() == "3":
        _take(base, f"{usual}/shared_cpu_list", files)
        return
    for index in _numbered(f"{base}/{cpu}/cache", "index"):
        if _take(base, f"{cpu}/cache/index{index}/level", files).strip() == "3":
            _take(base, f"{cpu}/cache/index{index}/shared_cpu_list", files)


def _take(base: str, path: str, files: dict[str, str]) -> str:
    """The text, which is kept as well; "" when there is no such file or the kernel will not tell."""
    try:
        with open(f"{base}/{path}", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    files[path] = text
    return text


def _numbered(directory: str, prefix: str) -> list[int]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if number.isdecimal())


class TopologyCache:
    """Reads the host again only when a CPU came or went. For many threads."""

    def __init__(self, root: Path = _SYS, *, boot_id: Callable[[], str] = process.boot_id) -> None:
        self._root = root
        self._boot_id = boot_id
        self._known: tuple[tuple[str, str], Topology] | None = None

    def get(self) -> Topology:
        """Raises HostError."""
        # Taken before the rest is read: a CPU that goes meanwhile makes the next call read again.
        key = (self._boot_id(), _take(os.fspath(self._root), f"{_CPU}/online", {}))
        known = self._known
        if known is not None and known[0] == key:
            return known[1]
        topology = read_topology(self._root)
        self._known = (key, topology)
        return topology
