"""What a running machine survives, on a real agent that keeps its data: plugin, agent and keeper killed."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest import build
from tests.nomad.agent import Agent
from tests.nomad.conftest import make_agent
from tests.nomad.test_jobs import JOBS, task_of
from vmlib.hypervisor.base import Hypervisor
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.settings import HostSettings
from vmlib.spec import MachineSpec

SERVICE = JOBS / "service.nomad.hcl"


def processes(pattern: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if re.search(pattern, words):
                found.append(int(entry.name))
    return found


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def plugin_pids(agent: Agent) -> list[int]:
    return [pid for pid in processes(rf"{re.escape(str(agent.plugin_dir))}/chv(?!-)") if "logmon" not in cmdline(pid)]


def plugin_pid(agent: Agent) -> int:
    pids = plugin_pids(agent)
    assert len(pids) == 1, [cmdline(pid) for pid in pids]
    return pids[0]


class Service:
    """The service job, running, with its guest up and its console counting."""

    def __init__(self, agent: Agent, job_file: Path = SERVICE) -> None:
        self.agent = agent
        self.job = "service"
        before = self.newest_alloc()
        self.job = agent.run_job(job_file)
        agent.wait_for("a new alloc", lambda: self.newest_alloc() not in (None, before))
        self.alloc = agent.wait_alloc(self.job, "running")
        self.task = task_of("service")
        agent.wait_for("the guest", lambda: "chv test guest: ready" in agent.logs(self.alloc))
        self.vmm = self.identity("vmm")

    def newest_alloc(self) -> str | None:
        return next((str(alloc["ID"]) for alloc in self.agent.allocs(self.job)), None)

    def run_dir(self) -> Path:
        record = self.agent.paths.chv_data / "machines" / self.alloc / self.task / "machine.json"
        return Path(json.loads(record.read_text())["run_dir"])

    def identity(self, name: str) -> int:
        found = re.search(r'"pid": (\d+)', (self.run_dir() / name).read_text())
        assert found is not None
        return int(found[1])

    def ticks(self) -> list[int]:
        return [int(number) for number in re.findall(r"^tick (\d+)\r?$", self.agent.logs(self.alloc), re.MULTILINE)]

    def assert_unharmed(self) -> None:
        """Same VMM, console goes on without a gap, alloc still running."""
        assert self.identity("vmm") == self.vmm
        assert f"pid {self.vmm}" in str(self.agent.task_events(self.alloc, self.task))
        os.kill(self.vmm, 0)
        before = self.ticks()[-1]
        self.agent.wait_for("the console to go on", lambda: self.ticks()[-1] > before + 3)
        ticks = self.ticks()
        assert ticks == list(range(ticks[0], ticks[-1] + 1))
        assert self.agent.alloc(self.alloc)["ClientStatus"] == "running"

    def stop_gracefully(self) -> None:
        self.agent.command("job", "stop", "-detach", self.job)
        self.agent.wait_alloc(self.job, "complete")
        events = self.agent.task_events(self.alloc, self.task)
        assert any(kind == "Terminated" and "Exit Code: 0" in message for kind, message in events)
        assert not any("forced off" in message for _, message in events)
        assert "power button" in self.agent.logs(self.alloc)


@pytest.fixture
def service(agent: Agent, tmp_path: Path) -> Iterator[Service]:
    job = tmp_path / "service.nomad.hcl"
    job.write_text(SERVICE.read_text().replace("panic=-1", "panic=-1 tick"))
    yield Service(agent, job)
    agent.purge_jobs()


def test_the_plugin_killed_leaves_the_machine_alone(service: Service) -> None:
    os.kill(plugin_pid(service.agent), signal.SIGKILL)
    service.assert_unharmed()
    service.stop_gracefully()


def test_an_agent_that_stops_and_starts_finds_the_machine_again(service: Service) -> None:
    service.agent.stop()
    os.kill(service.vmm, 0)
    service.agent.start()
    service.assert_unharmed()
    service.stop_gracefully()


def test_agent_and_plugin_killed_leave_the_machine_alone(service: Service) -> None:
    plugin = plugin_pid(service.agent)
    service.agent.kill()
    os.kill(plugin, signal.SIGKILL)
    service.agent.start()
    service.assert_unharmed()
    service.stop_gracefully()


def test_an_agent_killed_alone_finds_its_plugin_and_the_machine_again(service: Service) -> None:
    service.agent.kill()
    service.agent.start()
    service.assert_unharmed()
    service.stop_gracefully()


def test_a_machine_that_ends_while_nobody_watches_reports_its_own_exit_code(service: Service) -> None:
    plugin = plugin_pid(service.agent)
    service.agent.kill()
    os.kill(plugin, signal.SIGKILL)
    os.kill(service.vmm, signal.SIGSEGV)
    wait_until(lambda: not Path(f"/proc/{service.vmm}").exists())
    service.agent.start()

    def terminated() -> list[str]:
        events = service.agent.task_events(service.alloc, service.task)
        return [message for kind, message in events if kind == "Terminated"]

    (message,) = service.agent.wait_for("the end to be reported", terminated)
    assert "Exit Code: 139" in message
    assert "Signal: 11" in message


def test_the_keeper_killed_is_replaced_and_the_machine_goes_on(service: Service) -> None:
    keeper = service.identity("keeper")
    os.kill(keeper, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: service.identity("keeper") != keeper)
    assert time.monotonic() - killed < 2
    events = service.agent.wait_for(
        "the event",
        lambda: [
            message
            for kind, message in service.agent.task_events(service.alloc, service.task)
            if kind == "Driver" and message.startswith("keeper replaced")
        ],
    )
    assert len(events) == 1
    before = service.ticks()[-1]
    service.agent.wait_for("the console to go on", lambda: service.ticks()[-1] > before + 3)
    assert service.identity("vmm") == service.vmm
    service.stop_gracefully()


def test_the_vmm_killed_fails_the_task_with_that_signal_and_it_is_started_again(service: Service) -> None:
    os.kill(service.vmm, signal.SIGKILL)

    def kinds() -> list[tuple[str, str]]:
        return service.agent.task_events(service.alloc, service.task)

    service.agent.wait_for("the restart", lambda: [kind for kind, _ in kinds()].count("Started") == 2)
    terminated = [message for kind, message in kinds() if kind == "Terminated"]
    assert len(terminated) == 1
    assert "Exit Code: 137" in terminated[0]
    assert "Signal: 9" in terminated[0]
    service.agent.wait_for(
        "the guest to be up again",
        lambda: service.agent.logs(service.alloc).count("chv test guest: ready") == 2,
    )
    service.stop_gracefully()


def wait_until(look: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dev_agent_that_is_stopped_leaves_no_machine_running(guest: build.Guest, plugin_dir: Path) -> None:
    """Such an agent asks for the stop of its tasks and ends the plugin at once; the stop goes on without both."""
    agent = make_agent(guest, plugin_dir, dev=True)
    try:
        agent.start()
        service = Service(agent)
        agent.stop()
        wait_until(lambda: not Path(f"/proc/{service.vmm}").exists())
        layout = Layout(agent.paths.chv_data, agent.paths.chv_run)
        machines = Machines(HostSettings(layout=layout), _never, attach)
        # The agent may or may not have come as far as to destroy it.
        if (machine := machines.find(f"{service.alloc}/{service.task}")) is not None:
            ended = machine.settle()
            assert ended is not None
            assert ended.exit_code == 0
            machines.remove(machine.record.name)
    finally:
        agent.stop()
        shutil.rmtree(agent.paths.base, ignore_errors=True)


def _never(spec: MachineSpec) -> tuple[Hypervisor, str]:
    raise AssertionError(spec)
