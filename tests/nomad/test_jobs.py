"""Every job in nomad-jobs/ on a real agent, seen as a person sees it: status, events, logs, exit."""

import re
import urllib.request
from pathlib import Path

import pytest

from tests.nomad.agent import Agent

JOBS = Path(__file__).parents[2] / "nomad-jobs"

# What each job comes to; those that run until they are stopped are in the tests below.
ENDS = {
    "cores": ("complete", "Exit Code: 0"),
    "hello": ("complete", "Exit Code: 0"),
    "share": ("complete", "Exit Code: 0"),
    "sleep": ("complete", "Exit Code: 0"),
    "exit-code": ("failed", "Exit Code: 3"),
    "restart": ("failed", "Exit Code: 1"),
}
RUNS = {"service", "http"}
DISKS = {"persistent", "disks", "count"}  # in test_disks.py
FIRMWARE = {"uefi"}  # in test_firmware.py
VOLUMES = {"host-volume"}  # for an agent that has some: in test_volumes.py
CLOUD_IMAGE = {"cloud-image", "guest-agent", "guest-exit"}  # in test_cloud_image.py and test_guest_agent.py
TOKENS = {"tokens"}  # for a node with dedicated cores: in test_cores_device.py
NFS = {"nfs-root", "nfs-data"}  # for a node with a file server: in tests/lab/test_nfs_agent.py
# For an agent with networks: in test_networks.py
NETWORKS = {"macvtap", "bridge", "two-interfaces", "group-network", "user-sidecar", "service-address"}
CORES = {"cores": "cores: vCPU 0 on "}


def job_file(name: str) -> Path:
    return JOBS / f"{name}.nomad.hcl"


def task_of(name: str) -> str:
    found = re.search(r'task "([^"]+)"', job_file(name).read_text())
    assert found is not None
    return found[1]


def test_every_job_of_the_directory_is_tested_here() -> None:
    names = {path.name.removesuffix(".nomad.hcl") for path in JOBS.glob("*.nomad.hcl")}
    assert names == ENDS.keys() | RUNS | TOKENS | DISKS | FIRMWARE | NFS | VOLUMES | CLOUD_IMAGE | NETWORKS


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_job_that_ends_by_itself_comes_to_the_end_that_its_guest_chose(dev_agent: Agent, name: str) -> None:
    job = dev_agent.run_job(job_file(name))
    alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=90)
    status, words = ENDS[name]
    assert dev_agent.alloc(alloc)["ClientStatus"] == status
    events = dev_agent.task_events(alloc, task_of(name))
    terminated = [message for kind, message in events if kind == "Terminated"]
    assert terminated
    assert all(words in message for message in terminated)
    assert "chv test guest: up" in dev_agent.logs(alloc)
    assert any(message.startswith("machine started: qemu") for kind, message in events if kind == "Driver")
    assert any(message.startswith(CORES.get(name, "cores: shared")) for kind, message in events if kind == "Driver")


def test_a_failed_machine_is_started_again_under_the_restart_policy(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("restart"))
    alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=90)
    kinds = [kind for kind, _ in dev_agent.task_events(alloc, task_of("restart"))]
    assert kinds.count("Started") == 2
    assert "Restarting" in kinds
    assert "Not Restarting" in kinds


def test_a_service_runs_until_it_is_stopped_and_then_powers_itself_off(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("service"))
    alloc = dev_agent.wait_alloc(job, "running")
    dev_agent.wait_for("the guest", lambda: "chv test guest: ready" in dev_agent.logs(alloc))
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
    events = dev_agent.task_events(alloc, task_of("service"))
    assert ("Driver", "power button pressed") in events
    assert any(kind == "Terminated" and "Exit Code: 0" in message for kind, message in events)
    assert not any("forced off" in message for _, message in events)
    assert "power button" in dev_agent.logs(alloc)


def test_a_port_of_the_job_reaches_the_guest(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("http"))
    alloc = dev_agent.wait_alloc(job, "running")
    ports = dev_agent.alloc(alloc)["AllocatedResources"]["Shared"]["Ports"]
    (port,) = [one["Value"] for one in ports if one["Label"] == "http"]

    def page() -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    assert dev_agent.wait_for("the guest's page", page)
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")


def test_signals_and_restart_do_to_a_machine_what_the_page_says(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("service"))
    alloc = dev_agent.wait_alloc(job, "running")
    task = task_of("service")
    dev_agent.wait_for("the guest", lambda: "chv test guest: ready" in dev_agent.logs(alloc))

    dev_agent.command("alloc", "signal", "-s", "SIGSTOP", alloc)
    dev_agent.wait_for("the pause", lambda: ("Driver", "paused") in dev_agent.task_events(alloc, task))
    dev_agent.command("alloc", "signal", "-s", "SIGCONT", alloc)
    dev_agent.wait_for("the resume", lambda: ("Driver", "resumed") in dev_agent.task_events(alloc, task))
    refused = dev_agent.command("alloc", "signal", "-s", "SIGHUP", alloc, check=False)
    assert refused.returncode != 0
    assert "guest agent" in refused.stderr
    exec_refused = dev_agent.command("alloc", "exec", alloc, "true", check=False)
    assert "the guest agent does not answer" in exec_refused.stderr

    ups = dev_agent.logs(alloc).count("chv test guest: ready")
    dev_agent.command("alloc", "restart", alloc)
    dev_agent.wait_for("the guest to be up again", lambda: dev_agent.logs(alloc).count("chv test guest: ready") > ups)
    stats = dev_agent.get(f"/v1/client/allocation/{alloc}/stats")
    assert stats["Tasks"][task]["ResourceUsage"]["MemoryStats"]["RSS"] > 32 << 20
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
