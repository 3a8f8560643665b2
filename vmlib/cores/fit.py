"""The best way to take a number of units from NUMA nodes and their L3s, by counts alone: units of one L3 are alike.

What "best" means stands at `UnitMap` in allocate.py. Two facts make it quick. A node that gives `take` units with as
few L3s as can be gives nearly all of those L3s: what it leaves of them (the slack) is less than the smallest of them
has, so that any one of them can bear it, and one broken L3 and one broken core are the worst case. And a maximum over
places (the largest block left) is the best over guesses which place it is; for each guess all terms just add up.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations
from typing import NamedTuple

from vmlib.spec import NumaPolicy

_BITS = 20  # of a term in a sum of terms that are compared one after the other
_MOST = (1 << _BITS) - 1


class Shape(NamedTuple):
    """What is free in one L3, as far as it matters."""

    free: int
    whole: bool  # all of it
    loose: int  # units that break no whole core when taken alone
    cores: tuple[int, ...]  # sizes of the wholly free cores of more than one unit


class InNode(NamedTuple):
    """The best that one node can do for some number of units; compared from left to right."""

    l3s: int
    broken_l3s: int
    broken_cores: int
    less_left: int  # minus the most units left in one L3


@dataclass(frozen=True, slots=True)
class NodeState:
    """What is free in one node."""

    id: int
    shapes: tuple[Shape, ...]  # in the order of the L3s, full ones included

    @property
    def free(self) -> int:
        return sum(shape.free for shape in self.shapes)

    @property
    def alike(self) -> tuple[Shape, ...]:
        """The same for all nodes that differ in the order of their L3s alone."""
        return tuple(sorted((shape for shape in self.shapes if shape.free), reverse=True))


# -- between nodes ---------------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """A set of nodes, and how many units each of them may give."""

    nodes: tuple[int, ...]
    takes: tuple[tuple[int, ...], ...]  # ascending


def choose(
    nodes: Mapping[int, NodeState],
    count: int,
    numa: NumaPolicy,
    per_node: Mapping[int, int] | None,
    distance: Callable[[Sequence[int]], int],
) -> dict[int, tuple[int, ...]] | None:
    """Units from each L3 of each node that gives some; `nodes` are those with something free. None: it does not fit."""
    search = _Search(nodes, count)
    candidates = search.candidates(numa, per_node)
    if not candidates:
        return None
    scores = [search.score(candidate) for candidate in candidates]
    least = min(scores)
    best = min(
        (candidate for candidate, score in zip(candidates, scores, strict=True) if score == least),
        key=lambda candidate: (distance(candidate.nodes), candidate.nodes),
    )
    return search.arrange(best)


class _Search:
    def __init__(self, nodes: Mapping[int, NodeState], count: int) -> None:
        self._nodes = nodes
        self._count = count
        self._free = {id_: state.free for id_, state in sorted(nodes.items())}
        self._alike = {id_: state.alike for id_, state in nodes.items()}
        self._scores: dict[object, int] = {}

    def candidates(self, numa: NumaPolicy, per_node: Mapping[int, int] | None) -> list[_Candidate]:
        if per_node:
            named = {id_: take for id_, take in sorted(per_node.items()) if take}
            if any(take > self._free.get(id_, 0) for id_, take in named.items()):
                return []
            if numa == "strict" and len(named) > 1:
                return []
            return [_Candidate(tuple(named), tuple((take,) for take in named.values()))]
        if sum(self._free.values()) < self._count:
            return []
        return self._spread() if numa == "spread" else self._fewest(1 if numa == "strict" else len(self._free))

    def _fewest(self, most: int) -> list[_Candidate]:
        sizes = sorted(self._free.values(), reverse=True)
        number = next((size for size in range(1, most + 1) if sum(sizes[:size]) >= self._count), 0)
        if not number:
            return []
        sets = [ids for ids in combinations(self._free, number) if sum(self._free[id_] for id_ in ids) >= self._count]
        # One node less is not enough: so the largest L3s of the set together are in all of its nodes.
        l3s = {ids: _least_l3s(self._sums(ids), self._count) for ids in sets}
        least = min(l3s.values())
        return [_Candidate(ids, self._takes(ids, least)) for ids in sets if l3s[ids] == least]

    def _sums(self, ids: Iterable[int]) -> list[int]:
        """The most that 0, 1, 2, … L3s of these nodes can give."""
        sizes = sorted((shape.free for id_ in ids for shape in self._alike[id_]), reverse=True)
        return [0, *accumulate(sizes)]

    def _takes(self, ids: tuple[int, ...], l3s: int) -> tuple[tuple[int, ...], ...]:
        """What each node gives where all of them together use so few L3s."""
        if len(ids) == 1:
            return ((self._count,),)
        takes: list[tuple[int, ...]] = []
        for id_ in ids:
            own = self._sums([id_])
            others = self._sums(other for other in ids if other != id_)
            possible: set[int] = set()
            for number in range(1, len(own)):
                if 0 <= l3s - number < len(others):
                    least = max(own[number - 1] + 1, self._count - others[l3s - number])
                    possible.update(range(least, own[number] + 1))
            takes.append(tuple(sorted(possible)))
        return tuple(takes)

    def _spread(self) -> list[_Candidate]:
        """Every node gives `level` units or all that it has, and some of those that have more give one more."""
        level = 0
        while sum(min(free, level + 1) for free in self._free.values()) <= self._count:
            if all(free <= level for free in self._free.values()):
                break
            level += 1
        if level == 0:
            return [_Candidate(ids, ((1,),) * self._count) for ids in combinations(self._free, self._count)]
        takes = tuple((level, level + 1) if free > level else (free,) for free in self._free.values())
        return [_Candidate(tuple(self._free), takes)]

    def score(self, candidate: _Candidate) -> int:
        """The terms of the best way to take the units from these nodes. Nodes that are alike are counted once."""
        key = tuple(sorted((self._alike[id_], takes) for id_, takes in zip(*candidate, strict=True)))
        if key not in self._scores:
            self._scores[key] = self._solve(candidate) >> _BITS * len(candidate.nodes)
        return self._scores[key]

    def _outside(self, ids: Sequence[int]) -> tuple[int, int]:
        """The largest L3 and the largest node among those that give nothing."""
        others = [id_ for id_ in self._free if id_ not in ids]
        l3 = max((self._alike[id_][0].free for id_ in others), default=0)
        return l3, max((self._free[id_] for id_ in others), default=0)

    def _solve(self, candidate: _Candidate) -> int:
        """The least sum over the nodes of (L3s, broken L3s, broken cores, ~left in the L3 guessed, ~left in the node
        guessed, ~units of the first node, of the second, …), `_BITS` bits for each.

        A state is the units taken so far, and whether the two guesses have been made (a bit each).
        """
        width = len(candidate.nodes)
        low = _BITS * width  # of the terms that say which node gives what
        outside_l3, outside_node = self._outside(candidate.nodes)
        made = ((_MOST - outside_l3) << low + _BITS, (_MOST - outside_node) << low)
        states: list[dict[int, int]] = [{0: 0}, {0: made[0]}, {0: made[1]}, {0: sum(made)}]
        # Where nothing inside can be larger than what is outside, that is the guess.
        if outside_l3 >= max(self._alike[id_][0].free for id_ in candidate.nodes):
            states[0], states[2] = {}, {}
        if outside_node >= max(self._free[id_] - takes[0] for id_, takes in zip(*candidate, strict=True)):
            states[0], states[1] = {}, {}
        for index, (id_, takes) in enumerate(zip(*candidate, strict=True)):
            later = candidate.takes[index + 1 :]
            at_most = self._count - sum(one[0] for one in later)
            at_least = self._count - sum(one[-1] for one in later)
            after: list[dict[int, int]] = [{}, {}, {}, {}]
            for take in takes:
                best = in_node(self._alike[id_], take)
                cost = (best.l3s << 2 * _BITS | best.broken_l3s << _BITS | best.broken_cores) << low + 2 * _BITS
                cost += (_MOST - take) << _BITS * (width - 1 - index)
                l3 = (_MOST + best.less_left) << low + _BITS
                node = (_MOST - self._free[id_] + take) << low
                costs = (cost, cost + l3, cost + node, cost + l3 + node)
                for guessed, state in enumerate(states):
                    for now, much in enumerate(costs):
                        # Both guesses are made in the end.
                        if guessed & now or (not later and guessed | now != 3):
                            continue
                        target = after[guessed | now]
                        for taken, so_far in state.items():
                            total = taken + take
                            if at_least <= total <= at_most:
                                sum_ = so_far + much
                                if total not in target or sum_ < target[total]:
                                    target[total] = sum_
            states = after
        return states[3][self._count]

    def arrange(self, candidate: _Candidate) -> dict[int, tuple[int, ...]]:
        width = len(candidate.nodes)
        solved = self._solve(candidate)
        takes = [_MOST - (solved >> _BITS * (width - 1 - index) & _MOST) for index in range(width)]
        left = _MOST - (solved >> _BITS * (width + 1) & _MOST)
        bests = [in_node(self._alike[id_], take) for id_, take in zip(candidate.nodes, takes, strict=True)]

        def arranged(keeper: int | None) -> list[tuple[int, ...]]:
            return [
                in_l3s(self._nodes[id_].shapes, take, bests[index], left if index == keeper else 0)
                for index, (id_, take) in enumerate(zip(candidate.nodes, takes, strict=True))
            ]

        keepers: list[int | None] = [None]  # one node has to leave the block, if no other node has it anyway
        if self._outside(candidate.nodes)[0] < left:
            keepers = [index for index, best in enumerate(bests) if -best.less_left >= left]
        return dict(zip(candidate.nodes, max(map(arranged, keepers)), strict=True))


# -- in one node -----------------------------------------------------------------------------------------------------


def _least_l3s(sums: Sequence[int], take: int) -> int:
    """`sums` as the largest L3s have them: of none, of one, of two, …"""
    return bisect_left(sums, take)


@lru_cache(maxsize=4096)
def _reach(loose: int, cores: tuple[int, ...]) -> int:
    """Numbers of units that can be taken, or left, without breaking a whole core, as bits."""
    reach = (1 << loose + 1) - 1
    for size in cores:
        reach |= reach << size
    return reach


def _reach_of(shapes: Sequence[Shape]) -> int:
    cores = tuple(size for shape in shapes for size in shape.cores)
    return _reach(sum(shape.loose for shape in shapes), cores)


class _Pick(NamedTuple):
    """How many L3s of each shape give units; all that they have but `slack`."""

    numbers: tuple[int, ...]
    slack: int
    outside: int  # free in the largest L3 that gives nothing


def _picks(groups: Sequence[tuple[Shape, int]], take: int) -> Iterator[_Pick]:
    """All ways to use as few L3s as can be. `groups` from the largest."""
    sizes = [shape.free for shape, number in groups for _ in range(number)]
    starts = [0]
    for _, number in groups:
        starts.append(starts[-1] + number)
    sums = [0, *accumulate(sizes)]

    def walk(index: int, l3s: int, need: int, numbers: tuple[int, ...], outside: int) -> Iterator[_Pick]:
        if l3s == 0:
            if need <= 0:
                rest = groups[index][0].free if index < len(groups) else 0
                yield _Pick(numbers + (0,) * (len(groups) - index), -need, max(outside, rest))
            return
        start = starts[index]
        if start + l3s > len(sizes) or sums[start + l3s] - sums[start] < need:
            return
        shape, number = groups[index]
        for used in range(min(number, l3s), -1, -1):
            left_out = shape.free if used < number else 0
            yield from walk(index + 1, l3s - used, need - used * shape.free, (*numbers, used), max(outside, left_out))

    yield from walk(0, _least_l3s(sums, take), take, (), 0)


@lru_cache(maxsize=65536)
def in_node(shapes: tuple[Shape, ...], take: int) -> InNode:
    """`shapes` from the largest, with something free in each."""
    groups = list(Counter(shapes).items())
    l3s = _least_l3s([0, *accumulate(shape.free for shape in shapes)], take)
    return min(_rate(groups, pick, l3s) for pick in _picks(groups, take))


def _rate(groups: Sequence[tuple[Shape, int]], pick: _Pick, l3s: int) -> InNode:
    slack = pick.slack
    if not slack:
        return InNode(l3s, 0, 0, -pick.outside)
    used = [shape for (shape, _), number in zip(groups, pick.numbers, strict=True) for _ in range(number)]
    begun = [shape for shape in used if not shape.whole]
    if not begun:
        breaks = not any(_reach_of([shape]) >> slack & 1 for shape in used)
        return InNode(l3s, 1, int(breaks), -max(pick.outside, slack))
    if not _reach_of(begun) >> slack & 1:
        return InNode(l3s, 0, 1, -max(pick.outside, slack))
    left = pick.outside if pick.outside >= slack else max(pick.outside, _most_in_one(begun, slack))
    return InNode(l3s, 0, 0, -left)


def _most_in_one(begun: Sequence[Shape], slack: int) -> int:
    for most in range(slack, 0, -1):
        for index, shape in enumerate(begun):
            others = _reach_of([*begun[:index], *begun[index + 1 :]])
            if _reach_of([shape]) >> most & 1 and others >> (slack - most) & 1:
                return most
    return 0


def in_l3s(shapes: Sequence[Shape], take: int, best: InNode, left: int) -> tuple[int, ...]:
    """Units from each L3, from the first ones as many as can be, where the node does its best and, if `left` is not 0,
    leaves that many in one L3."""
    order = sorted((shape for shape in shapes if shape.free), reverse=True)
    groups = list(Counter(order).items())
    found: list[tuple[int, ...]] = []
    for pick in _picks(groups, take):
        if _rate(groups, pick, best.l3s)[:3] != best[:3]:
            continue
        wanted = {shape: number for (shape, _), number in zip(groups, pick.numbers, strict=True)}
        used: list[int] = []
        for place, shape in enumerate(shapes):
            if wanted.get(shape, 0):
                wanted[shape] -= 1
                used.append(place)
        for slacks in _slacks([shapes[place] for place in used], pick, best, left):
            takes = [0] * len(shapes)
            for place, slack in zip(used, slacks, strict=True):
                takes[place] = shapes[place].free - slack
            found.append(tuple(takes))
    return max(found)


def _slacks(used: Sequence[Shape], pick: _Pick, best: InNode, left: int) -> Iterator[list[int]]:
    """Ways to leave the slack, the best of them for each L3 that could be the one with the block that is left."""
    slack = pick.slack
    bearers = [index for index, shape in enumerate(used) if not shape.whole] or list(range(len(used)))
    if slack and (best.broken_l3s or best.broken_cores):
        if max(pick.outside, slack) >= left:
            for index in bearers:
                if best.broken_cores or _reach_of([used[index]]) >> slack & 1:
                    yield [slack if place == index else 0 for place in range(len(used))]
        return
    if pick.outside >= left:
        yield _late(used, bearers, slack, {})
        return
    for index in bearers:
        others = [used[place] for place in bearers if place != index]
        if slack >= left and _reach_of([used[index]]) >> left & 1 and _reach_of(others) >> (slack - left) & 1:
            yield _late(used, bearers, slack, {index: left})


def _late(used: Sequence[Shape], bearers: Sequence[int], slack: int, fixed: Mapping[int, int]) -> list[int]:
    """No whole core breaks, and the first L3s leave as little as can be."""
    slacks = [0] * len(used)
    for number, index in enumerate(bearers):
        rest = [place for place in bearers[number + 1 :] if place not in fixed]
        reach = _reach_of([used[place] for place in rest])
        due = slack - sum(fixed[place] for place in bearers[number + 1 :] if place in fixed)
        own = _reach_of([used[index]])
        slacks[index] = (
            fixed[index]
            if index in fixed
            else next(much for much in range(due + 1) if own >> much & 1 and reach >> (due - much) & 1)
        )
        slack -= slacks[index]
    return slacks
