"""Which cores a machine gets: exact, not greedy, and pure. Owners, ledgers and cgroups are not known here."""

from collections.abc import Mapping
from dataclasses import dataclass

from vmlib.spec import NumaPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is given away whole: a physical core with all its CPUs (smt = core), or one logical CPU (smt = thread)."""

    id: int  # its lowest CPU
    cpus: tuple[int, ...]
    core: int  # id of the physical core it is, or is a thread of
    node: int
    l3: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`count` units, or exactly `per_node` (node -> units) where somebody has chosen the nodes already."""

    count: int
    numa: NumaPolicy = "prefer"
    per_node: Mapping[int, int] | None = None
