"""What Nomad counts for a core: it wants to be told of CPU use in MHz."""

import re
from pathlib import Path

from driver._pb import base_pb2

_MHZ = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)", re.MULTILINE)


def mhz_of(nomad: base_pb2.NomadConfig | None) -> float:
    """What Nomad counts for one of its cores, from the topology that it sends; 0 when it sends none."""
    cores = nomad.driver.Topology.cores if nomad is not None else ()
    speeds = [speed for core in cores if (speed := core.base_speed or core.guess_speed or core.max_speed)]
    return sum(speeds) / len(speeds) if speeds else 0.0


def host_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> float:
    """What the kernel says of the first CPU; 0 when it does not."""
    found = _MHZ.search(cpuinfo.read_text())
    return float(found[1]) if found is not None else 0.0
