"""What placement promises, once more and slowly: all choices are tried, as sets of units. Judges the real one."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmlib.cores.allocate import Request, Unit, units_of
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.spec import NumaPolicy

Far = Mapping[tuple[int, int], int]  # distance of two nodes, the lower one first


def host(l3s_by_node: Sequence[Sequence[int]], *, threads: int = 1, far: Far | None = None) -> Topology:
    """Physical cores of each L3 of each node. CPU ids as kernels give them: first threads first, then the siblings."""
    total = sum(map(sum, l3s_by_node))
    cores: list[Core] = []
    for node, l3s in enumerate(l3s_by_node):
        for size in l3s:
            l3 = len(cores)
            for id_ in range(l3, l3 + size):
                cpus = tuple(id_ + total * thread for thread in range(threads))
                cores.append(Core(id=id_, cpus=cpus, l3=l3, node=node))
    number = len(l3s_by_node)
    nodes = tuple(
        NumaNode(
            id=node,
            cpus=frozenset(cpu for core in cores if core.node == node for cpu in core.cpus),
            distances={
                to: 10 if to == node else (far or {}).get((min(node, to), max(node, to)), 21) for to in range(number)
            },
        )
        for node in range(number)
    )
    online = frozenset(cpu for core in cores for cpu in core.cpus)
    return Topology(cores=tuple(cores), nodes=nodes, online=online, present=online, smt_active=threads > 1)


def distances_of(topology: Topology) -> dict[int, Mapping[int, int]]:
    return {node.id: node.distances for node in topology.nodes}


def whole(topology: Topology) -> tuple[Unit, ...]:
    return units_of(topology, smt="core", within=topology.online)


def single(topology: Topology) -> tuple[Unit, ...]:
    return units_of(topology, smt="thread", within=topology.online)


@dataclass(frozen=True)
class Oracle:
    """The order of choices that stands at `UnitMap`."""

    units: tuple[Unit, ...]
    distances: Mapping[int, Mapping[int, int]]

    def rank(self, free: frozenset[Unit], taken: tuple[Unit, ...], policy: NumaPolicy) -> tuple[object, ...]:
        left = free.difference(taken)
        nodes = Counter(unit.node for unit in taken)
        l3s = Counter((unit.node, unit.l3) for unit in taken)
        cores = Counter(unit.core for unit in taken)
        uneven = sum(number * number for number in nodes.values()) if policy == "spread" else 0
        sorted_nodes = tuple(sorted(nodes))
        return (
            uneven,
            len(nodes),
            len(l3s),
            sum(1 for l3, number in l3s.items() if number < self._size_of_l3(l3) == self._free_in_l3(free, l3)),
            sum(1 for core, number in cores.items() if number < self._size_of_core(core) == self._free_in(free, core)),
            -max(Counter((unit.node, unit.l3) for unit in left).values(), default=0),
            -max(Counter(unit.node for unit in left).values(), default=0),
            sum(self.distances[one][two] for one in nodes for two in nodes if one != two),
            sorted_nodes,
            tuple(-nodes[node] for node in sorted_nodes),
            tuple(-l3s[l3] for l3 in self._l3s),
            tuple(sorted((unit.node, unit.l3, unit.id) for unit in taken)),
        )

    @property
    def _l3s(self) -> list[tuple[int, int]]:
        return sorted({(unit.node, unit.l3) for unit in self.units})

    def _size_of_l3(self, l3: tuple[int, int]) -> int:
        return sum(1 for unit in self.units if (unit.node, unit.l3) == l3)

    def _free_in_l3(self, free: frozenset[Unit], l3: tuple[int, int]) -> int:
        return sum(1 for unit in free if (unit.node, unit.l3) == l3)

    def _size_of_core(self, core: int) -> int:
        return sum(1 for unit in self.units if unit.core == core)

    def _free_in(self, free: frozenset[Unit], core: int) -> int:
        return sum(1 for unit in free if unit.core == core)

    def best(self, free: frozenset[Unit], request: Request) -> tuple[Unit, ...] | None:
        ordered = sorted(free, key=lambda unit: (unit.node, unit.l3, unit.id))
        choices = [choice for choice in itertools.combinations(ordered, request.count) if allowed(choice, request)]
        policy = "prefer" if request.per_node else request.numa
        return min(choices, key=lambda choice: self.rank(free, choice, policy), default=None)


def allowed(choice: tuple[Unit, ...], request: Request) -> bool:
    nodes = Counter(unit.node for unit in choice)
    if request.per_node:
        return nodes == Counter(request.per_node)
    return request.numa != "strict" or len(nodes) == 1


def every_state(units: tuple[Unit, ...]) -> Iterator[tuple[frozenset[Unit], int]]:
    """Each set of free units with each count that fits, and one that does not."""
    for number in range(1, len(units) + 1):
        for free in itertools.combinations(units, number):
            for count in range(1, number + 2):
                yield frozenset(free), count


def _small(*l3s_by_node: Sequence[int], threads: int = 1, far: Far | None = None) -> tuple[Topology, tuple[Unit, ...]]:
    topology = host(l3s_by_node, threads=threads, far=far)
    return topology, single(topology)


SMALL = {
    "2 nodes, 1 L3, 3 cores": _small([3], [3]),
    "2 nodes, 2 L3s, 2 cores": _small([2, 2], [2, 2]),
    "1 node, 3 L3s, 2 cores": _small([2, 2, 2]),
    "1 node, 2 L3s, 4 cores": _small([4, 4]),
    "4 nodes, not equally far": _small([2], [2], [2], [1], far={(0, 1): 30, (0, 2): 12, (1, 3): 12}),
    "L3s of several sizes": _small([3, 1], [2, 2]),
    "2 nodes, 2 cores of 2 threads": _small([2], [2], threads=2),
    "2 L3s, 2 cores of 2 threads": _small([2, 2], threads=2),
    "2 L3s, a core of 4 threads": _small([1, 1], threads=4),
}
