"""What is said of the operator's partition, and groups of threads."""

from pathlib import Path

import pytest

from tests.unit.test_cores_plan import topology
from vmlib import cgroup, cpuset
from vmlib.cores import confine
from vmlib.cores.plan import Policy
from vmlib.cores.service import Cores, CoreSettings
from vmlib.cores.words import Confinement
from vmlib.paths import Layout


@pytest.mark.parametrize("state", ["root", "root invalid (Cpu list in cpuset.cpus not exclusive)", "member"])
def test_a_partition_of_cores_that_are_shared_out_is_told_by_its_cause_whatever_the_kernel_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    (tmp_path / "cpuset.cpus.partition").write_text(state)
    monkeypatch.setattr(cgroup, "read_layout", lambda: cgroup.CgroupLayout(kind="v2", cpuset=tmp_path))
    everything = frozenset(range(8))
    policy = Policy(usable=everything, dedicated=frozenset({4, 5, 6, 7}), dedicated_only=True, partition="root")
    settings = CoreSettings(policy=lambda _: policy, topology=lambda: topology(8))
    cores = Cores(Layout(data_dir=tmp_path, run_dir=tmp_path), settings, lambda: ())
    assert cores.partition() == "the scheduler shares out CPU 4-7 of it"


@pytest.mark.parametrize(("wide", "expected"), [(False, {0}), (True, {0, 4, 6})])
def test_threads_that_pin_themselves_are_born_where_all_cpus_of_the_machine_are(
    monkeypatch: pytest.MonkeyPatch, wide: bool, expected: set[int]
) -> None:
    """Else a guest's reboot hangs: a new vCPU cannot leave the group of the thread that made it."""
    written: dict[str, frozenset[int]] = {}
    nothing: frozenset[int] = frozenset()
    monkeypatch.setattr(cpuset, "thread_groups", lambda *_: (Path("emu"), [Path("v0"), Path("v1")]))
    monkeypatch.setattr(cpuset, "read_cpus", lambda _: (nothing, nothing))
    monkeypatch.setattr(cpuset, "write_cpus", lambda group, cpus: written.update({group.name: cpus}))
    groups = cgroup.paths_for(cgroup.CgroupLayout(kind="v2", cpuset=Path("/sys/fs/cgroup/chv.slice")), "key")
    wanted = Confinement(
        cpus=frozenset({0, 4, 6}),
        vcpus=(frozenset({4}), frozenset({6})),
        emulator=frozenset({0}),
        keeper=frozenset({0}),
        wide=wide,
    )
    confine._fit_thread_groups(groups, wanted, [11, 12])
    assert written == {"emu": expected, "v0": {4}, "v1": {6}}
