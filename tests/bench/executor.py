"""What each machine costs beside its VMM: a keeper, where a task of Nomad's own drivers has an executor."""

import subprocess
import sys
from pathlib import Path

from tests.bench.agents import agent_with, job_text
from tests.bench.measure import LeftOutError, Line, Settings, line, pss_bytes, say
from tests.bench.start import machines_in, spec_of
from vmlib.process import load_identity


def run(settings: Settings) -> list[Line]:
    ours = keepers(settings)
    try:
        baseline, what = executors(settings), "PSS of Nomad's executor of a raw_exec task"
    except LeftOutError as exc:
        say(f"a sleeping interpreter instead of Nomad's executor: {exc}")
        baseline, what = sleepers(settings), "PSS of a bare interpreter that sleeps (no Nomad here)"
    return [
        line("keeper memory", f"PSS of a keeper with a QEMU guest / {what}", ours=ours, baseline=baseline, unit="bytes")
    ]


def keepers(settings: Settings) -> list[float]:
    """All of them at once, as on a node."""
    with machines_in(settings.directory("keepers")) as machines:
        started = [machines.start(spec_of(f"keeper-{number}", settings.guest_dir)) for number in range(settings.pairs)]
        identities = [load_identity(machine.run.keeper) for machine in started]
        return [float(pss_bytes(identity.pid)) for identity in identities if identity is not None]


def executors(settings: Settings) -> list[float]:
    with agent_with(settings, "raw", "raw_exec") as agent:
        for number in range(settings.pairs):
            job = agent.paths.base / f"raw{number}.nomad.hcl"
            job.write_text(job_text(f"raw{number}", "raw_exec", 'command = "/bin/sleep"\n        args = ["3600"]'))
            agent.run_job(job)
        for number in range(settings.pairs):
            agent.wait_alloc(f"raw{number}", "running")
        agent_pid = agent.process.pid if agent.process is not None else 0
        found = [pid for pid in children_of(agent_pid) if is_executor(pid)]
        if len(found) != settings.pairs:
            raise LeftOutError(f"{len(found)} executors of {settings.pairs} tasks were found")
        return [float(pss_bytes(pid)) for pid in found]


def children_of(pid: int) -> list[int]:
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for text in listed for word in text.split()]


def is_executor(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"executor"]


def sleepers(settings: Settings) -> list[float]:
    argv = [sys.executable, "-I", "-S", "-c", "import signal; print(flush=True); signal.pause()"]
    found = []
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(settings.pairs)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
        found.append(float(pss_bytes(process.pid)))
    for process in processes:
        process.kill()
        process.communicate()
    return found
