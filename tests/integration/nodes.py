"""A node of an operator's, for tests that meet the driver as a user does: an agent file, jobs, and the embedded host
or `chv dev` to run them. What a guest is told to do is in tests/guest/README.md.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from driver.devhost.host import DevHost
from driver.devhost.jobfile import read_job
from driver.devhost.pluginproc import PluginProcess
from tests.guest import build
from vmlib import process
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.paths import Layout, RunPaths
from vmlib.process import Identity
from vmlib.settings import HostSettings

READY = "chv test guest: ready"
NOTHING: dict[str, list[int]] = {"keeper": [], "vmm": [], "launcher": []}
PATIENCE_S = 60.0


@dataclass(slots=True, kw_only=True)
class Node:
    """`hypervisor` is the one that its jobs get; the fake's need no kernel worth the name."""

    base: Path  # short: sockets lie below it
    guest: Path
    chv: Path
    hypervisor: str = "qemu"
    block: str = ""  # more of the plugin block
    client_block: str = ""  # more of the client block
    env: dict[str, str] = field(default_factory=dict)  # more of the plugin's environment

    # -- directories -------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "data", self.base / "run")

    @property
    def images(self) -> Path:
        """What jobs may boot beside the test guest."""
        return self.base / "images"

    @property
    def allocs(self) -> Path:
        return self.base / "allocs"

    @property
    def agent_file(self) -> Path:
        return self.base / "agent.hcl"

    @property
    def environment(self) -> dict[str, str]:
        return {"CHV_ENABLE_FAKE": "1", "TMPDIR": str(self.base / "tmp"), **self.env}

    def make(self) -> None:
        for path in (self.images, self.allocs, self.base / "tmp", self.base / "jobs"):
            path.mkdir(exist_ok=True)
        (self.images / "kernel").write_bytes(b"\x7fELF")
        self.write_agent_file()

    def write_agent_file(self) -> None:
        # The fake's Python may be root's alone, and auto is for tests that pin it.
        uids = "" if self.hypervisor in ("fake", "auto") else 'vm_uids = "221000-221063"'
        self.agent_file.write_text(
            f"""
client {{
  meta {{
    chv_guest = "{self.guest}"
  }}
  {self.client_block}
}}
plugin "chv" {{
  config {{
    data_dir    = "{self.layout.data_dir}"
    run_dir     = "{self.layout.run_dir}"
    hypervisor  = "{self.hypervisor}"
    image_paths = ["{self.guest}", "{self.images}"]
    {uids}
    network "user0" {{
      mode = "user"
    }}
    {self.block}
  }}
}}
"""
        )

    # -- jobs --------------------------------------------------------------------------------------------------------

    def job(
        self,
        words: str = "",
        *,
        name: str = "job",
        type: str = "batch",  # noqa: A002  Nomad's word
        boot: str | None = None,
        config: str = "",
        task: str = "",
        group: str = "",
        attempts: int = 0,
    ) -> Path:
        """A job file; its guest is booted directly and told `words`, unless `boot` says otherwise."""
        if boot is None:
            kernel = f'"{self.images}/kernel"' if self.hypervisor == "fake" else f'"{self.guest}/vmlinuz"'
            initrd = "" if self.hypervisor == "fake" else f'initrd = "{self.guest}/initrd.img"'
            boot = f'kernel = {kernel}\n{initrd}\ncmdline = "{build.CMDLINE} {words}"'
        timeout = "" if "kill_timeout" in task else 'kill_timeout = "30s"'
        path = self.base / "jobs" / f"{name}.nomad.hcl"
        path.write_text(
            f"""
job "{name}" {{
  type = "{type}"
  group "g" {{
    restart {{
      attempts = {attempts}
      delay    = "0s"
      mode     = "fail"
    }}
    {group}
    task "vm" {{
      driver = "chv"
      {timeout}
      {task}
      config {{
        {boot}
        placement = "shared"
        {config}
      }}
      resources {{
        cpu    = 100
        memory = 128
      }}
    }}
  }}
}}
"""
        )
        return path

    def host(self, job: Path, *, owner: str = "nomad", env: Mapping[str, str] | None = None) -> DevHost:
        """The embedded host for that job, not entered yet. The machines are an agent's unless `owner` says so."""
        return DevHost(
            read_job(job),
            plugin_argv=[str(self.chv)],
            agent_file=self.agent_file,
            alloc_parent=self.allocs,
            env={**self.environment, "CHV_OWNER": owner, **(env or {})},
        )

    def dev(self, job: Path, *options: str, env: Mapping[str, str] | None = None) -> "Dev":
        """`chv dev` as at a terminal: a process group of its own."""
        out, err = (self.base / "jobs" / f"{job.stem}.{stream}" for stream in ("out", "err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(
                [str(self.chv), "dev", "--config", str(self.agent_file), *options, str(job)],
                env={**os.environ, **self.environment, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )
        return Dev(child, out, err)

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """`chv WORDS` with this node's config."""
        return subprocess.run(
            [str(self.chv), *words],
            env={**os.environ, **self.environment, "CHV_CONFIG": str(self.agent_file), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    # -- what is there -----------------------------------------------------------------------------------------------

    def runs(self) -> list[RunPaths]:
        return [RunPaths(path) for path in self.layout.runs.iterdir()] if self.layout.runs.exists() else []

    @property
    def run(self) -> RunPaths:
        """Of the one machine that there is."""
        (run,) = self.runs()
        return run

    @property
    def vmm(self) -> Identity:
        return _known(self.run.vmm)

    @property
    def keeper(self) -> Identity:
        return _known(self.run.keeper)

    def machines(self) -> list[str]:
        """The names that have a directory."""
        root = self.layout.machines
        return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))

    def processes(self) -> dict[str, list[int]]:
        """The living processes that work in these directories, by what they are."""
        found: dict[str, list[int]] = {kind: [] for kind in NOTHING}
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                kind = _kind(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
                if kind and any(link.startswith(f"{self.base}/") for link in open_files(pid)):
                    found[kind].append(pid)
        return found

    def end_machines(self) -> None:
        """End what still runs and remove what the machines left, whatever became of the plugin."""
        machines = Machines(HostSettings(layout=self.layout), lambda _: (Fake(), "by the test"), attach)
        for mark in machines.marks():
            machines.remove(mark.name)
        reap()


@dataclass(slots=True)
class Dev:
    """A running `chv dev` and what it has written so far."""

    process: "subprocess.Popen[bytes]"
    out_file: Path
    err_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}\n{self.out}\n{self.err}"
            assert self.process.poll() is None, f"ended before {what}\n{self.out}\n{self.err}"
            time.sleep(0.02)

    def until_says(self, text: str) -> None:
        self.until(lambda: text in self.out or text in self.err, repr(text))

    def press_ctrl_c(self) -> None:
        """The terminal signals the whole foreground group, so the plugin gets it too."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end\n{self.out}\n{self.err}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


async def stop(host: DevHost) -> None:
    """The power button, the end of its own, and everything but the disks taken back."""
    client = await host.client()
    await client.stop_task(host.task_id, timeout_s=20)
    assert (await client.wait_task(host.task_id)).result.exit_code == 0
    await client.destroy_task(host.task_id)


def open_files(pid: int) -> list[str]:
    """What a process holds open, as /proc shows it."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def _known(identity_file: Path) -> Identity:
    who = process.load_identity(identity_file)
    assert who is not None, f"{identity_file} says nothing"
    return who


def _kind(cmdline: str) -> str:
    words = cmdline.split("\0")
    if any(word.endswith("vmlib/keeper/__main__.py") for word in words):
        return "keeper"
    if any(word.endswith("vmlib/launcher.py") for word in words):
        return "launcher"
    vmm = words[0].endswith("cloud-hypervisor") or "qemu-system" in words[0]
    return "vmm" if vmm or any(word.endswith("fake_vmm.py") for word in words) else ""


# ---------------------------------------------------------------------------------------------------------------------
# the embedded host, as tests look at it


async def until(
    condition: Callable[[], Any], what: str, *, host: DevHost | None = None, timeout_s: float = 60.0
) -> Any:
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{report(host) if host else ''}"
        await asyncio.sleep(0.02)
    return found


async def until_says(host: DevHost, text: str, *, count: int = 1) -> None:
    """Wait for words on the console."""
    await until(lambda: host.console().count(text) >= count, f"{count} x {text!r} on the console", host=host)


async def until_told(host: DevHost, text: str) -> None:
    """Wait for an event of the driver's."""
    await until(lambda: any(text in one for one in told(host)), f"an event {text!r}", host=host)


def told(host: DevHost) -> list[str]:
    """Events of the driver's."""
    return [event.message for event in host.events if event.type == "Driver"]


def kinds(host: DevHost) -> list[str]:
    """The words of DESIGN section 5 that the driver's events begin with."""
    return [event.details["kind"] for event in host.events if event.type == "Driver"]


def shown(host: DevHost) -> list[str]:
    """Events of the agent's own, `TYPE: MESSAGE`."""
    return [f"{event.type}: {event.message}" for event in host.events if event.type != "Driver"]


def ticks(host: DevHost) -> list[int]:
    return [int(number) for number in re.findall(r"^tick (\d+)\r?$", host.console(), re.MULTILINE)]


async def until_ticks_on(host: DevHost) -> None:
    """The console goes on from here, and until now not one tick is missing."""
    before = (ticks(host) or [0])[-1]
    await until(lambda: (ticks(host) or [0])[-1] > before + 2, "the console to go on", host=host)
    seen = ticks(host)
    assert seen == list(range(1, seen[-1] + 1))


async def kill_plugin(host: DevHost) -> PluginProcess:
    """SIGKILL, and wait for the next one, which is returned."""
    old = await host.supervisor.running()
    old.kill()
    async with asyncio.timeout(PATIENCE_S):
        return await host.supervisor.running(other_than=old)


def kill(who: Identity) -> None:
    """SIGKILL to that very process, and wait until it is gone."""
    assert process.send_signal(who, signal.SIGKILL)
    assert process.wait_gone(who, 10.0)


def report(host: DevHost) -> str:
    events = "\n".join(f"{event.type}: {event.message}" for event in host.events)
    return f"events:\n{events}\nconsole:\n{host.console()[-2000:]}\nstderr:\n{host.console('stderr')[-2000:]}"
