"""Our groups in the host's real hierarchies, with a real process in them."""

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.threads import Threads
from vmlib import cgroup, cpuset
from vmlib.errors import HostError

pytestmark = pytest.mark.needs("root", "cgroup")


@pytest.fixture
def groups() -> Iterator[cgroup.MachineGroups]:
    layout = cgroup.read_layout()
    assert layout.tops, layout.reason
    ours = cgroup.paths_for(layout, f"test-{secrets.token_hex(6)}")
    yield ours
    for path in (*ours.vmm, *ours.keeper):
        cgroup.kill_all(path)
        cgroup.remove(path)
    assert not [path for path in ours.vmm if path.parent.exists()]


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def memberships(pid: int) -> set[str]:
    with open(f"/proc/{pid}/cgroup") as file:
        return {line.rstrip("\n").split(":", 2)[2] for line in file}


def test_a_process_is_confined_killed_and_its_groups_go(
    groups: cgroup.MachineGroups, sleeper: "subprocess.Popen[bytes]"
) -> None:
    key = groups.vmm[0].parent.name
    cgroup.create((*groups.vmm, *groups.keeper))
    for path in groups.vmm:
        assert cgroup.pids(path) == ()
        cgroup.join(path, sleeper.pid)
        assert cgroup.pids(path) == (sleeper.pid,)
    ours = [group for group in memberships(sleeper.pid) if group.endswith(f"/{key}/vmm")]
    assert ours

    cgroup.kill_all(groups.vmm[0])
    assert sleeper.wait(timeout=5) == -9
    for path in (*groups.vmm, *groups.keeper):
        assert cgroup.pids(path) == ()
        cgroup.remove(path)
        assert not path.exists()
        cgroup.remove(path)


def test_a_group_in_use_is_not_removed_and_says_by_whom(
    groups: cgroup.MachineGroups, sleeper: "subprocess.Popen[bytes]"
) -> None:
    path = groups.vmm[0]
    cgroup.create([path])
    cgroup.join(path, sleeper.pid)
    with pytest.raises(HostError, match=rf"still holds {sleeper.pid} \(sleep\)"):
        cgroup.remove(path, timeout_s=0.05)
    assert cgroup.pids(path) == (sleeper.pid,)


@pytest.mark.parametrize("hierarchy", [0, -1], ids=["first", "last"])  # on a hybrid host: a v1 one, the v2 one
def test_children_that_keep_coming_are_all_killed(groups: cgroup.MachineGroups, hierarchy: int) -> None:
    path = groups.vmm[hierarchy]
    cgroup.create([path])
    # Bounded: it ends by itself if the test does not end it.
    script = 'echo $$ > "$1"; for i in $(seq 300); do sleep 5 & sleep 0.02; done'
    parent = subprocess.Popen(["sh", "-c", script, "sh", str(path / "cgroup.procs")], start_new_session=True)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            parent.wait(timeout=0.3)
        assert len(cgroup.pids(path)) > 3
        cgroup.kill_all(path)
        assert parent.wait(timeout=5) == -9
        assert cgroup.pids(path) == ()
    finally:
        parent.kill()
        parent.wait()


def test_a_process_that_is_gone_cannot_join(groups: cgroup.MachineGroups) -> None:
    path = groups.vmm[0]
    cgroup.create([path])
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(HostError, match=f"process {child.pid} is gone"):
        cgroup.join(path, child.pid)


def test_a_group_with_threaded_ones_below_is_listed_emptied_and_removed(
    groups: cgroup.MachineGroups,
) -> None:
    """Without a controller, so that a hybrid host will do."""
    unified = [path for path in groups.vmm if (path.parents[2] / "cgroup.controllers").exists()]
    if not unified:
        pytest.skip("no v2 hierarchy")
    (path,) = unified
    cgroup.create([path / "emu", path / "v0"])
    for child in (path / "emu", path / "v0"):
        cpuset.set_value(child / "cgroup.type", "threaded")
    process = Threads(1, [path])
    try:
        assert cpuset.move_thread(path / "v0", process.vcpus[0])
        assert cpuset.move_thread(path / "emu", process.pid)
        assert not cpuset.move_thread(path / "v0", _gone())
        with pytest.raises(HostError, match="its process is not in the group above"):
            cpuset.move_thread(path / "v0", os.getpid())
        assert cgroup.pids(path) == (process.pid,)
        cgroup.kill_all(path)
    finally:
        process.close()
    cgroup.remove(path)
    assert not path.exists()


def _gone() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


# ---------------------------------------------------------------------------------------------------------------------
# what a machine may use


@pytest.fixture
def cpuset_groups(groups: cgroup.MachineGroups) -> cgroup.MachineGroups:
    if groups.cpuset is None:
        pytest.skip("no cpuset")
    return groups


def test_groups_are_prepared_with_all_limits(cpuset_groups: cgroup.MachineGroups) -> None:
    groups = cpuset_groups
    assert groups.cpuset is not None
    assert groups.keeper_cpuset is not None
    all_cpus, all_nodes = (read(groups.cpuset.parents[2])[1] for read in (cpuset.read_cpus, cpuset.read_mems))
    one, last = frozenset({min(all_cpus)}), frozenset({max(all_cpus)})
    limits = cgroup.Limits(memory_bytes=(64 << 20) + 5, pids=77, cpu_shares=2400)
    for _ in range(2):
        cgroup.prepare(groups, limits=limits, cpus=one, mems=all_nodes, keeper_cpus=last)
    assert cpuset.read_cpus(groups.cpuset)[1] == one
    assert cpuset.read_mems(groups.cpuset)[1] == all_nodes
    assert cpuset.read_cpus(groups.keeper_cpuset)[1] == last
    assert cpuset.read_cpus(groups.cpuset.parent)[1] == all_cpus
    found = {
        file.name: file.read_text().strip()
        for group in (groups.memory, groups.pids, groups.cpu)
        if group is not None
        for name in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.weight", "cpu.shares")
        if (file := group / name).exists()
    }
    v1 = {"memory.limit_in_bytes": str(64 << 20), "pids.max": "77", "cpu.shares": "2400"}
    v2 = {"memory.max": str(64 << 20), "pids.max": "77", "cpu.weight": "92"}
    assert found == (v2 if groups.threaded else v1)


def test_groups_without_wishes_have_all_there_is(cpuset_groups: cgroup.MachineGroups) -> None:
    groups = cpuset_groups
    assert groups.cpuset is not None
    cgroup.prepare(groups, limits=cgroup.Limits())
    for read in (cpuset.read_cpus, cpuset.read_mems):
        assert read(groups.cpuset)[1] == read(groups.cpuset.parents[2])[1]


def test_cpus_and_nodes_that_do_not_exist_are_refused_in_words(cpuset_groups: cgroup.MachineGroups) -> None:
    groups = cpuset_groups
    assert groups.cpuset is not None
    gone = max(cpuset.read_cpus(groups.cpuset.parents[2])[1]) + 1
    with pytest.raises(HostError, match=rf"{groups.cpuset}/cpuset.cpus.*'{gone}'"):
        cgroup.prepare(groups, limits=cgroup.Limits(), cpus=[gone])
    with pytest.raises(
        HostError, match=r"cpuset.cpus: '100000' refused: numerical result out of range: numbers beyond"
    ):
        cpuset.write_cpus(groups.cpuset, [100000])
    with pytest.raises(HostError, match=r"cpuset.mems: '900' refused"):
        cgroup.prepare(groups, limits=cgroup.Limits(), mems=[900])


def test_a_group_with_processes_is_not_emptied_of_cpus(
    cpuset_groups: cgroup.MachineGroups, sleeper: "subprocess.Popen[bytes]"
) -> None:
    path = cpuset_groups.cpuset
    assert path is not None
    cpus = sorted(cpuset.read_cpus(path.parents[2])[1])
    cgroup.prepare(cpuset_groups, limits=cgroup.Limits(), cpus=cpus[:1])
    cgroup.join(path, sleeper.pid)
    with pytest.raises(HostError, match="'' refused: no space left on device: processes are in the group"):
        cpuset.write_value(path / "cpuset.cpus", "", cpuset.MEANINGS)
    assert cpuset.read_cpus(path)[1] == frozenset(cpus[:1])


def test_a_group_below_keeps_the_one_above_wide(cpuset_groups: cgroup.MachineGroups) -> None:
    path = cpuset_groups.cpuset
    assert path is not None
    cpus = sorted(cpuset.read_cpus(path.parents[2])[1])
    if cpuset_groups.threaded or len(cpus) < 2:
        pytest.skip("needs two CPUs and v1")
    cgroup.prepare(cpuset_groups, limits=cgroup.Limits())
    with pytest.raises(HostError, match="device or resource busy: a group below has more than that"):
        cpuset.write_cpus(path.parent, cpus[:1])
    for group in (path, path.with_name("keeper"), path.parent):
        cpuset.write_cpus(group, cpus[:1])
    with pytest.raises(HostError, match="permission denied: the group above does not have all of them"):
        cpuset.write_cpus(path, cpus)


def test_a_process_over_the_memory_limit_is_killed_and_counted(groups: cgroup.MachineGroups) -> None:
    if groups.memory is None:
        pytest.skip("no memory controller")
    cgroup.prepare(groups, limits=cgroup.Limits(memory_bytes=24 << 20))
    assert cgroup.oom_kills(groups.memory) == 0
    program = "import sys; sys.stdin.read(); x = b'x' * (100 << 20)"
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE)
    try:
        cgroup.join(groups.memory, child.pid)
        child.communicate(timeout=20)
        assert child.returncode == -9
        assert cgroup.oom_kills(groups.memory) == 1
    finally:
        child.kill()
        child.wait()


def test_a_process_over_the_pids_limit_gets_no_more(groups: cgroup.MachineGroups) -> None:
    if groups.pids is None:
        pytest.skip("no pids controller")
    cgroup.prepare(groups, limits=cgroup.Limits(pids=1))
    script = 'echo $$ > "$1"; (true) 2>/dev/null || exit 3; exit 0'
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(groups.pids / "cgroup.procs")], check=False, capture_output=True
    )
    assert done.returncode != 0
    assert b"ork" in done.stderr or done.returncode == 3
