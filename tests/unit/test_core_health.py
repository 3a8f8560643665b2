"""What is said of a `cores` block that does not fit the node."""

from typing import Any

import pytest

from driver.cli.doctor_check import Check
from driver.cli.doctor_cores import core_checks
from driver.config_plugin import CoresConfig, decode_plugin_config
from driver.core_health import core_facts, core_findings
from driver.fingerprint import CoreFacts
from vmlib.cores.plan import Host, Policy
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.cores.words import Entry, Placement

# Four cores of two threads on two nodes: core n is CPU n and n + 4.
SMT = Topology(
    cores=tuple(Core(id=n, cpus=(n, n + 4), node=n // 2) for n in range(4)),
    nodes=(NumaNode(id=0, cpus=frozenset({0, 1, 4, 5})), NumaNode(id=1, cpus=frozenset({2, 3, 6, 7}))),
    online=frozenset(range(8)),
    present=frozenset(range(10)),
)
DEDICATED = frozenset({2, 3, 6, 7})
REST = frozenset({0, 1, 4, 5})


def said(config: CoresConfig, **of_the_host: Any) -> tuple[str, ...]:
    return tuple(map(str, core_findings(config, SMT, **of_the_host)))


def test_a_block_that_fits_says_nothing() -> None:
    block = CoresConfig(dedicated=DEDICATED, housekeeping=frozenset({0, 4}), partition="root")
    assert said(block, usable=REST, withheld=DEDICATED, cgroups="v2", partition="root") == ()
    assert said(CoresConfig()) == ()


@pytest.mark.parametrize(
    ("block", "host", "sentence"),
    [
        (
            CoresConfig(dedicated=DEDICATED),
            {"usable": REST | {3, 7}},
            'cores.dedicated 2-3,6-7: Nomad still shares out 3,7, set client { reserved { cores = "2-3,6-7" } }',
        ),
        (
            CoresConfig(dedicated=frozenset({8, 9})),
            {},
            "cores.dedicated 8-9: CPU 8-9 are not online, bring it online or take it off the list",
        ),
        (
            CoresConfig(dedicated=frozenset({2, 3, 6})),
            {},
            (
                "cores.dedicated 2-3,6: core 3 is CPU 3,7, and not all of it is on the list,"
                ' name all of its threads or none, or set smt = "thread"'
            ),
        ),
        (
            CoresConfig(dedicated_auto=True),
            {"usable": REST | DEDICATED},
            (
                'cores.dedicated "auto": Nomad reports no core as withheld, set client { reserved { cores = "…" } }'
                " in the agent's file"
            ),
        ),
        (
            CoresConfig(housekeeping=frozenset({0, 8})),
            {},
            "cores.housekeeping 0,8: CPU 8 is not online, bring it online or take it off the list",
        ),
        (
            CoresConfig(dedicated_auto=True, housekeeping=frozenset({0, 2})),
            {"usable": REST, "withheld": DEDICATED},
            "cores.housekeeping 0,2: CPU 2 is dedicated, take it off one of the two lists",
        ),
        (
            CoresConfig(dedicated=DEDICATED, partition="isolated"),
            {"cgroups": "v1"},
            (
                'cores.partition "isolated": this host has cgroups v1, partitions need v2,'
                ' boot with systemd.unified_cgroup_hierarchy=1, or set partition = ""'
            ),
        ),
        (
            CoresConfig(dedicated=DEDICATED, partition="root"),
            {"cgroups": "v2", "partition": "root invalid (Cpu list in cpuset.cpus not exclusive)"},
            (
                'cores.partition "root" is not valid: root invalid (Cpu list in cpuset.cpus not exclusive),'
                ' withhold the dedicated cores from Nomad again (client { reserved { cores } }), or set partition = ""'
            ),
        ),
    ],
)
def test_each_thing_that_does_not_fit_is_named_with_its_cure(
    block: CoresConfig, host: dict[str, Any], sentence: str
) -> None:
    assert said(block, **host) == (sentence,)


def test_a_split_sibling_set_is_fine_where_threads_are_given_out() -> None:
    assert said(CoresConfig(dedicated=frozenset({2, 3}), smt="thread")) == ()


def test_all_usable_cores_reserved_names_the_missing_reserved_cpu_with_its_number() -> None:
    block = CoresConfig(dedicated=DEDICATED)
    (sentence,) = said(block, usable=REST, reserved=REST, mhz=dict.fromkeys(range(8), 2600))
    assert 'set client { reserved { cores = "2-3,6-7"  cpu = 10400 } }' in sentence
    assert said(block, usable=REST, reserved=REST - {5}) == ()


def test_without_speeds_no_number_is_invented() -> None:
    (sentence,) = said(CoresConfig(dedicated=DEDICATED), usable=REST, reserved=REST, mhz={2: 2600})
    assert "cpu = the MHz of these cores" in sentence


def test_doctor_has_a_line_for_each_subject_and_turns_findings_into_warnings() -> None:
    config = decode_plugin_config(b"\x80")
    found = core_findings(CoresConfig(dedicated=DEDICATED), SMT, usable=REST | {3, 7})
    checks = core_checks(config, SMT, found, usable=REST)
    assert checks[0] == Check("cores", "ok", "4 cores with SMT, 8 CPUs, 2 NUMA nodes")
    assert [(check.check, check.verdict) for check in checks[1:]] == [
        ("cores.dedicated", "warning"),
        ("cores.housekeeping", "ok"),
        ("cores.partition", "ok"),
        ("nomad reservation", "ok"),
    ]


def entry(*cpus: int) -> Entry:
    placement = Placement(level="node", source="dedicated", vcpus=cpus[:1], cpus=cpus)
    return Entry(id="m", name="m", owner="nomad", boot_id="b", run_dir="/r", placement=placement)


def test_facts_count_the_dedicated_cores_that_are_free() -> None:
    policy = Policy(usable=REST, dedicated=DEDICATED, dedicated_only=True)
    facts = core_facts(Host(topology=SMT, policy=policy), [entry(2, 6)], mhz_floor=2600)
    assert facts == CoreFacts(dedicated=2, free=1, largest_numa_block=1, mhz_floor=2600, smt=True)


def test_facts_of_the_pool_leave_the_last_core_to_housekeeping() -> None:
    facts = core_facts(Host(topology=SMT), [], mhz_floor=0)
    assert facts == CoreFacts(dedicated=0, free=3, largest_numa_block=2, mhz_floor=0, smt=True)
