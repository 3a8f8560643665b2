"""Placement on 1,024 CPUs, 8 NUMA nodes and 64 L3s over "the lowest ids first", and both against the best choice."""

import random
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from statistics import fmean

from tests.bench.measure import Line, Settings, line, percentile
from tests.oracle import SMALL, Oracle, distances_of, every_state, host, whole
from vmlib.cores.allocate import Request, Unit, UnitMap

_L3S_BY_NODE = [[8] * 8] * 8  # physical cores; two threads each
_A_NODE = 64
_ROUNDS = 10_000  # starts and stops
_SIZES = (1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 12, 16, 24, 32, 48, 64, 96)
_FULL_ENOUGH = 0.8  # of the cores; from there on machines stop as often as they start
_CRITERIA = 8  # of the oracle's rank; what follows is which of the equally good ones

_Choose = Callable[[AbstractSet[int], int], tuple[Unit, ...]]


def run(settings: Settings) -> list[Line]:
    topology = host(_L3S_BY_NODE, threads=2)
    units = whole(topology)
    unit_map = UnitMap(units, distances_of(topology))
    ours = [Churn(units, _exact(unit_map), seed, beside=_lowest(units)) for seed in range(settings.pairs)]
    baseline = [Churn(units, _lowest(units), seed) for seed in range(settings.pairs)]
    for one, other in zip(ours, baseline, strict=True):
        one.run()
        other.run()
    times = (
        "UnitMap.allocate / the lowest free ids, in turns on the same states; cores of 1,024 CPUs in 8 nodes, 64 L3s"
    )
    worse, lowest_worse = below_optimum()
    return [
        line(
            f"placement p{percent}",
            times,
            ours=[percentile(churn.took_s, percent) for churn in ours],
            baseline=[percentile(churn.beside_s, percent) for churn in ours],
        )
        for percent in (50, 99)
    ] + [
        line(
            "placement below best",
            "share of all states and requests of small hosts with a better choice: ours / the lowest free ids",
            ours=[worse],
            baseline=[lowest_worse],
            unit="share",
        ),
        line(
            "placement, nodes",
            f"share of machines in more nodes than they need, over {_ROUNDS} starts and stops: ours / lowest ids first",
            ours=[fmean(churn.astray) for churn in ours],
            baseline=[fmean(churn.astray) for churn in baseline],
            unit="share",
        ),
        line(
            "placement, L3s",
            "share of machines in more L3s than they need, over the same",
            ours=[fmean(churn.scattered) for churn in ours],
            baseline=[fmean(churn.scattered) for churn in baseline],
            unit="share",
        ),
        line(
            "placement, block left",
            "cores free in one node, mean over the same; more is better",
            ours=[fmean(churn.blocks) for churn in ours],
            baseline=[fmean(churn.blocks) for churn in baseline],
            unit="cores",
        ),
    ]


def _exact(unit_map: UnitMap) -> _Choose:
    return lambda free, count: unit_map.allocate(free, Request(count=count))


def _lowest(units: tuple[Unit, ...]) -> _Choose:
    by_id = {unit.id: unit for unit in units}
    return lambda free, count: tuple(by_id[id_] for id_ in sorted(free)[:count])


@dataclass
class Churn:
    """Machines that start and stop at random: by seed the same sizes in the same order, whoever chooses their cores."""

    units: tuple[Unit, ...]
    choose: _Choose
    seed: int
    beside: _Choose | None = None  # is asked in turn with the other, and its choice is thrown away
    took_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    astray: list[bool] = field(default_factory=list)  # by machine: in more nodes than it needs
    scattered: list[bool] = field(default_factory=list)  # the same for L3s
    blocks: list[int] = field(default_factory=list)  # after each start and stop

    def run(self) -> None:
        dice = random.Random(self.seed)
        free = {unit.id for unit in self.units}
        node_of = {unit.id: unit.node for unit in self.units}
        by_node = dict.fromkeys(node_of.values(), 0)
        for node in node_of.values():
            by_node[node] += 1
        machines: list[tuple[Unit, ...]] = []
        for _ in range(_ROUNDS):
            starts = dice.random() < (0.7 if len(free) > len(self.units) * (1 - _FULL_ENOUGH) else 0.5)
            count = dice.choice(_SIZES)
            if starts and count <= len(free):
                change, sign = self._start(free, count), -1
                machines.append(change)
                free.difference_update(unit.id for unit in change)
            elif machines:
                change, sign = machines.pop(dice.randrange(len(machines))), 1
                free.update(unit.id for unit in change)
            else:
                continue
            for unit in change:
                by_node[unit.node] += sign
            self.blocks.append(max(by_node.values()))

    def _start(self, free: set[int], count: int) -> tuple[Unit, ...]:
        if self.beside is not None:
            begin = time.perf_counter()
            self.beside(free, count)
            self.beside_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        chosen = self.choose(free, count)
        self.took_s.append(time.perf_counter() - begin)
        self.astray.append(len({unit.node for unit in chosen}) > -(-count // _A_NODE))
        self.scattered.append(len({(unit.node, unit.l3) for unit in chosen}) > -(-count // _L3S_BY_NODE[0][0]))
        return chosen


def below_optimum() -> tuple[float, float]:
    """The share of all states of the small hosts where trying everything finds better: for ours, for the lowest ids."""
    ours: list[bool] = []
    lowest: list[bool] = []
    for oracle, unit_map, free, request in _small_states():
        best = oracle.best(free, request)
        if best is None:
            continue
        rank = oracle.rank(free, best, request.numa)[:_CRITERIA]
        ids = {unit.id for unit in free}
        for choose, worse in ((_exact(unit_map), ours), (_lowest(unit_map.units), lowest)):
            worse.append(oracle.rank(free, choose(ids, request.count), request.numa)[:_CRITERIA] != rank)
    return fmean(ours), fmean(lowest)


def _small_states() -> Iterator[tuple[Oracle, UnitMap, frozenset[Unit], Request]]:
    for topology, units in SMALL.values():
        distances = distances_of(topology)
        oracle, unit_map = Oracle(units, distances), UnitMap(units, distances)
        for free, count in every_state(units):
            yield oracle, unit_map, free, Request(count=count)
