"""Whole cores on a real agent: what Nomad reserves is where the vCPUs run, and nothing else of ours runs there."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import build
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_survival import plugin_pid
from vmlib import cgroup, cpuset

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="made for a node of two CPUs")

REPAIR_S = 5.0  # the promise

# A service, so that Nomad does not wait for its end; it runs until it is stopped.
JOB = """
job "NAME" {
  type = "batch"
  group "g" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "vm" {
      driver       = "chv"
      kill_timeout = "30s"
      config {
        kernel  = "${meta.chv_guest}/vmlinuz"
        initrd  = "${meta.chv_guest}/initrd.img"
        cmdline = "console=ttyS0 quiet panic=-1 no_timer_check"
        CONFIG
      }
      resources {
        RESOURCES
        memory = 128
      }
    }
  }
}
"""


class Job:
    """One job with one machine, as a person sees it, and its threads, as the kernel sees them."""

    def __init__(self, agent: Agent, name: str, *, resources: str, config: str = "") -> None:
        self.agent = agent
        self.name = name
        path = agent.paths.base / f"{name}.nomad.hcl"
        path.write_text(JOB.replace("NAME", name).replace("RESOURCES", resources).replace("CONFIG", config))
        agent.run_job(path)

    def running(self) -> "Job":
        self.alloc = self.agent.wait_alloc(self.name, "running", "failed", "complete")
        assert self.agent.alloc(self.alloc)["ClientStatus"] == "running", self.messages()
        self.event("cores: ")
        return self

    def failed(self) -> str:
        """All that its events say, once it has failed."""
        self.alloc = self.agent.wait_alloc(self.name, "failed", "running")
        assert self.agent.alloc(self.alloc)["ClientStatus"] == "failed"
        return "\n".join(self.messages())

    def messages(self) -> list[str]:
        return [message for _, message in self.agent.task_events(self.alloc, "vm")]

    def event(self, start: str) -> str:
        def find() -> str | None:
            return next((text for text in reversed(self.messages()) if text.startswith(start)), None)

        return str(self.agent.wait_for(f"an event {start!r} of {self.name}", find, timeout_s=20))

    def stop(self) -> None:
        self.agent.command("job", "stop", "-detach", self.name)
        self.agent.wait_alloc(self.name, "complete", "failed", "lost")

    def inspect(self) -> dict[str, Any]:
        chv = str(self.agent.plugin_dir / "chv")
        done = subprocess.run(
            [chv, "inspect", "--json", "--config", str(self.agent.paths.config), self.alloc],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def vcpus(self) -> list[str]:
        """The allowed list of each vCPU's thread, from the kernel."""
        facts = self.inspect()
        return [allowed(facts["pid"], vcpu["tid"]) for vcpu in facts["vcpus"]]

    def others(self) -> set[str]:
        """The allowed lists of all other threads of its VMM's and its keeper's."""
        facts = self.inspect()
        mine = {vcpu["tid"] for vcpu in facts["vcpus"]}
        keeper = json.loads((self.run_dir() / "keeper").read_text())["pid"]
        return {
            allowed(pid, int(tid))
            for pid in (facts["pid"], keeper)
            for tid in os.listdir(f"/proc/{pid}/task")
            if int(tid) not in mine
        }

    def run_dir(self) -> Path:
        record = self.agent.paths.chv_data / "machines" / self.alloc / "vm" / "machine.json"
        return Path(json.loads(record.read_text())["run_dir"])


def allowed(pid: int, tid: int) -> str:
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", Path(f"/proc/{pid}/task/{tid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """An agent that shares out both CPUs and keeps its data."""
    yield from lifetime(make_agent(guest, plugin_dir, dev=False))


@pytest.fixture
def clean(agent: Agent) -> Iterator[Agent]:
    yield agent
    agent.purge_jobs()


def test_each_job_has_its_core_a_third_one_waits_and_nothing_changes_over_restarts(clean: Agent) -> None:
    agent = clean
    first = Job(agent, "first", resources="cores = 1").running()
    assert "level node" in first.event("cores: ")
    (core,) = first.vcpus()
    assert first.inspect()["cores"] == core
    other = {"0": "1", "1": "0"}[core]
    assert first.others() == {other}

    second = Job(agent, "second", resources="cores = 1").running()
    assert "VMM threads on its own cores, because no other is left" in second.event("cores: ")
    assert second.vcpus() == [other]
    assert second.others() == {other}
    agent.wait_for("the first one's other threads to leave the second one's core", lambda: first.others() == {core})

    third = Job(agent, "third", resources="cores = 1")
    blocked = agent.wait_for(
        "the third job to be blocked",
        lambda: next((one for one in agent.get("/v1/job/third/evaluations") if one["Status"] == "blocked"), None),
    )
    assert "cores" in json.dumps(blocked["FailedTGAllocs"])
    assert agent.allocs("third") == []

    os.kill(plugin_pid(agent), signal.SIGKILL)
    agent.stop()
    agent.start()
    for job, where in ((first, core), (second, other)):
        assert job.vcpus() == [where]
        assert job.inspect()["level"] == "node"
        assert job.messages()[-1:] != ["cores repaired"]

    first.stop()
    third.running()
    assert third.vcpus() == [core]


def test_a_machine_that_only_asks_for_mhz_yields_a_core_that_nomad_reserves(clean: Agent) -> None:
    agent = clean
    mhz = Job(agent, "mhz", resources="cpu = 100").running()
    assert "level driver" in mhz.event("cores: ")
    assert "lint: cpu = 100" in mhz.event("lint: ")
    assert mhz.vcpus() == ["0"]
    cores = Job(agent, "cores", resources="cores = 1").running()
    assert cores.vcpus() == ["0"]  # Nomad takes the lowest
    assert "the scheduler reserved CPU 0" in mhz.event("yielded: ")
    agent.wait_for("the machine to have left", lambda: mhz.vcpus() == ["1"] and mhz.others() == {"1"})
    assert mhz.inspect()["level"] == "shared"
    assert cores.others() == {"1"}


def test_a_shared_machine_floats_beside_and_both_cores_for_others_leave_it_only_those(clean: Agent) -> None:
    agent = clean
    shared = Job(agent, "shared", resources="cpu = 100", config='placement = "shared"').running()
    assert shared.vcpus() == ["0-1"]
    first = Job(agent, "first", resources="cores = 1").running()
    (core,) = first.vcpus()
    other = {"0": "1", "1": "0"}[core]
    agent.wait_for("the shared machine to leave the core", lambda: shared.vcpus() == [other])
    assert shared.others() == {other}
    first.stop()
    agent.wait_for("the shared machine to float over both again", lambda: shared.vcpus() == ["0-1"])


def test_a_machine_without_words_is_refused_when_no_whole_core_can_be_had(clean: Agent) -> None:
    agent = clean
    one = Job(agent, "one", resources="cpu = 100").running()
    words = Job(agent, "two", resources="cpu = 100").failed()
    assert "1 core wanted" in words
    assert one.alloc in words


def test_a_cpuset_that_somebody_rewrote_is_set_right_within_seconds_and_said(clean: Agent) -> None:
    agent = clean
    job = Job(agent, "one", resources="cores = 1").running()
    facts = job.inspect()
    (core,) = (allowed(facts["pid"], vcpu["tid"]) for vcpu in facts["vcpus"])
    group = cgroup.paths_for(cgroup.read_layout(), job.run_dir().name).cpuset
    assert group is not None
    cpuset.write_cpus(group, {1 - int(core)})
    deadline = time.monotonic() + REPAIR_S
    while allowed(facts["pid"], facts["vcpus"][0]["tid"]) != core:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert f"group on {1 - int(core)}, expected 0-1" in job.event("cores repaired: ")
    assert job.inspect()["repairs"] == 1


# -- dedicated cores -------------------------------------------------------------------------------------------------


def forget_nomads_groups() -> None:
    """An agent that shares out fewer CPUs than the one before cannot start over what that left in cgroup v1 (EBUSY)."""
    for group, _, _ in os.walk("/sys/fs/cgroup/cpuset/nomad", topdown=False):
        os.rmdir(group)


@pytest.fixture(scope="module")
def dedicated_agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """One core withheld from Nomad, with its MHz, for machines that ask for MHz only."""
    forget_nomads_groups()
    one = make_agent(guest, plugin_dir, dev=True)
    one.cores_block = 'cores {\n      dedicated = "1"\n    }'
    one.client_block = 'reserved {\n    cores = "1"\n    cpu   = 100\n  }'
    yield from lifetime(one)


def test_dedicated_cores_go_to_whole_machines_and_to_nobody_else(dedicated_agent: Agent) -> None:
    agent = dedicated_agent
    first = Job(agent, "first", resources="cpu = 100").running()
    assert "level node" in first.event("cores: ")
    assert first.vcpus() == ["1"]
    assert first.others() == {"0"}
    words = Job(agent, "second", resources="cpu = 100").failed()
    assert "1 core of dedicated 1 wanted" in words
    assert first.alloc in words
    shared = Job(agent, "shared", resources="cpu = 100", config='placement = "shared"').running()
    assert shared.vcpus() == ["0"]
    assert Path("/sys/fs/cgroup/cpuset/nomad/share/cpuset.cpus").read_text().strip() == "0"
    attributes = next(iter(agent.get("/v1/nodes")))
    node = agent.get(f"/v1/node/{attributes['ID']}")["Attributes"]
    assert node["driver.chv.cores.dedicated"] == "1"
