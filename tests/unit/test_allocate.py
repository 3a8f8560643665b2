"""Placement is exact: on every state of small hosts it is what trying all choices finds, and on large ones it keeps its
promises."""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import SMALL, Oracle, distances_of, every_state, host, single, whole
from vmlib.cores.allocate import NoFitError, Request, Unit, UnitMap, units_of
from vmlib.cores.topology import Topology
from vmlib.spec import NumaPolicy

POLICIES: tuple[NumaPolicy, ...] = ("prefer", "strict", "spread")


def map_of(topology: Topology, units: tuple[Unit, ...] | None = None) -> UnitMap:
    return UnitMap(whole(topology) if units is None else units, distances_of(topology))


def ids(units: Iterable[Unit]) -> list[int]:
    return [unit.id for unit in units]


def decided(unit_map: UnitMap, free: Iterable[int], request: Request) -> tuple[Unit, ...] | None:
    try:
        return unit_map.allocate(frozenset(free), request)
    except NoFitError:
        return None


# -- against trying everything ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_state_of_a_small_host_is_decided_as_trying_everything_decides(name: str) -> None:
    topology, units = SMALL[name]
    oracle = Oracle(units, distances_of(topology))
    unit_map = map_of(topology, units)
    for free, count in every_state(units):
        for policy in POLICIES:
            request = Request(count=count, numa=policy)
            assert decided(unit_map, ids(free), request) == oracle.best(free, request), f"free {ids(free)}, {request}"


@given(st.data())
@settings(max_examples=60)
def test_uneven_hosts_are_decided_as_trying_everything_decides(data: st.DataObject) -> None:
    """Threads of 1 to 4 a core, some of them offline, distances that differ, nodes that somebody chose."""
    threads = data.draw(st.sampled_from([1, 2, 4]))
    l3s_by_node = data.draw(
        st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=4).filter(
            lambda l3s: sum(map(sum, l3s)) * threads <= 12
        )
    )
    far = {pair: data.draw(st.sampled_from([12, 20, 32])) for pair in itertools.combinations(range(4), 2)}
    topology = host(l3s_by_node, threads=threads, far=far)
    online = data.draw(st.sets(st.sampled_from(sorted(topology.online)), min_size=1))
    units = units_of(topology, smt="thread", within=online)
    free = data.draw(st.sets(st.sampled_from(units), min_size=1))
    count = data.draw(st.integers(1, len(free)))
    request = Request(count=count, numa=data.draw(st.sampled_from(POLICIES)))
    if data.draw(st.booleans()):
        chosen = data.draw(st.permutations(sorted(free, key=lambda unit: unit.id)))[:count]
        request = Request(count=count, per_node=Counter(unit.node for unit in chosen))
    best = Oracle(units, distances_of(topology)).best(frozenset(free), request)
    assert decided(map_of(topology, units), ids(free), request) == best


@pytest.mark.parametrize(
    ("l3s_by_node", "busy", "request_"),
    [
        ([[3, 3, 1, 1], [3, 3], [3]], set(), Request(count=2, numa="spread")),
        ([[1], [2, 3, 2], [1, 3]], {1, 6}, Request(count=7)),
    ],
)
def test_the_largest_block_left_may_be_in_a_node_that_gives_units(
    l3s_by_node: list[list[int]], busy: set[int], request_: Request
) -> None:
    """Hosts too large for every state, in the states where the largest L3 and the largest node are not together."""
    topology = host(l3s_by_node)
    free = frozenset(unit for unit in whole(topology) if unit.id not in busy)
    best = Oracle(whole(topology), distances_of(topology)).best(free, request_)
    assert decided(map_of(topology), ids(free), request_) == best


# -- large hosts -----------------------------------------------------------------------------------------------------

LARGE = {
    "8 nodes, 64 L3s, 512 cores": host([[8] * 8] * 8, threads=2),
    "2 nodes, uneven L3s": host([[8, 6, 8, 7], [8, 8, 5]], threads=2),
    "1 node, 1 L3": host([[24]], threads=2),
}
SMT = ("core", "thread")


@st.composite
def states(draw: st.DrawFn) -> tuple[UnitMap, frozenset[int]]:
    """A large host that is anything from empty to full, by whole L3s or by a cut through all of them."""
    topology = draw(st.sampled_from(sorted(LARGE)).map(LARGE.__getitem__))
    smt = draw(st.sampled_from(SMT))
    units = whole(topology) if smt == "core" else single(topology)
    share = draw(st.integers(0, 10))
    random = Random(draw(st.integers(0, 2**32)))
    return map_of(topology, units), frozenset(unit.id for unit in units if random.randrange(10) < share)


requests = st.builds(Request, count=st.integers(1, 90), numa=st.sampled_from(POLICIES))


@given(states(), requests)
@settings(max_examples=80)
def test_gives_exactly_so_many_free_units_each_once(state: tuple[UnitMap, frozenset[int]], request: Request) -> None:
    unit_map, free = state
    request = replace(request, count=min(request.count, max(1, unit_map.largest_block(free))))
    found = decided(unit_map, free, request)
    assert (found is None) == (not free)
    if found is None:
        return
    assert len(set(ids(found))) == len(found) == request.count
    assert set(ids(found)) <= free


@given(states(), requests)
@settings(max_examples=80)
def test_fails_only_when_it_must(state: tuple[UnitMap, frozenset[int]], request: Request) -> None:
    unit_map, free = state
    by_node = Counter(unit.node for unit in unit_map.units if unit.id in free)
    block = max(by_node.values(), default=0)
    if (block if request.numa == "strict" else len(free)) >= request.count:
        unit_map.allocate(free, request)
        return
    with pytest.raises(NoFitError) as caught:
        unit_map.allocate(free, request)
    assert (caught.value.wanted, caught.value.free, caught.value.largest_block) == (request.count, len(free), block)
    assert unit_map.largest_block(free) == block


@given(states(), requests)
@settings(max_examples=40)
def test_vcpus_follow_nodes_then_l3s_then_ids(state: tuple[UnitMap, frozenset[int]], request: Request) -> None:
    found = decided(*state, request) or ()
    assert list(found) == sorted(found, key=lambda unit: (unit.node, unit.l3, unit.id))


@given(states(), st.lists(requests, min_size=1, max_size=6), st.integers(0, 2**32))
@settings(max_examples=60)
def test_recovery_in_any_order_leads_to_the_same_state_and_all_comes_back(
    state: tuple[UnitMap, frozenset[int]], wanted: list[Request], seed: int
) -> None:
    unit_map, before = state
    free = before
    machines: list[frozenset[int]] = []
    for request in wanted:
        found = decided(unit_map, free, request) or ()
        machines.append(frozenset(cpu for unit in found for cpu in unit.cpus))
        assert free >= set(ids(found)), "two owners"
        free -= set(ids(found))
    Random(seed).shuffle(machines)
    recovered = before
    for cpus in machines:
        recovered -= set(ids(unit_map.exact(cpus, recovered)))
    assert recovered == free
    for cpus in machines:
        recovered |= {unit.id for unit in unit_map.units if cpus >= set(unit.cpus)}
    assert recovered == before


@given(st.sampled_from(sorted(LARGE)), st.integers(0, 2**32))
@settings(max_examples=30)
def test_no_unit_has_a_split_sibling_set(name: str, seed: int) -> None:
    topology, random = LARGE[name], Random(seed)
    within = {cpu for cpu in topology.online if random.random() < 0.7}
    units = units_of(topology, smt="core", within=within)
    assert {unit.cpus for unit in units} == {core.cpus for core in topology.cores if within >= set(core.cpus)}
    assert {unit.id for unit in units_of(topology, smt="thread", within=within)} == within


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_whole_l3_is_spared_when_a_begun_one_does() -> None:
    unit_map = map_of(host([[4, 4]]))
    assert ids(unit_map.allocate({0, 1, 2, 3, 5, 6}, Request(count=2))) == [5, 6]


def test_a_lowest_first_choice_would_span_nodes_and_this_one_does_not() -> None:
    unit_map = map_of(host([[4], [4]]))
    assert ids(unit_map.allocate({3, 4, 5, 6, 7}, Request(count=2))) == [4, 5]


def test_nodes_that_are_near_go_together() -> None:
    unit_map = map_of(host([[2], [2], [2]], far={(0, 1): 32, (0, 2): 12, (1, 2): 32}))
    assert ids(unit_map.allocate(set(range(6)), Request(count=4))) == [0, 1, 4, 5]


def test_spread_fills_as_evenly_as_the_free_units_allow() -> None:
    unit_map = map_of(host([[4], [4], [4]]))
    found = unit_map.allocate({0, 4, 5, 6, 7, 8, 9, 10, 11}, Request(count=6, numa="spread"))
    assert Counter(unit.node for unit in found) == {0: 1, 1: 3, 2: 2}


def test_nodes_that_somebody_chose_give_what_was_chosen() -> None:
    unit_map = map_of(host([[4], [4], [4]]))
    found = unit_map.allocate(set(range(12)), Request(count=4, per_node={0: 1, 2: 3}))
    assert ids(found) == [0, 8, 9, 10]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(count=4), "3 cores free in 2 NUMA nodes, 2 in one node at most"),
        (Request(count=3, numa="strict"), "2 cores free in one NUMA node at most"),
        (Request(count=2, per_node={1: 2}), "1 core of 2 free in NUMA node 1"),
        (Request(count=2, numa="strict", per_node={0: 1, 1: 1}), "2 cores in 2 NUMA nodes, expected one node"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_largest_block(request_: Request, words: str) -> None:
    unit_map = map_of(host([[2, 2], [2, 2]]))
    with pytest.raises(NoFitError) as caught:
        unit_map.allocate({0, 3, 5}, request_)
    assert str(caught.value) == words
    assert (caught.value.free, caught.value.largest_block, caught.value.nodes) == (3, 2, 2)


def test_no_units_at_all_is_refused_in_words_too() -> None:
    with pytest.raises(NoFitError, match=r"^0 cores free$"):
        UnitMap((), {}).allocate(frozenset(), Request(count=1))


def test_a_count_that_contradicts_the_nodes_is_refused() -> None:
    unit_map = map_of(host([[2]]))
    with pytest.raises(ValueError, match=r"count = 3: expected"):
        unit_map.allocate({0, 1}, Request(count=3, per_node={0: 2}))
    with pytest.raises(ValueError, match=r"count = 0: expected"):
        unit_map.allocate({0, 1}, Request(count=0))


def test_exact_names_what_is_taken_split_or_unknown() -> None:
    unit_map = map_of(host([[2], [2]], threads=2))
    assert ids(unit_map.exact({4, 0, 6, 2}, {0, 1, 2})) == [0, 2]
    with pytest.raises(NoFitError, match=r"^CPU 2,6 is not free$"):
        unit_map.exact({0, 4, 2, 6}, {0, 1})
    with pytest.raises(ValueError, match=r"^CPU 4: expected all of its siblings 0,4$"):
        unit_map.exact({4, 1, 5}, {0, 1})
    with pytest.raises(ValueError, match=r"^CPU 8: expected one of 0-7$"):
        unit_map.exact({8}, {0, 1})
