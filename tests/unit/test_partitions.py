"""Nomad's partitions are found in every layout, and what an agent left behind is not taken for news."""

from pathlib import Path

import pytest

from driver._pb import base_pb2
from driver.partitions import NomadCpus, Partitions, find, nomad_cpus, reserved_cpus, shared_cpus, watch_paths


def group(path: Path, cpus: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cpuset.cpus").write_text(f"{cpus}\n")
    return path


def v1(root: Path) -> Path:
    """The v1 tree's cpuset directory."""
    return group(root / "cpuset", "0-7")


def v2(root: Path) -> Path:
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return group(root)


def test_v2_is_known_before_nomad_has_made_anything(tmp_path: Path) -> None:
    v2(tmp_path)
    top = tmp_path / "nomad.slice"
    assert find(tmp_path) == Partitions(top=top, reserve=top / "reserve.slice", share=top / "share.slice")


def test_v1_is_known_before_nomad_has_made_anything(tmp_path: Path) -> None:
    top = v1(tmp_path) / "nomad"
    assert find(tmp_path) == Partitions(top=top, reserve=top / "reserve", share=top / "share")
    assert reserved_cpus(find(tmp_path)) == shared_cpus(find(tmp_path)) == frozenset()


def test_a_hybrid_tree_is_v1(tmp_path: Path) -> None:
    v1(tmp_path)
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("\n")
    assert find(tmp_path).top == tmp_path / "cpuset" / "nomad"


def test_without_a_cpuset_controller_there_is_nothing(tmp_path: Path) -> None:
    assert find(tmp_path) == Partitions()
    assert reserved_cpus(Partitions()) == shared_cpus(Partitions()) == frozenset()
    assert watch_paths(Partitions()) == ()


@pytest.mark.parametrize("version", [1, 2])
def test_the_reserved_cpus_are_those_of_the_partition(tmp_path: Path, version: int) -> None:
    top, suffix, scope = (
        (v1(tmp_path) / "nomad", "", "") if version == 1 else (v2(tmp_path) / "nomad.slice", ".slice", ".scope")
    )
    group(top, "0-7")
    group(top / f"share{suffix}", "0-1,4-7")
    # The task's own list is its driver's: empty, or of a driver that took too much.
    group(group(top / f"reserve{suffix}", "2-3") / f"alloc.web{scope}", "0-7")
    assert reserved_cpus(find(tmp_path)) == {2, 3}
    assert shared_cpus(find(tmp_path)) == {0, 1, 4, 5, 6, 7}


def test_a_list_without_a_task_below_means_nothing(tmp_path: Path) -> None:
    top = v1(tmp_path) / "nomad"
    group(top / "reserve", "2-3")
    assert reserved_cpus(find(tmp_path)) == frozenset()
    task = group(top / "reserve" / "alloc.web")
    assert reserved_cpus(find(tmp_path)) == {2, 3}
    (task / "cpuset.cpus").unlink()
    task.rmdir()
    assert reserved_cpus(find(tmp_path)) == frozenset()


def test_a_scope_that_a_restart_put_into_share_is_no_sign_of_life(tmp_path: Path) -> None:
    top = group(v2(tmp_path) / "nomad.slice", "0-7")
    group(top / "reserve.slice", "2-3")
    group(top / "share.slice" / "alloc.web.scope")
    group(top / "share.slice", "0-1,4-7")
    assert reserved_cpus(find(tmp_path)) == frozenset()


def test_an_empty_share_is_what_is_usable_and_not_reserved(tmp_path: Path) -> None:
    top = group(v2(tmp_path) / "nomad.slice", "0-3")
    group(top / "share.slice")
    group(top / "reserve.slice")
    assert shared_cpus(find(tmp_path)) == {0, 1, 2, 3}
    group(group(top / "reserve.slice", "0-3") / "alloc.web.scope")
    assert shared_cpus(find(tmp_path)) == frozenset()


def test_before_1_7_each_task_on_v1_says_what_it_has(tmp_path: Path) -> None:
    top = v1(tmp_path) / "nomad"
    group(top / "shared", "0-1")
    group(top / "reserved", "0-7")
    for alloc, cpus in (("a-web", "2-3"), ("b-web", "5")):
        group(top / "reserved" / alloc, cpus)
    where = find(tmp_path)
    assert where == Partitions(top=top, reserve=top / "reserved", share=top / "shared", old=True)
    assert reserved_cpus(where) == {2, 3, 5}
    assert shared_cpus(where) == {0, 1}
    assert top / "reserved" / "b-web" / "cpuset.cpus" in watch_paths(where)


def test_groups_of_an_older_nomad_are_ignored_once_a_newer_one_made_its_own(tmp_path: Path) -> None:
    top = v1(tmp_path) / "nomad"
    group(top / "reserved" / "a-web", "2-3")
    group(top / "reserve")
    assert find(tmp_path).reserve == top / "reserve"


def test_before_1_7_what_all_tasks_on_v2_have_is_shared_and_the_rest_reserved(tmp_path: Path) -> None:
    top = group(v2(tmp_path) / "nomad.slice", "0-7")
    group(top / "a.web.scope", "0-3")
    assert find(tmp_path) == Partitions(top=top, old=True)
    assert reserved_cpus(find(tmp_path)) == frozenset()
    group(top / "b.web.scope", "0-1,6")
    assert reserved_cpus(find(tmp_path)) == {2, 3, 6}
    assert shared_cpus(find(tmp_path)) == {0, 1}
    assert top / "b.web.scope" / "cpuset.cpus" in watch_paths(find(tmp_path))


def test_a_list_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    top = v1(tmp_path) / "nomad"
    (group(top / "reserve", "?") / "alloc.web").mkdir()
    assert reserved_cpus(find(tmp_path)) == frozenset()


def test_everything_that_can_change_the_answer_is_watched(tmp_path: Path) -> None:
    v2(tmp_path)
    top = tmp_path / "nomad.slice"
    assert watch_paths(find(tmp_path)) == (
        tmp_path,
        top,
        top / "cpuset.cpus",
        top / "reserve.slice",
        top / "reserve.slice" / "cpuset.cpus",
        top / "share.slice",
        top / "share.slice" / "cpuset.cpus",
    )


def test_of_nomads_topology_ids_withheld_cores_and_mhz_are_taken() -> None:
    topology = base_pb2.ClientTopology(
        cores=[
            base_pb2.ClientTopologyCore(core_id=0, disable=True, base_speed=2000, max_speed=4000, guess_speed=1),
            base_pb2.ClientTopologyCore(core_id=1, max_speed=4000, guess_speed=2500),
            base_pb2.ClientTopologyCore(core_id=5, max_speed=4000),
            base_pb2.ClientTopologyCore(core_id=6),
        ]
    )
    nomad = base_pb2.NomadConfig(driver=base_pb2.NomadDriverConfig(Topology=topology))
    assert nomad_cpus(nomad) == NomadCpus(
        usable=frozenset({1, 5, 6}), withheld=frozenset({0}), mhz={0: 2000, 1: 2500, 5: 4000}
    )


def test_without_a_topology_nothing_is_known() -> None:
    assert nomad_cpus(None) == nomad_cpus(base_pb2.NomadConfig()) == NomadCpus()
