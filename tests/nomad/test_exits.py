"""Ends of tasks and stops on a real agent: exit codes, restart policies, kill_signal, shutdown_delay, few events."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.misbehaviours import ADVICE
from tests.nomad.agent import Agent

READY = "chv test guest: ready"
ALLOWED = 6  # events of ours on a normal start: Nomad keeps ten of a task

JOB = """
job "NAME" {
  type = "TYPE"
  group "g" {
    restart {
      RESTART
      delay = "0s"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "vm" {
      driver = "chv"
      TASK
      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check WORDS"
        placement = "shared"
        CONFIG
      }
      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
"""
DISK = 'disk {\n name = "data"\n serial = "data"\n size = "8MiB"\n }\n user_data = "#cloud-config\\n"'


def run(
    agent: Agent,
    directory: Path,
    name: str,
    words: str = "",
    *,
    type_: str = "batch",
    restart: str = "attempts = 0",
    task: str = 'kill_timeout = "30s"',
    config: str = "",
) -> str:
    """Returns the job's id."""
    text = JOB
    for key, value in {
        "NAME": name,
        "TYPE": type_,
        "RESTART": restart,
        "TASK": task,
        "WORDS": words,
        "CONFIG": config,
    }.items():
        text = text.replace(key, value)
    path = directory / f"{name}.nomad.hcl"
    path.write_text(text)
    return agent.run_job(path)


def until_up(agent: Agent, job: str, *, count: int = 1) -> str:
    alloc = agent.wait_alloc(job, "running")
    agent.wait_for("the guest", lambda: agent.logs(alloc).count(READY) >= count)
    return alloc


def terminated(agent: Agent, alloc: str) -> list[str]:
    return [message for kind, message in agent.task_events(alloc, "vm") if kind == "Terminated"]


def kinds(agent: Agent, alloc: str) -> list[str]:
    """Of our own events."""
    events = agent.alloc(alloc)["TaskStates"]["vm"]["Events"]
    return [event["Details"]["kind"] for event in events if event["Type"] == "Driver"]


# ---------------------------------------------------------------------------------------------------------------------
# ends


@pytest.mark.parametrize(
    ("name", "words", "status", "said"),
    [
        ("off", "poweroff", "complete", "Exit Code: 0"),
        ("seven", "exit=7", "failed", "Exit Code: 7"),
        ("panic", "panic", "failed", "guest panic: Kernel panic - not syncing: sysrq triggered crash"),
    ],
)
def test_a_batch_job_ends_as_its_guest_says(
    dev_agent: Agent, tmp_path: Path, name: str, words: str, status: str, said: str
) -> None:
    job = run(dev_agent, tmp_path, f"ends-{name}", words)
    alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=90)
    assert dev_agent.alloc(alloc)["ClientStatus"] == status
    (end,) = terminated(dev_agent, alloc)
    assert said in end
    assert ("Exit Code: 1" in end) == (name == "panic")
    assert 2 <= len(kinds(dev_agent, alloc)) <= ALLOWED + (name == "panic")


def test_a_failure_is_started_again_with_its_disks_as_the_same_instance(dev_agent: Agent, tmp_path: Path) -> None:
    job = run(
        dev_agent,
        tmp_path,
        "again",
        "read=data write=data:kept exit=7",
        restart='attempts = 1\n interval = "10m"\n mode = "fail"',
        config=DISK,
    )
    alloc = dev_agent.wait_alloc(job, "failed", timeout_s=120)
    assert [end.count("Exit Code: 7") for end in terminated(dev_agent, alloc)] == [1, 1]
    lines = dev_agent.logs(alloc).splitlines()
    assert [line for line in lines if line.startswith("read data")] == ["read data", "read data kept"]
    assert [line for line in lines if "instance-id" in line] == [f"seed instance-id {alloc}-vm"] * 2


def test_mode_delay_goes_on_in_the_next_interval(dev_agent: Agent, tmp_path: Path) -> None:
    restart = 'attempts = 1\n interval = "20s"\n mode = "delay"'
    job = run(dev_agent, tmp_path, "delay", "exit=7", restart=restart)
    alloc = str(dev_agent.wait_for("the alloc", lambda: dev_agent.allocs(job))[0]["ID"])
    dev_agent.wait_for("a third start", lambda: dev_agent.logs(alloc).count(READY) == 3, timeout_s=120)
    assert any("Exceeded allowed attempts" in message for _, message in dev_agent.task_events(alloc, "vm"))
    dev_agent.command("job", "stop", "-detach", job)


# ---------------------------------------------------------------------------------------------------------------------
# stops


def test_a_short_kill_timeout_is_told_when_it_has_pulled_the_plug(dev_agent: Agent, tmp_path: Path) -> None:
    job = run(dev_agent, tmp_path, "short", "ignore-acpi", type_="service", task='kill_timeout = "2s"')
    alloc = until_up(dev_agent, job)
    began = time.monotonic()
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete", "failed")
    assert time.monotonic() - began < 2.0 + 5.0 + 5.0  # of a busy host
    (end,) = terminated(dev_agent, alloc)
    assert "Exit Code: 137" in end
    assert ADVICE in end


@pytest.mark.parametrize("name", ["SIGKILL", "SIGUSR1"])
def test_a_kill_signal_kills_or_asks(dev_agent: Agent, tmp_path: Path, name: str) -> None:
    task = f'kill_timeout = "30s"\n kill_signal = "{name}"'
    job = run(dev_agent, tmp_path, f"stop-{name.lower()}", type_="service", task=task)
    alloc = until_up(dev_agent, job)
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete", "failed")
    (end,) = terminated(dev_agent, alloc)
    assert ("Exit Code: 0" in end) == (name == "SIGUSR1")
    assert ("power button" in kinds(dev_agent, alloc)) == (name == "SIGUSR1")


def test_the_guest_hears_of_a_stop_after_the_shutdown_delay_and_when_it_was_paused(
    dev_agent: Agent, tmp_path: Path
) -> None:
    task = 'kill_timeout = "30s"\n shutdown_delay = "3s"'
    job = run(dev_agent, tmp_path, "delayed", type_="service", task=task)
    alloc = until_up(dev_agent, job)
    dev_agent.command("alloc", "signal", "-s", "SIGSTOP", alloc)
    dev_agent.wait_for("the pause", lambda: "paused" in kinds(dev_agent, alloc))
    began = time.time()
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
    events = dev_agent.alloc(alloc)["TaskStates"]["vm"]["Events"]
    (pressed,) = [event["Time"] / 1e9 for event in events if event["DisplayMessage"] == "power button pressed"]
    assert pressed - began >= 2.9
    assert kinds(dev_agent, alloc)[-2:] == ["resumed", "power button"]


# ---------------------------------------------------------------------------------------------------------------------
# a person on the node


def test_console_and_reboot_work_beside_the_agent(dev_agent: Agent, tmp_path: Path) -> None:
    job = run(dev_agent, tmp_path, "person", "echo", type_="service")
    alloc = until_up(dev_agent, job)
    chv = dev_agent.plugin_dir / "chv"
    environment = {**os.environ, "CHV_CONFIG": str(dev_agent.paths.config)}
    with subprocess.Popen(
        [chv, "console", alloc[:8]], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write(b"hello\n")
        one.stdin.flush()
        assert next(line for line in one.stdout if b"echo:" in line) == b"echo: hello\r\n"
        one.terminate()
    subprocess.run([chv, "reboot", alloc[:8]], env=environment, check=True, timeout=30)
    until_up(dev_agent, job, count=2)
    assert kinds(dev_agent, alloc).count("rebooted") == 1
    assert "Restarting" not in [kind for kind, _ in dev_agent.task_events(alloc, "vm")]
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
