"""When a partition may be tried, and what is read from a group's files, with plain directories for the kernel's."""

from pathlib import Path

import pytest

from vmlib import cgroup, cpuset
from vmlib.errors import HostError


def cpus(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


@pytest.mark.parametrize(
    ("wanted", "isolated", "release", "problem"),
    [
        (cpus(2, 3), cpus(), "6.1.0-40-cloud-amd64", ""),
        (cpus(), cpus(), "6.12.1", "expected at least one CPU"),
        (cpus(3, 4, 9), cpus(), "6.12.1", "CPU 4,9 is offline or somebody else's partition"),
        (cpus(0, 1, 2, 3), cpus(), "6.12.1", "the rest of the host would have no CPU"),
        (cpus(2, 3), cpus(3), "6.6.99", "CPU 3 is in isolcpus, which kernel 6.6.99 does not survive (6.7 does)"),
        (cpus(2, 3), cpus(3), "6.7", ""),
        (cpus(2, 3), cpus(3), "what", "CPU 3 is in isolcpus, which kernel what does not survive (6.7 does)"),
        (cpus(2, 3), cpus(1), "5.15.0", ""),
    ],
)
def test_a_partition_that_would_harm_the_host_is_not_tried(
    wanted: frozenset[int], isolated: frozenset[int], release: str, problem: str
) -> None:
    found = cpuset.partition_problem(wanted, others=cpus(0, 1, 2, 3), isolated=isolated, release=release)
    assert found == problem


def test_a_partition_needs_v2(tmp_path: Path) -> None:
    top = tmp_path / "chv"
    with pytest.raises(HostError, match="expected cgroup v2"):
        cpuset.set_partition(top, [1], "root")
    assert not top.exists()
    assert cpuset.read_partition(top) == ""
    cpuset.set_partition(top, [], "")  # nothing to give back


def test_a_topmost_group_that_is_a_partition_outlasts_its_machines(tmp_path: Path) -> None:
    top = tmp_path / "chv.slice"
    cgroup.create([top / "k/vmm"])
    (top / "cpuset.cpus.partition").write_text("isolated\n")
    cgroup.remove(top / "k/vmm")
    assert [path.name for path in top.iterdir()] == ["cpuset.cpus.partition"]


def test_cpus_of_v1_and_of_v2_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset.effective_cpus").write_text("0-1\n")
    assert cpuset.read_cpus(tmp_path) == (cpus(0, 1, 2, 3), cpus(0, 1))
    (tmp_path / "cgroup.controllers").write_text("cpuset\n")
    (tmp_path / "cpuset.cpus").write_text("\n")
    (tmp_path / "cpuset.cpus.effective").write_text("2-3\n")
    assert cpuset.read_cpus(tmp_path) == (cpus(), cpus(2, 3))


def test_a_group_without_the_controller_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        cpuset.read_cpus(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/cpuset.cpus: no such file or directory: the group is gone, "
        "or its controller is not enabled in the group above"
    )


def test_a_value_that_reads_back_otherwise_is_told(tmp_path: Path) -> None:
    file = tmp_path / "pids.max"
    file.write_text("max\n")  # a plain file keeps what a shorter write does not cover
    with pytest.raises(HostError) as caught:
        cpuset.set_value(file, "7")
    assert str(caught.value) == f"{file}: wrote '7', found '7ax'"


def test_kills_for_memory_are_counted_on_v1_and_v2(tmp_path: Path) -> None:
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert cgroup.oom_kills(tmp_path) == 2
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert cgroup.oom_kills(tmp_path) == 3
