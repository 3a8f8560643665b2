"""What Nomad is shown of the dedicated cores: groups from the published file, attributes, reservations, statistics."""

import json
from typing import Any

import pytest

from driver import cores_file
from driver.cores_shown import (
    CpuTime,
    Shown,
    ShownUnit,
    attributes,
    busy_percent,
    cpu_times,
    groups,
    parse,
    reservation,
    stats_groups,
)
from driver.tokens import tokens_of
from vmlib.cores.plan import Host, Policy
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.errors import HostError

BOOT = "5b0c8a5e"


def unit(number: int, *, node: int = 0, **more: Any) -> ShownUnit:
    values = {"cpus": (number, number + 1), "l3": 8 * node, "package": node, "kind": "", "mhz": 3000, **more}
    return ShownUnit(id=number, node=node, **values)


TWO_NODES = Shown(units=(unit(2), unit(4), unit(8, node=1), unit(10, node=1, mhz=2600)))


def published(**changes: Any) -> str:
    """The file as its writer makes it, of a host with two nodes of two cores with two threads each."""
    cores = tuple(Core(id=cpu, cpus=(cpu, cpu + 1), node=cpu // 4, l3=cpu // 4 * 4, package=0) for cpu in (0, 2, 4, 6))
    every = frozenset(range(8))
    topology = Topology(
        cores=cores,
        nodes=tuple(NumaNode(id=node, cpus=frozenset(range(4 * node, 4 * node + 4))) for node in (0, 1)),
        online=every,
        present=every,
        smt_active=True,
    )
    host = Host(topology=topology, policy=Policy(dedicated=frozenset({2, 3, 4, 5, 6, 7})))
    content = cores_file.content(host, boot_id=BOOT, mhz={cpu: 2000 + cpu for cpu in every})
    return json.dumps({**content, **changes})


# -- the file --------------------------------------------------------------------------------------------------------


def test_reads_what_the_driver_writes() -> None:
    def shown(number: int, *, node: int, mhz: int) -> ShownUnit:
        return unit(number, node=node, l3=4 * node, package=0, mhz=mhz)

    assert parse(published(), boot_id=BOOT) == Shown(
        units=(
            shown(2, node=0, mhz=2002),
            shown(4, node=1, mhz=2004),
            shown(6, node=1, mhz=2006),
        ),
        smt="core",
    )


def test_a_file_of_another_boot_says_nothing() -> None:
    assert parse(published(), boot_id="another") == Shown()
    assert groups(Shown()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        published(version=2),
        published(smt="both"),
        published(units=None),
        published(units=[{"id": 1}]),
        published(units=[7]),
        published(units=[{**json.loads(published())["units"][0], "node": "first"}]),
        "[" * 100_000,
    ],
)
def test_what_is_not_that_file_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text, boot_id=BOOT)


# -- groups ----------------------------------------------------------------------------------------------------------


def test_one_group_for_each_node_with_one_healthy_instance_for_each_unit() -> None:
    found = groups(TWO_NODES)
    assert [(one.vendor, one.device_type, one.device_name) for one in found] == [
        ("chv", "core", "numa0"),
        ("chv", "core", "numa1"),
    ]
    assert [[device.ID for device in one.devices] for one in found] == [["core-2", "core-4"], ["core-8", "core-10"]]
    assert all(device.healthy and not device.HasField("hw_locality") for one in found for device in one.devices)


def shown_attributes(units: list[ShownUnit], smt: str = "core") -> dict[str, object]:
    found = attributes(units[0].node, units, smt)
    return {
        key: (value, one.unit) if one.unit else value
        for key, one in found.items()
        for value in [getattr(one, str(one.WhichOneof("value")))]
    }


def test_attributes_hold_for_each_unit_of_the_group() -> None:
    assert shown_attributes([unit(8, node=1), unit(10, node=1, mhz=2600)]) == {
        "numa_node": 1,
        "smt": "core",
        "threads": 2,
        "mhz": (2600, "MHz"),
        "package": 1,
        "l3": 8,
    }


def test_attributes_that_differ_or_that_nobody_knows_are_left_out() -> None:
    big = unit(0, l3=0, package=0, kind="performance", mhz=3000)
    small = unit(2, l3=2, package=1, kind="efficiency", mhz=0, cpus=(2,))
    assert shown_attributes([big, small]) == {"numa_node": 0, "smt": "core", "threads": 1}
    assert shown_attributes([big], "thread")["kind"] == "performance"


# -- reservations ----------------------------------------------------------------------------------------------------


def test_the_driver_reads_from_the_reservation_what_was_reserved() -> None:
    found = reservation(TWO_NODES, ["core-10", "core-8"])
    assert dict(found.envs) == {"CHV_CORES_NUMA1_8": "core-8,core-10"}
    assert (list(found.mounts), list(found.devices)) == ([], [])
    across = reservation(TWO_NODES, ["core-10", "core-2", "core-4", "core-4"])
    assert tokens_of(across.envs) == {0: 2, 1: 1}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["core-2", "core-3", "gpu-0"], "device core-3, gpu-0: not among the dedicated cores of this node"),
        ([], "expected at least one"),
    ],
)
def test_a_reservation_of_what_is_not_there_names_it(ids: list[str], message: str) -> None:
    with pytest.raises(HostError, match=message):
        reservation(TWO_NODES, ids)


# -- statistics ------------------------------------------------------------------------------------------------------

STAT = """\
cpu  100 0 50 800 50 0 0 0 30 0
cpu0 60 1 20 400 25 2 3 4 30 0
cpu11 40 0 30 400 25 0 0 0 0 0
intr 12345 0 9
ctxt 77
"""


def test_reads_each_cpus_time_and_counts_a_guests_once() -> None:
    assert cpu_times(STAT) == {0: CpuTime(90, 515), 11: CpuTime(70, 495)}


@pytest.mark.parametrize(
    ("before", "now", "percent"),
    [
        ({0: CpuTime(0, 0), 1: CpuTime(0, 0)}, {0: CpuTime(100, 100), 1: CpuTime(0, 100)}, 50.0),
        ({0: CpuTime(0, 0)}, {0: CpuTime(25, 100), 1: CpuTime(9, 9)}, 25.0),
        ({0: CpuTime(50, 100)}, {0: CpuTime(49, 110)}, 0.0),
        ({0: CpuTime(50, 100)}, {0: CpuTime(80, 110)}, 100.0),
        ({0: CpuTime(50, 100)}, {0: CpuTime(50, 100)}, None),
        ({}, {0: CpuTime(50, 100)}, None),
        ({0: CpuTime(50, 100)}, {}, None),
    ],
)
def test_use_between_two_looks(before: dict[int, CpuTime], now: dict[int, CpuTime], percent: float | None) -> None:
    assert busy_percent((0, 1), before, now) == percent


def test_statistics_name_the_holder_and_the_use_of_each_unit() -> None:
    before = {cpu: CpuTime(0, 0) for cpu in range(12)}
    now = before | {2: CpuTime(100, 100), 3: CpuTime(0, 100)}
    first, second = stats_groups(
        TWO_NODES, {2: "web of alloc 1a2b3c4d", 3: "web of alloc 1a2b3c4d"}, before, now, at=7.5
    )
    assert (first.vendor, first.type, first.name, second.name) == ("chv", "core", "numa0", "numa1")
    assert sorted(second.instance_stats) == ["core-10", "core-8"]
    held, free = first.instance_stats["core-2"], first.instance_stats["core-4"]
    assert held.summary.string_val.value == "web of alloc 1a2b3c4d, 50 % busy"
    assert held.stats.attributes["holder"].string_val.value == "web of alloc 1a2b3c4d"
    assert held.stats.attributes["busy"].float_numerator_val.value == 50.0
    assert held.stats.attributes["busy"].unit == "%"
    assert (held.timestamp.seconds, held.timestamp.nanos) == (7, 500_000_000)
    assert free.summary.string_val.value == "free"
    assert "busy" not in free.stats.attributes
