"""The embedded host and the real agent show the same driver events and the same end for every job in nomad-jobs/."""

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.nomad.agent import Agent
from tests.nomad.test_jobs import ENDS, RUNS, job_file, task_of

READY = "chv test guest: ready"
# Events of Nomad's own that both tell; what only one of them tells is none of the driver's business.
COMPARED = ("Driver", "Started", "Terminated", "Restarting", "Not Restarting", "Killing", "Killed", "Driver Failure")


def comparable(events: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Messages by type, without what differs from run to run: pids, ports and delays."""
    found: dict[str, list[str]] = {}
    for kind, message in events:
        if kind in COMPARED:
            found.setdefault(kind, []).append(re.sub(r"\b\d+(\.\d+)?(ns|µs|ms|s)?\b", "N", message))
    return found


def on_agent(agent: Agent, name: str) -> dict[str, list[str]]:
    job = agent.run_job(job_file(name))
    if name in RUNS:
        alloc = agent.wait_alloc(job, "running")
        agent.wait_for("the guest", lambda: READY in agent.logs(alloc))
        agent.command("job", "stop", "-detach", job)
    alloc = agent.wait_alloc(job, "complete", "failed", timeout_s=90)
    return comparable(agent.task_events(alloc, task_of(name)))


def on_embedded_host(chv: Path, config: Path, name: str) -> dict[str, list[str]]:
    """As a person would: a shell command, ^C for what runs until it is stopped."""
    events: list[tuple[str, str]] = []
    seen = ""
    with subprocess.Popen(
        [chv, "dev", "--json", "--config", config, job_file(name)], stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        for line in host.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["kind"] == "event":
                events.append((told["type"], told["message"]))
            elif told["kind"] == "output" and told["stream"] == "stdout":
                if name in RUNS and READY not in seen and READY in seen + told["text"]:
                    host.send_signal(signal.SIGINT)
                seen += told["text"]
        host.wait(60)
    return comparable(events)


@pytest.mark.parametrize("name", sorted(ENDS.keys() | RUNS))
def test_a_job_looks_the_same_on_both(dev_agent: Agent, chv: Path, name: str) -> None:
    assert on_embedded_host(chv, dev_agent.paths.config, name) == on_agent(dev_agent, name)
