"""`device "chv/core"` on a real agent: the scheduler counts dedicated cores, the driver chooses among them."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import build
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_cores import Job, forget_nomads_groups
from tests.nomad.test_jobs import job_file

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="made for a node of two CPUs")

DEVICE = 'cpu = 10\n        device "chv/core" {\n          count = COUNT\n          MORE\n        }'


def device(count: int, more: str = "") -> str:
    return DEVICE.replace("COUNT", str(count)).replace("MORE", more)


def device_block(agent: Agent) -> str:
    return f'plugin "chv-cores" {{\n  config {{\n    data_dir = "{agent.paths.chv_data}"\n  }}\n}}'


@pytest.fixture(scope="module")
def token_agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """One core withheld from Nomad, for jobs that hold it as a device."""
    forget_nomads_groups()
    one = make_agent(guest, plugin_dir, dev=False)
    one.cores_block = 'cores {\n      dedicated = "1"\n      tokens    = true\n    }'
    one.client_block = 'reserved {\n    cores = "1"\n    cpu   = 100\n  }'
    one.more_plugins = device_block(one)
    yield from lifetime(one)


@pytest.fixture
def agent(token_agent: Agent) -> Iterator[Agent]:
    token_agent.wait_for("the node to show its devices", lambda: devices(token_agent))
    yield token_agent
    token_agent.purge_jobs()


def devices(agent: Agent) -> list[dict[str, Any]]:
    node = agent.get("/v1/nodes")[0]["ID"]
    return agent.get(f"/v1/node/{node}")["NodeResources"]["Devices"] or []


def blocked(agent: Agent, job: str) -> str:
    """What the scheduler says of a job that it could not place."""

    def find() -> dict[str, Any] | None:
        return next((one for one in agent.get(f"/v1/job/{job}/evaluations") if one["Status"] == "blocked"), None)

    return json.dumps(agent.wait_for(f"{job} to be blocked", find)["FailedTGAllocs"])


def test_the_node_shows_each_dedicated_core_as_a_device(agent: Agent) -> None:
    (group,) = devices(agent)
    assert (group["Vendor"], group["Type"], group["Name"]) == ("chv", "core", "numa0")
    assert [(one["ID"], one["Healthy"]) for one in group["Instances"]] == [("core-1", True)]
    assert group["Attributes"]["numa_node"]["Int"] == 0


def test_a_device_is_a_core_and_the_scheduler_refuses_more_than_are_left(agent: Agent) -> None:
    first = Job(agent, "first", resources=device(1)).running()
    assert "level node" in first.event("cores: ")
    assert first.vcpus() == ["1"]
    assert first.others() == {"0"}
    second = Job(agent, "second", resources=device(1))
    assert "devices: no devices match request" in blocked(agent, "second")
    assert agent.allocs("second") == []
    agent.wait_for("the holder in the node's statistics", lambda: "% busy" in node_status(agent))
    status = node_status(agent)
    assert re.search(rf"chv/core/numa0\[core-1\]\s+(= )?vm of alloc {first.alloc[:8]}, \d+ % busy", status), status

    agent.stop()
    agent.start()
    assert first.vcpus() == ["1"]
    first.stop()
    assert second.running().vcpus() == ["1"]


def node_status(agent: Agent) -> str:
    return agent.command("node", "status", "-self", "-stats").stdout


def test_a_constraint_on_a_devices_attribute_is_kept(agent: Agent) -> None:
    never = 'constraint {\n            attribute = "${device.attr.numa_node}"\n            value = 7\n          }'
    Job(agent, "never", resources=device(1, never))
    assert '"missing devices": 1' in blocked(agent, "never")
    here = never.replace("value = 7", "value = 0")
    assert Job(agent, "here", resources=device(1, here)).running().vcpus() == ["1"]


def test_with_tokens_a_job_without_gets_no_dedicated_core(agent: Agent) -> None:
    words = Job(agent, "mhz", resources="cpu = 100").failed()
    assert "the dedicated cores of this node go to jobs that hold tokens" in words


def test_a_device_beside_cores_is_refused(agent: Agent) -> None:
    both = device(1).replace("cpu = 10", "cores = 1")
    words = Job(agent, "both", resources=both).failed()
    assert "device: chv/core together with cores = 1, expected one of the two" in words


def test_vcpus_that_are_not_what_the_devices_give_are_refused(agent: Agent) -> None:
    words = Job(agent, "vcpus", resources=device(1), config="vcpus = 2").failed()
    assert 'vcpus = 2: expected 1, which is what device "chv/core" { count = 1 } gives' in words


def test_the_job_beside_the_documentation_runs(agent: Agent) -> None:
    job = agent.run_job(job_file("tokens"))
    alloc = agent.wait_alloc(job, "complete", "failed", timeout_s=90)
    events = [message for _, message in agent.task_events(alloc, "tokens")]
    assert agent.alloc(alloc)["ClientStatus"] == "complete", events
    assert any(message.startswith("cores: vCPU 0 on ") and "level node" in message for message in events)
