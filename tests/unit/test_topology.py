"""Cores, caches and nodes are found on every kind of host; what a host does not say is not needed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.sysfs import CPU, NODE, sysfs_files, write_sysfs
from vmlib.cores.topology import Core, NumaNode, Topology, TopologyCache, flat_topology, parse_topology, read_topology
from vmlib.errors import HostError


def topology(**shape: Any) -> Topology:
    return parse_topology(sysfs_files(**shape))


def cores_of(found: Topology) -> list[tuple[int, ...]]:
    return [core.cpus for core in found.cores]


# -- regular hosts ---------------------------------------------------------------------------------------------------


def test_siblings_that_are_neighbours_are_one_core() -> None:
    assert cores_of(topology(cores_per_l3=3, threads=2, numbering="adjacent")) == [(0, 1), (2, 3), (4, 5)]


def test_siblings_half_the_host_apart_are_one_core() -> None:
    assert cores_of(topology(cores_per_l3=3, threads=2, numbering="split")) == [(0, 3), (1, 4), (2, 5)]


def test_a_core_has_its_place_in_the_host() -> None:
    found = topology(packages=2, nodes_per_package=2, l3_per_node=2, cores_per_l3=2, threads=2)
    assert found.core_of(16 + 13) == Core(id=13, cpus=(13, 29), package=1, l3=12, node=3)
    assert [core.id for core in found.cores] == list(range(16))
    assert [core.l3 for core in found.cores] == [cpu // 2 * 2 for cpu in range(16)]
    assert [core.package for core in found.cores] == [0] * 8 + [1] * 8


def test_nodes_have_memory_and_distances() -> None:
    found = topology(packages=2, cores_per_l3=2, memory_mib_per_node=2048)
    assert found.nodes == (
        NumaNode(id=0, cpus=frozenset({0, 1}), distances={0: 10, 1: 20}, memory_bytes=2 << 30),
        NumaNode(id=1, cpus=frozenset({2, 3}), distances={0: 20, 1: 10}, memory_bytes=2 << 30),
    )


def test_the_kernels_words_on_smt_are_kept() -> None:
    found = topology(threads=2)
    assert (found.smt_active, found.smt_control) == (True, "on")


@given(
    packages=st.integers(1, 2),
    nodes=st.integers(1, 3),
    l3s=st.integers(1, 3),
    cores=st.integers(1, 4),
    threads=st.sampled_from([1, 2, 4]),
    numbering=st.sampled_from(["adjacent", "split"]),
    data=st.data(),
)
def test_every_cpu_that_is_online_is_in_one_core_and_one_node(
    packages: int, nodes: int, l3s: int, cores: int, threads: int, numbering: str, data: st.DataObject
) -> None:
    count = packages * nodes * l3s * cores * threads
    off = data.draw(st.frozensets(st.integers(1, count), max_size=count // 2)) - {count}
    found = topology(
        packages=packages,
        nodes_per_package=nodes,
        l3_per_node=l3s,
        cores_per_l3=cores,
        threads=threads,
        numbering=numbering,
        offline=off,
    )
    online = sorted(set(range(count)) - off)
    assert sorted(cpu for core in found.cores for cpu in core.cpus) == online
    assert sorted(cpu for node in found.nodes for cpu in node.cpus) == online
    assert all(set(core.cpus) <= found.nodes[core.node].cpus and core.id == min(core.cpus) for core in found.cores)
    assert found.offline == off
    whole, single = found.split(found.online)
    assert (whole, single) == (found.cores, ())


# -- irregular ones --------------------------------------------------------------------------------------------------


def test_an_offline_cpu_is_in_no_core_and_its_sibling_is_whole_alone() -> None:
    found = topology(cores_per_l3=2, threads=2, numbering="adjacent", offline=[1])
    assert cores_of(found) == [(0,), (2, 3)]
    assert found.offline == {1}
    assert found.core_of(1) is None
    assert found.node_of(1) is None
    assert found.split({0, 1, 2}) == ((Core(id=0, cpus=(0,)),), (2,))


def test_a_core_is_known_by_its_lowest_cpu_that_is_online() -> None:
    found = topology(cores_per_l3=2, threads=2, offline=[0])
    assert [core.id for core in found.cores] == [1, 2]
    assert {core.l3 for core in found.cores} == {1}


def test_siblings_that_still_list_an_offline_cpu_are_believed_without_it() -> None:
    files = sysfs_files(cores_per_l3=2, threads=2, numbering="adjacent", offline=[1])
    files[f"{CPU}/cpu0/topology/thread_siblings_list"] = "0-1\n"
    files[f"{NODE}/node0/cpulist"] = "0-3\n"
    assert cores_of(parse_topology(files)) == [(0,), (2, 3)]
    assert parse_topology(files).nodes[0].cpus == {0, 2, 3}


def test_siblings_that_disagree_never_put_a_cpu_into_two_cores() -> None:
    files = sysfs_files(cores_per_l3=4)
    files[f"{CPU}/cpu0/topology/thread_siblings_list"] = "0-1\n"
    files[f"{CPU}/cpu2/topology/thread_siblings_list"] = "1-2\n"
    assert cores_of(parse_topology(files)) == [(0, 1), (2,), (3,)]


def test_ids_may_have_gaps() -> None:
    files = {
        f"{CPU}/online": "4-5,9\n",
        f"{CPU}/present": "4-5,9,12\n",
        f"{NODE}/online": "1,7\n",
        f"{NODE}/node1/cpulist": "4-5\n",
        f"{NODE}/node1/distance": "10 32\n",
        f"{NODE}/node7/cpulist": "9\n",
        f"{NODE}/node7/distance": "32 10\n",
    }
    found = parse_topology(files)
    assert [(core.id, core.node, core.l3) for core in found.cores] == [(4, 1, 4), (5, 1, 4), (9, 7, 9)]
    assert [(node.id, node.distances) for node in found.nodes] == [(1, {1: 10, 7: 32}), (7, {1: 32, 7: 10})]
    assert found.offline == {12}


def test_a_node_of_memory_alone_has_no_cpus() -> None:
    files = sysfs_files(cores_per_l3=2)
    files |= {f"{NODE}/online": "0,2\n", f"{NODE}/node2/cpulist": "\n", f"{NODE}/node0/distance": "10 17\n"}
    files |= {f"{NODE}/node2/distance": "17 10\n", f"{NODE}/node2/meminfo": "Node 2 MemTotal:  2048 kB\n"}
    found = parse_topology(files)
    assert found.nodes[1] == NumaNode(id=2, cpus=frozenset(), distances={0: 17, 2: 10}, memory_bytes=2 << 20)
    assert {core.node for core in found.cores} == {0}


def test_without_numa_all_is_on_node_0() -> None:
    found = topology(packages=2, cores_per_l3=2, numa=False)
    assert found.nodes == (NumaNode(id=0, cpus=frozenset(range(4))),)
    assert {core.node for core in found.cores} == {0}


def test_without_an_l3_the_node_is_the_cache_domain() -> None:
    found = topology(packages=2, cores_per_l3=2, l3=False)
    assert [core.l3 for core in found.cores] == [0, 0, 2, 2]


def test_an_l3_need_not_be_the_third_index() -> None:
    files = sysfs_files(cores_per_l3=2, l3=False)
    for cpu in range(2):
        files |= {
            f"{CPU}/cpu{cpu}/cache/index4/level": "3\n",
            f"{CPU}/cpu{cpu}/cache/index4/shared_cpu_list": f"{cpu}\n",
        }
    assert [core.l3 for core in parse_topology(files).cores] == [0, 1]


def test_a_cpu_that_no_node_has_is_on_the_first() -> None:
    files = sysfs_files(packages=2, cores_per_l3=2)
    files[f"{NODE}/node1/cpulist"] = "3\n"
    found = parse_topology(files)
    assert found.nodes[0].cpus == {0, 1, 2}
    assert found.node_of(2) == 0


def test_a_list_of_cpus_alone_makes_each_a_core() -> None:
    assert parse_topology({f"{CPU}/online": "0-2\n"}) == flat_topology([0, 1, 2])


def test_without_the_list_those_with_a_topology_are_online() -> None:
    files = sysfs_files(cores_per_l3=3, offline=[1])
    del files[f"{CPU}/online"], files[f"{CPU}/present"]
    assert parse_topology(files).online == {0, 2}


def test_nothing_at_all_is_a_host_without_cpus() -> None:
    assert parse_topology({}) == flat_topology([])


@pytest.mark.parametrize("path", sorted({path for path in sysfs_files(threads=2) if "/cpu/online" not in path}))
def test_any_file_may_be_missing(path: str) -> None:
    files = sysfs_files(threads=2)
    del files[path]
    assert {cpu for core in parse_topology(files).cores for cpu in core.cpus} == set(range(8))


def test_a_list_that_is_none_is_named() -> None:
    files = sysfs_files() | {f"{CPU}/cpu1/topology/thread_siblings_list": "one\n"}
    with pytest.raises(HostError, match=r"cpu1/topology/thread_siblings_list: expected a CPU list .*'one'"):
        parse_topology(files)


def test_unknown_package_and_die_are_0() -> None:
    files = sysfs_files(cores_per_l3=1) | {
        f"{CPU}/cpu0/topology/physical_package_id": "-1\n",
        f"{CPU}/cpu0/topology/die_id": "-1\n",
    }
    assert parse_topology(files).cores == (Core(id=0, cpus=(0,)),)


def test_the_newer_name_of_the_sibling_list_will_do() -> None:
    files = {path.replace("thread_siblings", "core_cpus"): text for path, text in sysfs_files(threads=2).items()}
    assert cores_of(parse_topology(files)) == [(0, 4), (1, 5), (2, 6), (3, 7)]


# -- kinds, isolation, speed -----------------------------------------------------------------------------------------


def test_a_hybrid_host_has_two_kinds_of_cores() -> None:
    files = sysfs_files(cores_per_l3=4) | {"devices/cpu_core/cpus": "0-1\n", "devices/cpu_atom/cpus": "2-3\n"}
    kinds = [core.kind for core in parse_topology(files).cores]
    assert kinds == ["performance", "performance", "efficiency", "efficiency"]


def test_capacities_that_differ_are_two_kinds() -> None:
    files = sysfs_files(cores_per_l3=2) | {f"{CPU}/cpu0/cpu_capacity": "446\n", f"{CPU}/cpu1/cpu_capacity": "1024\n"}
    assert [core.kind for core in parse_topology(files).cores] == ["efficiency", "performance"]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"devices/cpu_core/cpus": "0-3\n"},
        {f"{CPU}/cpu{cpu}/cpu_capacity": "1024\n" for cpu in range(4)},
    ],
)
def test_where_all_cores_are_alike_no_kind_is_named(extra: dict[str, str]) -> None:
    assert {core.kind for core in parse_topology(sysfs_files() | extra).cores} == {""}


def test_cpus_kept_from_the_scheduler_at_boot_are_known() -> None:
    files = sysfs_files(isolated=[2, 3]) | {f"{CPU}/nohz_full": "3\n"}
    found = parse_topology(files)
    assert found.isolated == {2, 3}
    assert found.nohz_full == {3}


def test_a_kernel_that_says_null_means_none() -> None:
    assert parse_topology(sysfs_files() | {f"{CPU}/nohz_full": "  (null)\n"}).nohz_full == set()


def test_the_base_frequency_is_in_mhz() -> None:
    files = sysfs_files(cores_per_l3=2, base_mhz=2100)
    files[f"{CPU}/cpu1/acpi_cppc/nominal_freq"] = "2400\n"
    assert parse_topology(files).mhz == {0: 2100, 1: 2100}
    del files[f"{CPU}/cpu1/cpufreq/base_frequency"], files[f"{CPU}/cpu0/cpufreq/base_frequency"]
    assert parse_topology(files).mhz == {1: 2400}


# -- splitting a set -------------------------------------------------------------------------------------------------


@given(st.frozensets(st.integers(0, 15)))
def test_a_set_is_split_into_whole_cores_and_single_cpus(cpus: frozenset[int]) -> None:
    found = topology(cores_per_l3=6, threads=2, offline=[3])
    whole, single = found.split(cpus)
    parts = [*(cpu for core in whole for cpu in core.cpus), *single]
    assert sorted(parts) == sorted(cpus & found.online)
    assert all(not cpus >= set(core.cpus) for cpu in single if (core := found.core_of(cpu)) is not None)


# -- reading a tree --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["index3", "index4"])
def test_what_is_read_from_a_tree_is_what_its_files_say(tmp_path: Path, index: str) -> None:
    files = sysfs_files(packages=2, l3_per_node=2, cores_per_l3=2, threads=2, offline=[5], isolated=[6], base_mhz=2000)
    files = {path.replace("index3", index): text for path, text in files.items()}
    files |= {"devices/cpu_core/cpus": "0-3\n", "devices/cpu_atom/cpus": "4-15\n", f"{CPU}/nohz_full": "(null)\n"}
    write_sysfs(tmp_path, files)
    assert read_topology(tmp_path) == parse_topology(files)
    assert len(read_topology(tmp_path).nodes) == 2


def test_a_tree_that_says_nothing_is_read_as_flat(tmp_path: Path) -> None:
    found = read_topology(tmp_path)
    assert found.online
    assert found == flat_topology(found.online)


def test_the_host_is_read_again_only_when_a_cpu_came_or_went(tmp_path: Path) -> None:
    write_sysfs(tmp_path, sysfs_files(cores_per_l3=2, threads=2))
    boot = ["one"]
    cache = TopologyCache(tmp_path, boot_id=lambda: boot[0])
    first = cache.get()
    assert cache.get() is first

    (tmp_path / CPU / "online").write_text("0-2\n")
    second = cache.get()
    assert cores_of(second) == [(0, 2), (1,)]
    assert cache.get() is second

    boot[0] = "two"
    assert cache.get() is not second
