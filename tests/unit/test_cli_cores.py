"""The picture of `chv cores` is readable on small and large hosts, and its JSON says the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver.cli.cores import gather, read_policy, view_of
from driver.cli.cores_picture import WIDTH, draw
from driver.cli.cores_view import CoresView, as_json, uses
from driver.config_plugin import decode_plugin_config
from tests.fakes.sysfs import CPU, NODE, sysfs_files
from vmlib import process
from vmlib.cores.ledger import Ledger
from vmlib.cores.plan import Policy
from vmlib.cores.topology import flat_topology, parse_topology
from vmlib.cores.words import Entry, Placement
from vmlib.errors import HostError
from vmlib.paths import Layout

Golden = Callable[[str, str], None]

ALLOC = "5f3c0d52-8f3e-4d0e-9b7a-0c1d2e3f4a5b"


def entry(number: int, **placement: Any) -> Entry:
    where = Placement(**placement)
    return Entry(
        id=f"id-{number}",
        name=f"{ALLOC[:-1]}{number % 10}/vm{number}",
        owner="nomad",
        boot_id="boot",
        run_dir=f"/run/chv/m/{number}",
        placement=where,
        level=where.level,
    )


def small() -> CoresView:
    """8 cores with SMT on 2 nodes, something of everything: withheld, dedicated, reserved, split, contested."""
    files = sysfs_files(packages=2, cores_per_l3=4, threads=2, isolated=[7], offline=[14], memory_mib_per_node=16384)
    entries = (
        entry(1, level="node", source="dedicated", vcpus=(4, 5), cpus=(4, 5, 12, 13), nodes=(1,)),
        entry(2, level="node (thread)", source="given", vcpus=(2,), cpus=(2,)),
        replace(entry(3, level="driver", source="pool", vcpus=(1,), cpus=(1, 9)), draining=True, repairs=2),
        replace(entry(4), yielded="the scheduler reserved CPU 3, 11, vCPUs float over housekeeping"),
    )
    policy = Policy(usable=frozenset({0, 1, 2, 3, 8, 9, 10, 11}), dedicated=frozenset({4, 5, 6, 12, 13}))
    return view_of(parse_topology(files), policy=policy, entries=entries, reserved=frozenset({1, 2, 3, 10, 11}))


def exposed() -> CoresView:
    """One node; both threads of each core are vCPUs, one core is for the VMM's threads; a node of memory alone."""
    files = sysfs_files(cores_per_l3=6, threads=2, numbering="adjacent", isolated=range(8, 12))
    files |= {f"{NODE}/online": "0,3\n", f"{NODE}/node3/meminfo": "Node 3 MemTotal:  67108864 kB\n"}
    files |= {"devices/cpu_core/cpus": "0-7\n", "devices/cpu_atom/cpus": "8-11\n", f"{CPU}/nohz_full": "10-11\n"}
    wide = entry(1, level="driver", source="pool", vcpus=(2, 3, 4, 5), cpus=(2, 3, 4, 5, 6, 7), emulator=(6, 7))
    policy = Policy(housekeeping=frozenset({0, 1}))
    return view_of(parse_topology(files), policy=policy, entries=(wide,), reserved=frozenset())


def large(numbering: str = "split") -> CoresView:
    """1,024 CPUs, 8 nodes, 64 L3s, with machines of 1 to 16 cores on some."""
    files = sysfs_files(packages=2, nodes_per_package=4, l3_per_node=8, cores_per_l3=8, threads=2, numbering=numbering)  # type: ignore[arg-type]
    topology = parse_topology(files)
    entries = []
    at = 64
    for number, count in enumerate((1, 2, 16, 8, 3, 4, 8, 1)):
        cores = topology.cores[at : at + count]
        cpus = sorted(cpu for core in cores for cpu in core.cpus)
        pins = tuple(core.id for core in cores)
        entries.append(entry(number, level="node", source="dedicated", vcpus=pins, cpus=tuple(cpus)))
        at += count
    dedicated = frozenset(cpu for core in topology.cores[64:] for cpu in core.cpus)
    policy = Policy(usable=topology.online - dedicated, dedicated=dedicated)
    reserved = frozenset(cpu for core in topology.cores[8:10] for cpu in core.cpus)
    return view_of(topology, policy=policy, entries=entries, reserved=reserved)


def interleaved() -> CoresView:
    """Even CPUs in package 0, odd ones in package 1, 96 cores: no CPU list has a range."""
    files = {f"{CPU}/online": "0-95\n", f"{NODE}/online": "0-1\n"}
    for node in range(2):
        cpus = ",".join(str(cpu) for cpu in range(node, 96, 2))
        files[f"{NODE}/node{node}/cpulist"] = f"{cpus}\n"
    files |= {f"{CPU}/cpu{cpu}/topology/physical_package_id": f"{cpu % 2}\n" for cpu in range(96)}
    dedicated = frozenset(range(1, 96, 2))
    return view_of(
        parse_topology(files),
        policy=Policy(usable=frozenset(range(0, 96, 2)), dedicated=dedicated),
        entries=(),
        reserved=frozenset(),
    )


VIEWS: dict[str, Callable[[], CoresView]] = {
    "small": small,
    "exposed": exposed,
    "large": large,
    "large-adjacent": lambda: large("adjacent"),
    "interleaved": interleaved,
    "flat": lambda: view_of(flat_topology([0, 1]), policy=Policy(), entries=(), reserved=frozenset()),
}


# -- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIEWS)
def test_picture(name: str, golden: Golden) -> None:
    golden(f"cores-{name}.txt", draw(VIEWS[name]()))


@pytest.mark.parametrize("name", VIEWS)
def test_the_picture_fits_a_terminal(name: str) -> None:
    lines = draw(VIEWS[name]()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_thousand_cpus_are_a_page_or_two() -> None:
    assert len(draw(large()).splitlines()) < 70


def test_a_machine_with_a_long_name_fits() -> None:
    view = small()
    long = replace(view.entries[0], name="n" * 200, owner="o" * 50, yielded="word " * 60)
    text = draw(replace(view, entries=(long, *view.entries[1:])))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_machines_past_z_have_two_letters() -> None:
    entries = tuple(
        entry(number, level="driver", source="pool", vcpus=(number,), cpus=(number,)) for number in range(28)
    )
    text = draw(view_of(flat_topology(range(28)), policy=Policy(), entries=entries, reserved=frozenset()))
    assert "[25 Z0]" in text
    assert "[26 AA0]" in text
    assert "[27 AB0]" in text


# -- what each CPU is for --------------------------------------------------------------------------------------------


def test_a_core_that_the_scheduler_gave_to_its_machine_is_not_contested() -> None:
    use = uses(small())
    assert (use[2].word, use[2].contested) == ("machine", False)
    assert (use[1].word, use[1].contested) == ("machine", True)


def test_every_cpu_has_one_use() -> None:
    words = {cpu: use.word for cpu, use in uses(small()).items()}
    assert 14 not in words
    by_word = {word: {cpu for cpu, its in words.items() if its == word} for word in words.values()}
    assert by_word == {
        "machine": {1, 2, 4, 5, 9, 12, 13},
        "reserved": {3, 10, 11},
        "dedicated": {6},
        "housekeeping": {0, 8},
        "withheld": {7, 15},
    }


# -- json ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "exposed"])
def test_json(name: str, golden: Golden) -> None:
    golden(f"cores-{name}.json", json.dumps(as_json(VIEWS[name]()), indent=1) + "\n")


# -- what the driver published ---------------------------------------------------------------------------------------


def test_where_the_driver_never_ran_all_is_shared_out(tmp_path: Path) -> None:
    assert read_policy(tmp_path / "cores.json") == Policy()
    view = view_of(flat_topology(range(4)), policy=Policy(), entries=(), reserved=frozenset({3}))
    assert view.usable == {0, 1, 2, 3}
    assert view.dedicated == frozenset()
    assert view.housekeeping == {0, 1, 2}


def test_what_the_driver_published_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "cores.json"
    path.write_text(json.dumps({"version": 1, "dedicated": "4-7", "usable": "0-3", "housekeeping": "", "units": []}))
    assert read_policy(path) == Policy(usable=frozenset(range(4)), dedicated=frozenset(range(4, 8)))


def test_nothing_shared_out_is_not_everything(tmp_path: Path) -> None:
    path = tmp_path / "cores.json"
    path.write_text('{"dedicated": "0-3", "usable": "", "housekeeping": ""}')
    view = view_of(flat_topology(range(4)), policy=read_policy(path), entries=(), reserved=frozenset())
    assert view.usable == frozenset()
    assert view.dedicated == {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["", "[]", '{"usable": 4}', '{"usable": "x"}', "\udcff"])
def test_a_file_of_somebody_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cores.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(HostError, match=r"cores\.json: expected"):
        read_policy(path)


def test_machines_of_an_earlier_boot_hold_nothing(tmp_path: Path) -> None:
    config = replace(decode_plugin_config(b"\x80"), data_dir=tmp_path, run_dir=tmp_path)
    layout = Layout(tmp_path, tmp_path)
    now = replace(entry(1, cpus=(0,), vcpus=(0,)), boot_id=process.boot_id())
    with Ledger(layout.ledger, layout.ledger_lock).open() as book:
        book.put(now, entry(2, cpus=(1,), vcpus=(1,)))
    assert gather(config).entries == (now,)
