"""From a job's submission to its guest: our driver over Nomad's own qemu driver, on one agent, with the same image."""

import json
import time
import urllib.request
from itertools import count
from typing import Any

from tests.bench.agents import agent_with, job_text, stop_job
from tests.bench.measure import Line, Settings, in_turns, line
from tests.bench.start import BANNER
from tests.nomad.agent import Agent

_BANNER_S = 120.0
_LOOK_EVERY_S = 0.005


def run(settings: Settings) -> list[Line]:
    image = settings.guest_dir / "disk.qcow2"
    configs = {
        "qemu": f'image_path  = "{image}"\n        accelerator = "tcg"\n        args = ["-snapshot"]',
        "chv": f'image     = "{image}"\n        placement = "shared"',
    }
    with agent_with(settings, "submit", "qemu") as agent:
        numbers = count()

        def measure(driver: str) -> float:
            return submitted_s(agent, f"{driver}{next(numbers)}", driver, configs[driver])

        baseline, ours = in_turns([lambda: measure("qemu"), lambda: measure("chv")], pairs=settings.pairs)
    return [
        line(
            "submit to guest",
            "job submitted until the guest's banner is in the task's log: driver chv / Nomad's own qemu driver",
            ours=ours,
            baseline=baseline,
        )
    ]


def submitted_s(agent: Agent, name: str, driver: str, config: str) -> float:
    """Seconds from the job's registration until the first lines of its guest are in the log file; stopped then."""
    path = agent.paths.base / f"{name}.nomad.hcl"
    path.write_text(job_text(name, driver, config))
    job = json.loads(agent.command("job", "run", "-output", str(path)).stdout)
    logs = f"alloc/*/alloc/logs/{name}.stdout.0"
    begin = time.perf_counter()
    put(agent, "/v1/jobs", job)
    while not any(BANNER in log.read_bytes() for log in agent.paths.nomad_data.glob(logs)):
        if time.perf_counter() - begin > _BANNER_S:
            raise TimeoutError(f"no banner of job {name} within {_BANNER_S:g} s: {agent.log_tail()}")
        time.sleep(_LOOK_EVERY_S)
    took = time.perf_counter() - begin
    stop_job(agent, name)
    return took


def put(agent: Agent, path: str, body: Any) -> None:
    request = urllib.request.Request(agent.address + path, data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass
