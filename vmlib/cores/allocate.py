"""Which cores a machine gets: exact, not greedy, and pure. Owners, ledgers and cgroups are not known here."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, groupby
from operator import or_
from typing import Literal

from vmlib.cores.cpulist import format_cpus
from vmlib.cores.fit import NodeState, Shape, choose
from vmlib.cores.topology import Topology
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


class NoFitError(Exception):
    """Not among these units; who holds them is not known here."""

    def __init__(self, *, wanted: int, free: int, largest_block: int, nodes: int, message: str = "") -> None:
        super().__init__(message or _no_fit_words(free, largest_block, nodes))
        self.wanted = wanted
        self.free = free
        self.largest_block = largest_block  # the most that are free in one NUMA node
        self.nodes = nodes  # NUMA nodes with something free


def _no_fit_words(free: int, largest_block: int, nodes: int) -> str:
    if nodes < 2:
        return f"{_cores(free)} free"
    return f"{_cores(free)} free in {nodes} NUMA nodes, {largest_block} in one node at most"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


def units_of(topology: Topology, *, smt: Literal["core", "thread"], within: AbstractSet[int]) -> tuple[Unit, ...]:
    """The units all of whose CPUs are `within`: physical cores with every sibling that is online, or single CPUs."""
    units: list[Unit] = []
    for core in topology.cores:
        whole = [core.cpus] if within >= set(core.cpus) else []
        parts = whole if smt == "core" else [(cpu,) for cpu in core.cpus if cpu in within]
        units += [Unit(id=cpus[0], cpus=cpus, core=core.id, node=core.node, l3=core.l3) for cpus in parts]
    return tuple(sorted(units, key=_place))


def _place(unit: Unit) -> tuple[int, int, int]:
    return unit.node, unit.l3, unit.id


class UnitMap:
    """Units and where they are, with a bit for each. An L3 that several nodes share counts as one in each of them.

    What `allocate` chooses has the first place in this order; there is one such choice:

    1. nodes: "prefer" takes the fewest, "strict" one, "spread" those that have something free, as evenly as their free
       units allow (the smallest sum of squares; the difference of the most and the least is then smallest too);
    2. the fewest L3s;
    3. the fewest L3s broken: all of their units were free, and some are taken and some not;
    4. the fewest physical cores broken in the same sense (units that are threads);
    5. the largest block left: the most units that stay free in one L3, wherever it is, then the most in one node;
    6. the smallest sum of the distances between every two of the nodes, both ways;
    7. the lowest nodes, of these the first as full as can be, of their L3s the first as full as can be, the lowest ids.
    """

    def __init__(self, units: Iterable[Unit], distances: Mapping[int, Mapping[int, int]]) -> None:
        self.units = tuple(sorted(units, key=_place))
        self._distances = distances
        self._bit = {unit.id: 1 << index for index, unit in enumerate(self.units)}
        self._domains: dict[int, list[_Domain]] = {}  # by node, in the order of their L3
        for (node, _), members in groupby(self.units, key=lambda unit: (unit.node, unit.l3)):
            self._domains.setdefault(node, []).append(self._domain(tuple(members)))

    def _domain(self, units: tuple[Unit, ...]) -> "_Domain":
        cores: dict[int, int] = {}
        for unit in units:
            cores[unit.core] = cores.get(unit.core, 0) | self._bit[unit.id]
        return _Domain(
            units=units,
            mask=reduce(or_, cores.values()),
            # A core of one unit cannot be broken.
            cores=tuple(mask for mask in cores.values() if mask.bit_count() > 1),
        )

    def _mask(self, free: Iterable[int]) -> int:
        return reduce(or_, (self._bit.get(id_, 0) for id_ in free), 0)

    def largest_block(self, free: AbstractSet[int]) -> int:
        """The most units that are free in one node."""
        mask = self._mask(free)
        return max((sum(one.free(mask) for one in domains) for domains in self._domains.values()), default=0)

    def allocate(self, free: AbstractSet[int], request: Request) -> tuple[Unit, ...]:
        """The best choice among the units with these ids, by node, L3 and id. Raises NoFitError."""
        if request.count < 1 or (request.per_node and sum(request.per_node.values()) != request.count):
            raise ValueError(f"count = {request.count}: expected at least 1, and the sum of per_node")
        mask = self._mask(free)
        nodes = {
            node: NodeState(node, tuple(domain.shape(mask) for domain in domains))
            for node, domains in self._domains.items()
            if any(mask & domain.mask for domain in domains)
        }
        takes = choose(nodes, request.count, request.numa, request.per_node, self._distance)
        if takes is None:
            raise NoFitError(
                wanted=request.count,
                free=mask.bit_count(),
                largest_block=max((state.free for state in nodes.values()), default=0),
                nodes=len(nodes),
                message=_lacking(request, nodes),
            )
        return tuple(
            unit
            for node, by_domain in sorted(takes.items())
            for domain, take in zip(self._domains[node], by_domain, strict=True)
            for unit in domain.pick(mask, take, self._bit)
        )

    def exact(self, cpus: AbstractSet[int], free: AbstractSet[int]) -> tuple[Unit, ...]:
        """The units that these CPUs are. Raises ValueError when some are no whole unit, NoFitError when taken."""
        units = tuple(unit for unit in self.units if not cpus.isdisjoint(unit.cpus))
        for unit in units:
            if not cpus >= set(unit.cpus):
                siblings = format_cpus(frozenset(unit.cpus))
                raise ValueError(f"CPU {format_cpus(cpus & set(unit.cpus))}: expected all of its siblings {siblings}")
        if unknown := cpus - {cpu for unit in units for cpu in unit.cpus}:
            raise ValueError(f"CPU {format_cpus(unknown)}: expected one of {format_cpus(self._cpus())}")
        if taken := [unit for unit in units if unit.id not in free]:
            mask = self._mask(free)
            raise NoFitError(
                wanted=len(units),
                free=mask.bit_count(),
                largest_block=self.largest_block(free),
                nodes=sum(1 for domains in self._domains.values() if any(one.free(mask) for one in domains)),
                message=f"CPU {format_cpus(frozenset(cpu for unit in taken for cpu in unit.cpus))} is not free",
            )
        return units

    def _cpus(self) -> frozenset[int]:
        return frozenset(cpu for unit in self.units for cpu in unit.cpus)

    def _distance(self, nodes: Iterable[int]) -> int:
        return sum(
            self._distances.get(one, {}).get(other, _FAR) + self._distances.get(other, {}).get(one, _FAR)
            for one, other in combinations(nodes, 2)
        )


_FAR = 20  # what firmware says of another node when it says nothing in particular


def _lacking(request: Request, nodes: Mapping[int, NodeState]) -> str:
    free = {node: state.free for node, state in nodes.items()}
    if request.per_node:
        short = [(node, count) for node, count in sorted(request.per_node.items()) if count > free.get(node, 0)]
        if short:
            return ", ".join(
                f"{_cores(free.get(node, 0))} of {count} free in NUMA node {node}" for node, count in short
            )
        return f"{_cores(request.count)} in {len(request.per_node)} NUMA nodes, expected one node"
    if request.numa == "strict" and len(nodes) > 1:
        return f"{_cores(max(free.values()))} free in one NUMA node at most"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Domain:
    """The units of one L3 in one node."""

    units: tuple[Unit, ...]  # by id
    mask: int
    cores: tuple[int, ...]  # masks of physical cores with more than one unit

    def free(self, mask: int) -> int:
        return (self.mask & mask).bit_count()

    def _whole_cores(self, mask: int) -> list[int]:
        return [core for core in self.cores if core & mask == core]

    def shape(self, mask: int) -> Shape:
        free = self.free(mask)
        cores = tuple(sorted(core.bit_count() for core in self._whole_cores(mask)))
        return Shape(free=free, whole=free == len(self.units), loose=free - sum(cores), cores=cores)

    def pick(self, mask: int, take: int, bit: Mapping[int, int]) -> list[Unit]:
        """The lowest ids of those choices that break as few whole cores as can be: none, or one."""
        free = [unit for unit in self.units if bit[unit.id] & mask]
        whole = self._whole_cores(mask)
        if take in (0, len(free)) or not whole:
            return free[:take]
        by_core = {core: [unit for unit in free if bit[unit.id] & core] for core in whole}
        in_whole = reduce(or_, whole)
        loose = [[unit] for unit in free if not bit[unit.id] & in_whole]
        items = [*loose, *by_core.values()]
        if (found := _pick_items(items, take)) is not None:
            return found
        choices = [
            sorted([*broken[:part], *rest], key=_place)
            for broken in by_core.values()
            for part in range(1, len(broken))
            if (rest := _pick_items([item for item in items if item is not broken], take - part)) is not None
        ]
        return min(choices, key=lambda units: [unit.id for unit in units])


def _pick_items(items: Sequence[list[Unit]], take: int) -> list[Unit] | None:
    """Whole items of `take` units in all, with the lowest ids; None when no items sum up to that."""
    ordered = sorted(items, key=lambda item: item[0].id)
    after = [1]  # sums that the items from here on can have, as bits; from the last to the first
    for item in reversed(ordered):
        after.append(after[-1] | after[-1] << len(item))
    if take < 0 or not after.pop() >> take & 1:
        return None
    picked: list[Unit] = []
    for item in ordered:
        rest = after.pop()
        if take >= len(item) and rest >> (take - len(item)) & 1:
            picked += item
            take -= len(item)
    return sorted(picked, key=_place)
