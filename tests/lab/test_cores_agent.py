"""Whole cores on a real agent, on cgroup v2 with NUMA and SMT."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.build import Guest
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_cores import Job, allowed
from tests.nomad.test_cores_device import blocked, device, device_block, devices
from vmlib import cpuset

pytestmark = pytest.mark.needs("nomad")

REPAIR_S = 5.0  # the promise
DEDICATED = 'cores {\n      dedicated = "4-7"\n      MORE\n    }'


def soon(look: Callable[[], bool]) -> bool:
    """Whether it is so within the time that a repair may take."""
    deadline = time.monotonic() + REPAIR_S
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def pinned(facts: dict[str, Any]) -> list[str]:
    return [allowed(facts["pid"], vcpu["tid"]) for vcpu in facts["vcpus"]]


def group_of(job: Job) -> Path:
    (group,) = Path("/sys/fs/cgroup/chv.slice").glob(f"{job.run_dir().name}*/vmm*")
    return group


def driver(agent: Agent) -> dict[str, Any]:
    node = agent.get("/v1/nodes")[0]["ID"]
    found: dict[str, Any] = agent.get(f"/v1/node/{node}")["Drivers"]["chv"]
    return found


def doctor(agent: Agent) -> str:
    chv = str(agent.plugin_dir / "chv")
    done = subprocess.run(
        [chv, "doctor", "--config", str(agent.paths.config)], capture_output=True, text=True, check=False
    )
    return " ".join(done.stdout.split())


@pytest.fixture
def token_agent(guest: Guest, plugin_dir: Path) -> Iterator[Agent]:
    """It ends with its test: a plugin without `partition` gives back the one that the next agent's has made."""
    one = make_agent(guest, plugin_dir, dev=True)
    one.cores_block = DEDICATED.replace("MORE", "tokens = true")
    one.client_block = 'reserved {\n    cores = "4-7"\n    cpu   = 100\n  }'
    one.more_plugins = device_block(one)
    yield from lifetime(one)


def test_the_scheduler_counts_dedicated_cores_and_the_driver_keeps_machines_on_them(token_agent: Agent) -> None:
    agent = token_agent
    agent.wait_for("the node to show its devices", lambda: devices(agent))
    (group,) = devices(agent)
    assert group["Name"] == "numa1"
    assert {one["ID"] for one in group["Instances"]} == {"core-4", "core-6"}
    assert group["Attributes"]["threads"]["Int"] == 2

    Job(agent, "three", resources=device(3))
    assert '"missing devices": 1' in blocked(agent, "three")  # no group is as large
    job = Job(agent, "two", resources=device(2)).running()
    assert "level node" in job.event("cores: ")
    facts = job.inspect()
    assert pinned(facts) == ["4", "6"]
    Job(agent, "one", resources=device(1))
    assert "devices: no devices match request" in blocked(agent, "one")
    assert agent.allocs("one") == agent.allocs("three") == []

    group_path = group_of(job)
    cpuset.write_cpus(group_path / "v1", {0})
    assert soon(lambda: pinned(facts) == ["4", "6"])
    job.event("cores repaired: ")
    cpuset.write_cpus(group_path, {0, 4})
    assert soon(lambda: pinned(facts) == ["4", "6"])
    job.stop()


@pytest.fixture(scope="module")
def partitioned(guest: Guest, plugin_dir: Path) -> Iterator[tuple[Agent, Job]]:
    """An agent that withholds cores but not their MHz, and a machine on two of them."""
    one = make_agent(guest, plugin_dir, dev=False)
    one.cores_block = DEDICATED.replace("MORE", 'partition = "root"')
    one.client_block = 'reserved {\n    cores = "4-7"\n  }'
    for agent in lifetime(one):
        yield agent, Job(agent, "machine", resources="cpu = 100", config="vcpus = 2").running()


def test_mhz_that_the_operator_forgot_to_withhold_are_named(partitioned: tuple[Agent, Job]) -> None:
    agent, machine = partitioned
    assert cpuset.read_partition(Path("/sys/fs/cgroup/chv.slice")) == "root"
    assert pinned(machine.inspect()) == ["4", "6"]
    assert cpuset.read_cpus(Path("/sys/fs/cgroup"))[1] >= frozenset(range(4))

    # Every core that Nomad shares out is reserved, and it still counts the MHz of ours.
    reserved = Job(agent, "reserved", resources="cores = 4").running()
    agent.wait_for(
        "the health text to name reserved.cpu",
        lambda: "reserved" in driver(agent)["HealthDescription"] and "cpu = " in driver(agent)["HealthDescription"],
        timeout_s=120,
    )
    assert 'client { reserved { cores = "4-7" cpu = ' in doctor(agent)
    reserved.stop()


def test_a_partition_that_nomad_shares_out_is_named(partitioned: tuple[Agent, Job]) -> None:
    agent, machine = partitioned
    agent.stop()
    agent.client_block = ""
    agent.start()
    machine.event("partition invalid: the scheduler shares out CPU 4-7 of it")
    agent.wait_for(
        "the health text to say it",
        lambda: 'cores.partition "root" is not valid' in driver(agent)["HealthDescription"],
        timeout_s=120,
    )
    assert "is not valid" in doctor(agent)
    machine.stop()
