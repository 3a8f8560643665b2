"""This machine as a Nomad node: its ids, attributes and CPU topology, as far as jobs and drivers see them."""

import os
import platform
import re
import socket
import uuid
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from driver._pb import base_pb2

_SYS = Path("/sys/devices/system")
_GUESS_MHZ = 1000
_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A logical CPU."""

    id: int
    socket: int
    numa_node: int
    mhz: int
    withheld: bool = False  # given to no task; its MHz count all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    id: str
    name: str
    datacenter: str = "dc1"
    cpus: tuple[Cpu, ...] = ()
    distances: tuple[tuple[int, ...], ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def mhz(self) -> int:
        """All compute of the node."""
        return sum(cpu.mhz for cpu in self.cpus)

    def withholding(self, ids: AbstractSet[int]) -> Self:
        """The same node with these CPUs withheld."""
        return replace(self, cpus=tuple(replace(cpu, withheld=cpu.id in ids) for cpu in self.cpus))

    def lowest_cores(self, count: int) -> tuple[Cpu, ...]:
        """The cores for a task that asked for `count`: lowest id first. Raises ValueError when there are fewer."""
        usable = sorted((cpu for cpu in self.cpus if not cpu.withheld), key=lambda cpu: cpu.id)
        if count > len(usable):
            withheld = len(self.cpus) - len(usable)
            beside = f" beside {withheld} that the agent file withholds" if withheld else ""
            raise ValueError(f"cores = {count}: this machine has {len(usable)}{beside}")
        return tuple(usable[:count])

    def topology(self) -> base_pb2.ClientTopology:
        nodes = sorted({cpu.numa_node for cpu in self.cpus}) or [0]
        slit = base_pb2.ClientTopologySLIT(
            dimension=len(self.distances), values=[value for row in self.distances for value in row]
        )
        return base_pb2.ClientTopology(
            node_ids=nodes,
            distances=slit if self.distances else None,
            cores=[
                base_pb2.ClientTopologyCore(
                    socket_id=cpu.socket,
                    node_id=cpu.numa_node,
                    core_id=cpu.id,
                    base_speed=cpu.mhz,
                    disable=cpu.withheld,
                )
                for cpu in self.cpus
            ],
        )


def this_node(*, datacenter: str, meta: dict[str, str]) -> Node:
    """Reads the host; the id is new each time, as that of a dev agent."""
    name = socket.gethostname()
    cpus = _cpus()
    release = platform.uname()
    attributes = {
        "arch": "amd64" if release.machine == "x86_64" else release.machine,
        "cpu.arch": "amd64" if release.machine == "x86_64" else release.machine,
        "cpu.numcores": str(len(cpus)),
        "cpu.totalcompute": str(sum(cpu.mhz for cpu in cpus)),
        "kernel.name": "linux",
        "kernel.arch": release.machine,
        "kernel.version": release.release,
        "memory.totalbytes": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        "unique.hostname": name,
        "unique.network.ip-address": "127.0.0.1",
    }
    return Node(
        id=str(uuid.uuid4()),
        name=name,
        datacenter=datacenter,
        cpus=cpus,
        distances=_distances(),
        attributes=attributes,
        meta=meta,
    )


def _cpus() -> tuple[Cpu, ...]:
    allowed = sorted(os.sched_getaffinity(0))
    mhz = _mhz()
    nodes = {
        cpu: int(directory.name.removeprefix("node"))
        for directory in _SYS.glob("node/node[0-9]*")
        for cpu in parse_cpu_list(_read(directory / "cpulist"))
    }
    found = []
    for cpu in allowed:
        package = _read(_SYS / f"cpu/cpu{cpu}/topology/physical_package_id")
        socket_id = int(package) if package.isdecimal() else 0
        found.append(Cpu(id=cpu, socket=socket_id, numa_node=nodes.get(cpu, 0), mhz=mhz))
    return tuple(found)


def _mhz() -> int:
    """The base clock where the kernel tells it, else what /proc/cpuinfo shows now."""
    for name in ("base_frequency", "cpuinfo_max_freq"):
        khz = _read(_SYS / f"cpu/cpu0/cpufreq/{name}")
        if khz.isdecimal():
            return int(khz) // 1000
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return round(float(match[1])) if match else _GUESS_MHZ


def _distances() -> tuple[tuple[int, ...], ...]:
    rows = [_read(path / "distance").split() for path in sorted(_SYS.glob("node/node[0-9]*"))]
    return tuple(tuple(int(value) for value in row) for row in rows if row)


def parse_cpu_list(text: str) -> list[int]:
    """`0-3,8` as numbers; blank is none. Raises ValueError, which says what was expected."""
    found: list[int] = []
    for part in text.split(",") if text.strip() else ():
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last:
            raise ValueError(f"expected a list of CPUs in ascending ranges such as 0-3,8, found {part.strip()[:32]!r}")
        found += range(first, last + 1)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
