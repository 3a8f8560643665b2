"""What is said of the operator's partition."""

from pathlib import Path

import pytest

from tests.unit.test_cores_plan import topology
from vmlib import cgroup
from vmlib.cores.plan import Policy
from vmlib.cores.service import Cores, CoreSettings
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
