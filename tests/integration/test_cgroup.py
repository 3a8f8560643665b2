"""Our groups in the host's real hierarchies, with a real process in them."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from vmlib import cgroup
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
        assert not path.parent.exists()


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
