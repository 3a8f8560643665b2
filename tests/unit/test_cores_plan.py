"""Who gets which cores, who yields, and where every thread belongs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlib.cores.plan import (
    Host,
    Policy,
    confinements,
    decide,
    describe,
    held,
    housekeeping,
    level_now,
    level_words,
    rearrange,
)
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.cores.words import Entry, Placement
from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.spec import CoresSpec


def topology(cores: int, *, threads: int = 1, nodes: int = 1) -> Topology:
    """CPUs numbered core by core; each node has as many cores as the others, and one L3."""
    per_node = cores // nodes
    made = tuple(
        Core(
            id=core * threads,
            cpus=tuple(range(core * threads, (core + 1) * threads)),
            node=core // per_node,
            l3=(core // per_node) * per_node * threads,
        )
        for core in range(cores)
    )
    online = frozenset(range(cores * threads))
    return Topology(
        cores=made,
        nodes=tuple(
            NumaNode(
                id=node,
                cpus=frozenset(cpu for core in made if core.node == node for cpu in core.cpus),
                distances={other: 10 if other == node else 21 for other in range(nodes)},
            )
            for node in range(nodes)
        ),
        online=online,
        present=online,
        smt_active=threads > 1,
    )


TWO = topology(2)
LAB = topology(4, threads=2, nodes=2)
EXCLUSIVE = CoresSpec(exclusive=True)


def entry(name: str, placement: Placement, **changes: object) -> Entry:
    made = Entry(
        id=name,
        name=name,
        owner="nomad",
        boot_id="b",
        run_dir=f"/run/{name}",
        placement=placement,
        level=placement.level,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def start(name: str, wanted: CoresSpec, vcpus: int, host: Host, entries: list[Entry]) -> list[Entry]:
    """The ledger after one more machine has started."""
    decision = decide(wanted, vcpus, host, entries)
    moved = {one.id: one for one in decision.moved}
    return [moved.get(one.id, one) for one in entries] + [entry(name, decision.placement)]


def where(entries: list[Entry], name: str) -> Placement:
    return next(one.placement for one in entries if one.id == name)


# -- level driver ----------------------------------------------------------------------------------------------------


def test_a_machine_with_mhz_gets_a_core_of_its_own_at_level_driver() -> None:
    entries = start("a", EXCLUSIVE, 1, Host(topology=TWO), [])
    assert where(entries, "a") == Placement(level="driver", source="pool", vcpus=(0,), cpus=(0,))
    assert housekeeping(Host(topology=TWO), entries) == {1}


def test_the_last_core_is_never_given_away() -> None:
    host = Host(topology=TWO)
    entries = start("a", EXCLUSIVE, 1, host, [])
    with pytest.raises(HostError, match=r"1 core wanted: 0 cores free beside the last one.*a \(nomad\) holds 0"):
        decide(EXCLUSIVE, 1, host, entries)


def test_the_last_core_may_go_when_the_operator_named_housekeeping() -> None:
    host = Host(topology=TWO, policy=Policy(housekeeping=frozenset({1})))
    entries = start("a", EXCLUSIVE, 1, host, [])
    assert where(entries, "a").cpus == (0,)
    with pytest.raises(HostError):
        decide(EXCLUSIVE, 1, host, entries)


def test_a_full_node_is_worth_another_try_only_while_cores_come_free() -> None:
    host = Host(topology=TWO)
    entries = start("a", EXCLUSIVE, 1, host, [])
    with pytest.raises(NoCapacityError, match="is about to end"):
        decide(EXCLUSIVE, 1, host, [replace(entries[0], draining=True)])


# -- cores = N -------------------------------------------------------------------------------------------------------


def test_cores_of_nomads_choice_are_taken_as_they_are() -> None:
    host = Host(topology=LAB, reserved=frozenset({2, 3, 4, 5}))
    placement = decide(CoresSpec(exclusive=True, given=frozenset({2, 3, 4, 5})), 2, host, []).placement
    assert placement == Placement(level="node", source="given", vcpus=(2, 4), cpus=(2, 3, 4, 5), nodes=(0, 1))


def test_a_sibling_set_that_nomad_split_is_a_single_thread_and_says_so() -> None:
    host = Host(topology=LAB)
    entries = start("a", CoresSpec(exclusive=True, given=frozenset({1, 2, 3})), 2, host, [])
    assert where(entries, "a").level == "node (thread)"
    assert where(entries, "a").vcpus == (1, 2)
    assert 'device "chv/core" gives whole cores' in describe(entries[0], host, entries, 2)


def test_exposed_threads_are_two_vcpus_a_core_and_an_isolated_emulator_has_one_of_the_cores() -> None:
    wanted = CoresSpec(exclusive=True, expose=True, isolate_emulator=True, given=frozenset({0, 1, 2, 3}))
    placement = decide(wanted, 2, Host(topology=LAB), []).placement
    assert placement.vcpus == (0, 1)
    assert placement.emulator == (2, 3)


def test_a_machine_at_level_driver_yields_to_cores_that_nomad_gives_away() -> None:
    host = Host(topology=topology(4))
    entries = start("mhz", EXCLUSIVE, 1, host, [])
    entries = start("cores", CoresSpec(exclusive=True, given=frozenset({0})), 1, host, entries)
    assert where(entries, "cores").cpus == (0,)
    assert where(entries, "mhz").cpus == (1,)
    assert entries[0].yielded == "the scheduler reserved CPU 0, moved to 1"


def test_a_machine_that_finds_no_other_core_floats() -> None:
    host = Host(topology=TWO)
    entries = start("mhz", EXCLUSIVE, 1, host, [])
    entries = start("cores", CoresSpec(exclusive=True, given=frozenset({0})), 1, host, entries)
    assert where(entries, "mhz") == Placement()
    assert "vCPUs float over housekeeping" in entries[0].yielded
    assert confinements(host, entries)["mhz"].cpus == {1}


def test_a_core_that_nomad_gave_twice_is_refused_until_it_is_free() -> None:
    host = Host(topology=TWO)
    entries = start("old", CoresSpec(exclusive=True, given=frozenset({0})), 1, host, [])
    with pytest.raises(HostError, match="old"):
        decide(CoresSpec(exclusive=True, given=frozenset({0})), 1, host, entries)
    with pytest.raises(NoCapacityError):
        decide(CoresSpec(exclusive=True, given=frozenset({0})), 1, host, [replace(entries[0], draining=True)])


def test_what_nomad_reserves_for_others_makes_machines_yield_later() -> None:
    host = Host(topology=topology(4))
    entries = start("a", EXCLUSIVE, 1, host, start("b", EXCLUSIVE, 1, host, []))
    now = replace(host, reserved=frozenset({0}))
    (moved,) = rearrange(now, entries)
    assert moved.id == "b"
    assert moved.placement.cpus == (2,)
    assert rearrange(now, [moved if one.id == "b" else one for one in entries]) == ()


def without(host: Host, *cpus: int) -> Host:
    """The host after these CPUs went offline."""
    left = host.topology.online - set(cpus)
    cores = (replace(core, cpus=tuple(cpu for cpu in core.cpus if cpu in left)) for core in host.topology.cores)
    online = replace(host.topology, online=left, cores=tuple(core for core in cores if core.cpus))
    return replace(host, topology=online)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize("smt_off", [False, True])
def test_whatever_its_wishes_a_machine_that_yields_keeps_nobody_else_from_anything(
    isolate: bool, expose: bool, smt_off: bool
) -> None:
    host = Host(topology=topology(6, threads=2, nodes=2))
    wanted = CoresSpec(exclusive=True, isolate_emulator=isolate, expose=expose)
    entries = start("mhz", wanted, 2, host, [])
    before = where(entries, "mhz")
    taken = before.cpus[0]
    host = replace(host, reserved=frozenset({taken}))
    if smt_off:
        host = without(host, *(core.cpus[1] for core in host.topology.cores))
    (moved,) = rearrange(host, entries)
    assert moved.yielded.startswith(f"the scheduler reserved CPU {taken}")
    if moved.placement.vcpus:
        assert len(moved.placement.vcpus) == 2
        assert not set(moved.placement.cpus) & {taken}
        assert bool(moved.placement.emulator) == isolate
        assert moved.placement.expose == expose
    assert bool(moved.placement.vcpus) == (not (smt_off and expose))
    start("cores", CoresSpec(exclusive=True, given=frozenset({taken})), 1, host, entries)


def test_a_machine_whose_cpu_goes_offline_moves_or_loses_its_level_until_it_is_back() -> None:
    host = Host(topology=topology(4))
    entries = start(
        "mhz", EXCLUSIVE, 1, host, start("given", CoresSpec(exclusive=True, given=frozenset({1})), 1, host, [])
    )
    assert where(entries, "mhz").cpus == (0,)
    (moved,) = rearrange(without(host, 0), entries)
    assert moved.yielded == "CPU 0 went offline, moved to 2"

    gone = without(host, 1)
    assert rearrange(gone, entries) == ()
    given = entries[0]
    assert level_now(given, gone, entries) == "shared"
    assert level_words(given, gone, entries) == "cores: level shared now: CPU 1 went offline"
    everything = confinements(gone, entries)["given"]
    assert everything.cpus == everything.emulator == everything.vcpus[0] == {2, 3}
    assert level_words(given, host, entries) == "cores: level node again"


# -- dedicated -------------------------------------------------------------------------------------------------------


def test_cores_that_are_dedicated_no_more_are_like_any_others() -> None:
    entries = start("web", EXCLUSIVE, 1, DEDICATED, [])
    (web,) = entries
    now = Host(topology=LAB)
    assert level_now(web, now, entries) == "driver"
    assert "is dedicated no more" in level_words(web, now, entries)
    assert rearrange(now, entries) == ()
    (moved,) = rearrange(replace(now, reserved=frozenset(web.placement.cpus)), entries)
    assert moved.yielded.startswith("the scheduler reserved CPU")
    assert moved.placement.source == "pool"


def test_a_core_that_comes_free_helps_only_who_then_has_enough() -> None:
    host = Host(topology=topology(4))
    leaving = [replace(one, draining=True) for one in start("a", EXCLUSIVE, 2, host, [])]
    with pytest.raises(NoCapacityError):
        decide(EXCLUSIVE, 3, host, leaving)
    with pytest.raises(HostError) as caught:
        decide(EXCLUSIVE, 5, host, leaving)
    assert not isinstance(caught.value, NoCapacityError)


def test_nothing_floats_where_every_cpu_is_dedicated() -> None:
    host = Host(topology=TWO, policy=Policy(usable=frozenset(), dedicated=frozenset({0, 1}), dedicated_only=True))
    with pytest.raises(HostError, match="no CPU that is not dedicated"):
        decide(CoresSpec(), 1, host, [])


def test_dedicated_cores_that_are_shared_out_all_the_same_are_named() -> None:
    host = Host(topology=TWO, policy=Policy(usable=frozenset({0, 1}), dedicated=frozenset({1}), dedicated_only=True))
    with pytest.raises(HostError, match="1 core of dedicated 1, of which the scheduler still shares out 1, wanted"):
        decide(EXCLUSIVE, 1, host, [])


DEDICATED = Host(
    topology=LAB,
    policy=Policy(usable=frozenset({0, 1}), dedicated=frozenset(range(2, 8)), dedicated_only=True),
)


def test_dedicated_cores_are_whole_and_on_one_node() -> None:
    entries = start("a", EXCLUSIVE, 2, DEDICATED, [])
    assert where(entries, "a") == Placement(
        level="node", source="dedicated", vcpus=(4, 6), cpus=(4, 5, 6, 7), nodes=(1,)
    )


def test_three_of_them_need_two_nodes_and_strict_refuses_that_with_the_largest_block() -> None:
    assert decide(EXCLUSIVE, 3, DEDICATED, []).placement.nodes == (0, 1)
    with pytest.raises(HostError, match="2 cores free in one NUMA node at most"):
        decide(replace(EXCLUSIVE, numa="strict"), 3, DEDICATED, [])


def test_a_second_machine_is_refused_with_the_holder_and_never_falls_to_level_driver() -> None:
    entries = start("a", EXCLUSIVE, 3, DEDICATED, [])
    with pytest.raises(HostError, match=r"a \(nomad\) holds 2-7"):
        decide(EXCLUSIVE, 1, DEDICATED, entries)


def test_tokens_choose_the_node_and_keep_others_away() -> None:
    host = replace(DEDICATED, policy=replace(DEDICATED.policy, tokens=True))
    placement = decide(replace(EXCLUSIVE, tokens={1: 2}), 2, host, []).placement
    assert placement.source == "tokens"
    assert placement.nodes == (1,)
    with pytest.raises(SpecError, match="hold tokens"):
        decide(EXCLUSIVE, 1, host, [])


def test_dedicated_cores_that_nomad_still_shares_out_are_not_given() -> None:
    host = replace(DEDICATED, policy=replace(DEDICATED.policy, usable=frozenset(range(6))))
    assert decide(EXCLUSIVE, 1, host, []).placement.cpus == (6, 7)


# -- floating --------------------------------------------------------------------------------------------------------


def test_a_machine_that_floats_makes_the_newest_at_level_driver_give_way_when_nothing_else_is_left() -> None:
    host = Host(topology=TWO, reserved=frozenset({1}))
    held_by = [
        entry("given", Placement(level="node", source="given", vcpus=(1,), cpus=(1,))),
        entry("mhz", Placement(level="driver", source="pool", vcpus=(0,), cpus=(0,))),
    ]
    decision = decide(CoresSpec(), 1, host, held_by)
    assert [one.id for one in decision.moved] == ["mhz"]


def test_where_nomad_reserved_all_a_floating_machine_is_everywhere_and_levels_drop() -> None:
    host = Host(topology=TWO, reserved=frozenset({0, 1}))
    entries = [entry(f"m{cpu}", Placement(level="node", source="given", vcpus=(cpu,), cpus=(cpu,))) for cpu in (0, 1)]
    assert level_now(entries[0], host, entries) == "node"
    entries = start("shared", CoresSpec(), 2, host, entries)
    assert confinements(host, entries)["shared"].cpus == {0, 1}
    assert level_now(entries[0], host, entries) == "driver"


def test_vmm_threads_run_on_the_machines_own_cores_where_no_other_is_left() -> None:
    host = Host(topology=TWO, reserved=frozenset({0, 1}))
    entries = [entry(f"m{cpu}", Placement(level="node", source="given", vcpus=(cpu,), cpus=(cpu,))) for cpu in (0, 1)]
    found = confinements(host, entries)["m0"]
    assert {found.cpus, found.emulator, found.keeper} == {frozenset({0})}
    assert "VMM threads on its own cores, because no other is left" in describe(entries[0], host, entries, 1)


# -- properties ------------------------------------------------------------------------------------------------------

WANTED = st.builds(
    CoresSpec,
    exclusive=st.booleans(),
    numa=st.sampled_from(["prefer", "strict", "spread"]),
    isolate_emulator=st.booleans(),
    given=st.one_of(st.just(frozenset()), st.frozensets(st.integers(0, 15), min_size=1, max_size=4)),
)


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.tuples(WANTED, st.integers(1, 3)), st.integers(0, 20), st.frozensets(st.integers(0, 15), max_size=6)
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_whatever_comes_and_goes_no_core_has_two_owners_and_every_pin_lies_in_its_machines_cpuset(
    steps: list[object], with_dedicated: bool
) -> None:
    everywhere = topology(8, threads=2, nodes=2)
    policy = Policy(usable=frozenset(range(8)), dedicated=frozenset(range(8, 16)), dedicated_only=True)
    host = Host(topology=everywhere, policy=policy if with_dedicated else Policy())
    entries: list[Entry] = []
    for number, step in enumerate(steps):
        match step:
            case (CoresSpec() as wanted, int(vcpus)):
                try:
                    entries = start(f"m{number}", wanted, vcpus, host, entries)
                except VmError:
                    continue
            case int(index) if index < len(entries):
                del entries[index]
            case frozenset() as reserved:
                host = replace(host, reserved=reserved & host.shared_out)
                moved = {one.id: one for one in rearrange(host, entries)}
                entries = [moved.get(one.id, one) for one in entries]
            case _:
                continue
        cpus = [cpu for one in entries for cpu in one.placement.cpus]
        assert len(cpus) == len(set(cpus))
        rest = housekeeping(host, entries)
        assert not rest & held(entries)
        for name, found in confinements(host, entries).items():
            placement = where(entries, name)
            assert found.cpus
            assert found.emulator
            assert found.keeper
            assert found.emulator <= found.cpus
            assert all(one <= found.cpus for one in found.vcpus)
            if placement.source == "pool":
                assert not set(placement.cpus) & host.reserved
