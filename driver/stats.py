"""CPU and memory of a machine from /proc: its VMM and its keeper together."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from driver._pb import base_pb2
from vmlib.process import Identity, stat_fields

_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)", re.MULTILINE)
_SHORTEST_S = 0.001  # two samples closer than this say nothing about a rate
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def mhz_of(nomad: base_pb2.NomadConfig | None) -> float:
    """What Nomad counts for one of its cores, from the topology that it sends; 0 when it sends none."""
    cores = nomad.driver.Topology.cores if nomad is not None else ()
    speeds = [speed for core in cores if (speed := core.base_speed or core.guess_speed or core.max_speed)]
    return sum(speeds) / len(speeds) if speeds else 0.0


def host_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> float:
    """What the kernel says of the first CPU; 0 when it does not."""
    found = _MHZ.search(cpuinfo.read_text())
    return float(found[1]) if found is not None else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What /proc said at one moment. CPU times in seconds since the process began."""

    at: float  # seconds on the monotonic clock
    user_s: float
    system_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The share of one CPU between two samples: 100 is one whole core."""

    user_percent: float
    system_percent: float
    rss_bytes: int

    @property
    def percent(self) -> float:
        return self.user_percent + self.system_percent


def sample(who: Identity, now: float) -> Sample | None:
    """Read one process; None when that very process is gone."""
    fields = stat_fields(who.pid)
    if fields is None or int(fields[19]) != who.start_time:
        return None
    user, system, rss = int(fields[11]), int(fields[12]), int(fields[21])
    return Sample(now, user / _TICKS_PER_S, system / _TICKS_PER_S, rss * _PAGE_BYTES)


def usage(before: Sample | None, after: Sample) -> Usage:
    """The first sample of a task has nothing to compare with: zero CPU, never NaN (which hides all numbers)."""
    span_s = after.at - before.at if before is not None else 0.0
    if before is None or span_s < _SHORTEST_S:
        return Usage(0.0, 0.0, after.rss_bytes)
    return Usage(
        100 * max(0.0, after.user_s - before.user_s) / span_s,
        100 * max(0.0, after.system_s - before.system_s) / span_s,
        after.rss_bytes,
    )
