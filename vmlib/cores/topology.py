"""What the host's CPUs are: physical cores, their siblings, caches, NUMA nodes. A pure parser and a thin reader."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

CoreKind = Literal["", "performance", "efficiency"]


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
