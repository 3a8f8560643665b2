"""Jobs whose disks lie on a real NFS server, on a real agent."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import READY
from tests.lab.nfs_server import ADDRESS, NfsServer, mounts
from tests.lab.test_cores_agent import doctor, driver
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_jobs import job_file, task_of

pytestmark = pytest.mark.needs("nomad")

LAB_S = 90.0
SLACK_S = 15.0
KILL_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def agent(guest: Guest, plugin_dir: Path, nfs_server: NfsServer) -> Iterator[Agent]:
    one = make_agent(guest, plugin_dir, dev=True)
    one.cores_block = f'nfs "vms" {{\n      server = "{ADDRESS}"\n      export = "{nfs_server.directory}"\n    }}'
    yield from lifetime(one)


def attribute(agent: Agent) -> object:
    return driver(agent)["Attributes"].get("driver.chv.nfs.vms")


def test_the_node_tells_of_the_server(agent: Agent) -> None:
    agent.wait_for("the attribute", lambda: attribute(agent) == "rw", timeout_s=LAB_S)
    said = doctor(agent)
    assert "the server answers" in said
    assert "servers know this host by its name 'lab' alone" in said


def test_a_root_disk_over_an_image_on_a_server_boots(agent: Agent) -> None:
    job = agent.run_job(job_file("nfs-root"))
    alloc = agent.wait_alloc(job, "complete", "failed", timeout_s=LAB_S)
    assert agent.alloc(alloc)["ClientStatus"] == "complete", agent.task_events(alloc, task_of("nfs-root"))
    assert READY in agent.logs(alloc)
    agent.wait_for("the mount to be gone", lambda: not mounts(agent.paths.chv_data))


def test_disks_from_a_server_are_read_there_or_copied_from_there(agent: Agent) -> None:
    job = agent.run_job(job_file("nfs-data"))
    alloc = agent.wait_alloc(job, "complete", "failed", timeout_s=LAB_S)
    assert agent.alloc(alloc)["ClientStatus"] == "complete", agent.task_events(alloc, task_of("nfs-data"))
    found = [line for line in agent.logs(alloc).splitlines() if line.startswith("read ")]
    assert found == ["read there fromtheserver", "read copied fromtheserver", "read copied changed"]


WRITER = """
job "writer" {
  group "writer" {
    task "writer" {
      driver       = "chv"
      kill_timeout = "2s"
      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check ignore-acpi keep-writing=root"
        image     = "nfs://vms/written.raw"
        root_mode = "direct"
        placement = "shared"
      }
      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
"""


def test_a_job_on_a_silent_server_is_stopped_in_time_and_another_one_starts(
    agent: Agent, server: NfsServer, tmp_path: Path
) -> None:
    (tmp_path / "writer.nomad.hcl").write_text(WRITER)
    job = agent.run_job(tmp_path / "writer.nomad.hcl")
    alloc = agent.wait_alloc(job, "running", timeout_s=LAB_S)
    agent.wait_for("the guest to write", lambda: "wrote root 2" in agent.logs(alloc), timeout_s=LAB_S)
    server.cut()
    time.sleep(5.0)  # its writes wait by now
    agent.command("job", "stop", "-detach", job)
    other = agent.wait_alloc(agent.run_job(job_file("hello")), "complete", timeout_s=LAB_S)
    assert READY in agent.logs(other)
    agent.wait_alloc(job, "complete", "failed", timeout_s=LAB_S)
    at = {event["Type"]: event["Time"] / 1e9 for event in agent.alloc(alloc)["TaskStates"]["writer"]["Events"]}
    # Thirteen seconds and what an emulated agent takes; without an end of ours it would be hours.
    assert at["Killed"] - at["Killing"] < KILL_TIMEOUT_S + 13.0 + SLACK_S
    agent.wait_for("the mount to be gone", lambda: not mounts(agent.paths.chv_data))


def test_a_silent_server_fails_a_start_with_its_name_and_the_node_says_that_it_is_gone(
    agent: Agent, server: NfsServer, tmp_path: Path
) -> None:
    server.cut()
    path = tmp_path / "silent.nomad.hcl"
    path.write_text(job_file("nfs-root").read_text().replace('"nfs-root"', '"silent"'))
    alloc = agent.wait_alloc(agent.run_job(path), "failed", timeout_s=LAB_S)
    told = [message for kind, message in agent.task_events(alloc, "silent") if kind == "Driver Failure"]
    assert any("nfs.vms (127.0.0.1:/srv/vms): no answer within 5 s" in message for message in told), told
    assert not mounts(agent.paths.chv_data)
    agent.wait_for("the attribute to be gone", lambda: attribute(agent) is None, timeout_s=LAB_S)
    server.heal()
    agent.wait_for("the attribute to be back", lambda: attribute(agent) == "rw", timeout_s=LAB_S)
