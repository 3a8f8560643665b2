"""`make run`: the hello job, on a real Nomad agent when there is one, else on the embedded host. Leaves nothing."""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import leftovers, needs
from tests import setup as machine_setup
from tests.guest import build
from tests.nomad.agent import Agent, AgentPaths, agent_config, running

CHECKOUT = machine_setup.CHECKOUT
JOB = CHECKOUT / "nomad-jobs/hello.nomad.hcl"


def main() -> int:
    if reason := needs.lacking("root") or needs.lacking("qemu"):
        print(f"make run: {reason}: machines need root and QEMU", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="chv-", dir="/tmp"))
    paths = AgentPaths(base=base)
    guest = build.ensure(machine_setup.cache_dir())
    try:
        with leftovers.none_left(run_dir=paths.chv_run, data_dir=paths.chv_data, temp_dir=paths.temp):
            nomad = needs.find_nomad()
            if nomad is not None:
                return on_nomad(nomad, paths, guest.kernel.parent)
            return on_embedded_host(paths, guest.kernel.parent)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def on_nomad(nomad: Path, paths: AgentPaths, guest_dir: Path) -> int:
    """The agent loads the plugin, places the job, and shows the console of the guest as its log."""
    version = subprocess.run([nomad, "version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    say(f"starting a dev agent on loopback ({version}); its log is {paths.log}")
    agent = Agent(
        binary=str(nomad),
        paths=paths,
        plugin_dir=CHECKOUT / ".cache/plugins",
        guest_dir=guest_dir,
        dev=True,
    )
    with running(agent):
        say("the node is ready, driver chv is healthy")
        say(f"nomad job run {JOB.relative_to(CHECKOUT)}")
        job = agent.run_job(JOB)
        alloc = agent.wait_alloc(job, "pending", "running", "complete", "failed")
        shown = 0
        status = ""
        while status not in ("complete", "failed"):
            now = agent.alloc(alloc)["ClientStatus"]
            if now != status:
                say(f"allocation {alloc[:8]} is {now}")
                status = now
            shown = show_new(agent.logs(alloc), shown)
            time.sleep(0.3)
        show_new(agent.logs(alloc), shown)
        for kind, message in agent.task_events(alloc, "hello"):
            print(f"    {kind:<12} {message}")
        agent.command("job", "stop", "-purge", "-detach", job)
        say("stopping the agent")
    return 0 if status == "complete" else 1


def on_embedded_host(paths: AgentPaths, guest_dir: Path) -> int:
    """The same picture without an agent: `chv dev` plays it over the same plugin wire."""
    say("no nomad on PATH: the embedded host plays the agent")
    paths.base.mkdir(exist_ok=True)
    paths.config.write_text(
        agent_config(paths, plugin_dir=CHECKOUT / ".cache/plugins", guest_dir=guest_dir, ports=[0, 0, 0], dev=True)
    )
    chv = CHECKOUT / ".cache/venv/bin/chv"
    say(f"chv dev {JOB.relative_to(CHECKOUT)}")
    return subprocess.run([chv, "dev", "--config", paths.config, JOB], check=False).returncode


def show_new(console: str, shown: int) -> int:
    """Print what came since the last look; returns how much has been shown now."""
    whole = console.rfind("\n") + 1
    for line in console[shown:whole].splitlines():
        print(f"    | {line}", flush=True)
    return max(shown, whole)


def say(words: str) -> None:
    print(f"==> {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
