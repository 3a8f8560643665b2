"""Which cores a task asks for, how many vCPUs they carry, and which wishes contradict each other."""

from typing import Any

import pytest

from driver._pb import driver_pb2 as pb
from driver.config_task import TaskConfig
from driver.translate import lints, machine_spec
from tests.unit.job_tasks import a_plugin, a_task
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.errors import SpecError
from vmlib.spec import MachineSpec

# Core n is CPU n and n + 4.
SMT = Topology(
    cores=tuple(Core(id=n, cpus=(n, n + 4), node=n // 2) for n in range(4)),
    nodes=(NumaNode(id=0, cpus=frozenset({0, 1, 4, 5})), NumaNode(id=1, cpus=frozenset({2, 3, 6, 7}))),
    online=frozenset(range(8)),
    present=frozenset(range(8)),
)
TWO_TOKENS = {"CHV_CORES_NUMA1_0": "core-2,core-3"}


def cores_task(cpuset: str = "", mhz: int = 0, memory_max_mb: int = 0, device_env: Any = None) -> pb.TaskConfig:
    memory = pb.AllocatedMemoryResources(memory_mb=512, memory_max_mb=memory_max_mb)
    linux = pb.LinuxResources(cpuset_cpus=cpuset, cpu_shares=mhz)
    asked = pb.Resources(allocated_resources=pb.AllocatedTaskResources(memory=memory), linux_resources=linux)
    return a_task(resources=asked, device_env=device_env or {})


def cores_of(task: pb.TaskConfig, smt: Any = "core", **options: Any) -> MachineSpec:
    config = TaskConfig(kernel="local/k", **options)
    return machine_spec(task, config, a_plugin(), owner="nomad", topology=SMT, smt=smt)


@pytest.mark.parametrize(
    ("cpuset", "options", "vcpus"),
    [
        ("", {}, 1),
        ("", {"threads": "expose"}, 2),
        ("1,5", {}, 1),
        ("1,2,5", {}, 2),
        ("1,2", {}, 2),
        ("0,1,4,5", {"threads": "expose"}, 4),
        ("0,1,4,5", {"emulator": "isolate"}, 1),
        ("0,1,4,5", {"vcpus": 1}, 1),
    ],
)
def test_vcpus_follow_from_the_cores(cpuset: str, options: dict[str, Any], vcpus: int) -> None:
    assert cores_of(cores_task(cpuset), **options).vcpus == vcpus


def test_tokens_are_counted_by_node_and_set_the_vcpus() -> None:
    spec = cores_of(cores_task(device_env=TWO_TOKENS))
    assert (spec.cores.tokens, spec.vcpus) == ({1: 2}, 2)


def test_memory_max_and_weight_reach_the_machine() -> None:
    spec = cores_of(cores_task(mhz=700, memory_max_mb=900), hugepages=True)
    assert (spec.cores.cpu_shares, spec.memory_max_mib, spec.hugepages) == (700, 900, True)
    assert cores_of(cores_task(memory_max_mb=-1)).memory_max_mib > 1 << 40


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (cores_task("1,2"), {"vcpus": 4}, "vcpus = 4: expected at most 2, which is what cores = 2 gives"),
        (cores_task("1,2"), {"placement": "shared"}, "placement = 'shared': contradicts cores = 2 in resources"),
        (
            cores_task("1,2"),
            {"threads": "expose"},
            "threads = 'expose': expected whole cores, but of cores = 2 CPU",
        ),
        (cores_task("1,2"), {"numa": "strict"}, "numa = 'strict': expected one NUMA node"),
        (cores_task("1,5"), {"emulator": "isolate"}, "emulator = 'isolate': expected one core more"),
        (cores_task("1", device_env=TWO_TOKENS), {}, "device: chv/core together with cores = 1"),
        (cores_task(device_env=TWO_TOKENS), {"vcpus": 1}, "vcpus = 1: expected 2, which is what device"),
        (cores_task(), {"threads": "expose", "vcpus": 3}, "vcpus = 3: expected an even number"),
        (cores_task(), {"threads": "expose", "smt": "thread"}, "threads = 'expose': works where cores.smt"),
        (cores_task(), {"placement": "shared", "numa": "strict"}, "numa = 'strict': works with placement"),
    ],
)
def test_contradictions_are_named_with_both_sides(task: pb.TaskConfig, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        cores_of(task, **options)
    assert str(refused.value).startswith(said)


def test_too_few_mhz_are_linted_at_level_driver_only() -> None:
    options = TaskConfig(kernel="local/k", vcpus=2)
    assert lints(cores_task(mhz=500), options, (), level="driver", mhz_floor=2600) == [
        (
            "cpu = 500: expected at least 2 × 2600 = 5200 MHz for 2 whole cores, Nomad may place more here than there"
            " are cores"
        )
    ]
    assert lints(cores_task(mhz=5200), options, (), level="driver", mhz_floor=2600) == []
    assert lints(cores_task(mhz=500), options, (), level="node", mhz_floor=2600) == []
