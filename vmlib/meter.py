"""What a machine uses between two looks at its counters. Every number is finite and none is negative."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vmlib.counters import Count, CpuTime, MachineCount, Memory, sum_counted, sum_memory

_SHORTEST_S = 0.001  # two looks closer than this say nothing about a rate


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """Shares of one CPU: 100 is one whole core. Throttling is counted from the beginning."""

    percent: float
    user_percent: float
    system_percent: float
    throttled_periods: int | None = None
    throttled_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Of one part of a machine; None: nobody counts it."""

    cpu: CpuUse | None = None
    memory: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineUse:
    """All of a machine, and its parts by name: `vmm`, `keeper`, and within the VMM `guest`, `vcpu0`, `vcpu1`, …"""

    total: Use
    parts: dict[str, Use]


class Meter:
    """Takes the use of one machine again and again, each time since the last."""

    def __init__(self, count: Callable[[], MachineCount | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._last: dict[str, Count] = {}
        self._last_at = 0.0

    def take(self) -> MachineUse | None:
        """None once there is nothing to be counted. The first time no CPU time has passed yet."""
        now = self._clock()
        counted = self._count()
        if counted is None:
            return None
        parts = {"vmm": counted.vmm, "keeper": counted.keeper, "guest": counted.guest}
        parts |= {f"vcpu{index}": vcpu for index, vcpu in enumerate(counted.vcpus)}
        parts = {name: part for name, part in parts.items() if part.cpu or part.memory}
        span_s = now - self._last_at
        uses = {name: _use(self._last.get(name), part, span_s) for name, part in parts.items()}
        self._last, self._last_at = parts, now
        return MachineUse(total=together([uses[name] for name in ("vmm", "keeper") if name in uses]), parts=uses)


def cpu_use(before: CpuTime | None, after: CpuTime, span_s: float) -> CpuUse:
    """What began to count only now, or anew and so counts less than before, has no rate yet: zero."""
    if before is None or before.origin != after.origin or before.total_ns > after.total_ns or span_s < _SHORTEST_S:
        before, span_s = after, 1.0

    def percent(earlier_ns: int, later_ns: int) -> float:
        return max(0, later_ns - earlier_ns) / (span_s * 1e7)

    return CpuUse(
        percent=percent(before.total_ns, after.total_ns),
        user_percent=percent(before.user_ns, after.user_ns),
        system_percent=percent(before.system_ns, after.system_ns),
        throttled_periods=after.throttled_periods,
        throttled_ns=after.throttled_ns,
    )


def together(uses: Iterable[Use]) -> Use:
    """The sum. What one of them does not count is nothing; what none counts is not there."""
    uses = tuple(uses)
    cpus = [use.cpu for use in uses if use.cpu is not None]
    memories = [use.memory for use in uses if use.memory is not None]
    return Use(
        cpu=CpuUse(
            percent=sum(one.percent for one in cpus),
            user_percent=sum(one.user_percent for one in cpus),
            system_percent=sum(one.system_percent for one in cpus),
            throttled_periods=sum_counted(one.throttled_periods for one in cpus),
            throttled_ns=sum_counted(one.throttled_ns for one in cpus),
        )
        if cpus
        else None,
        memory=sum_memory(memories) if memories else None,
    )


def _use(before: Count | None, after: Count, span_s: float) -> Use:
    cpu = None if after.cpu is None else cpu_use(before.cpu if before is not None else None, after.cpu, span_s)
    return Use(cpu=cpu, memory=after.memory)
