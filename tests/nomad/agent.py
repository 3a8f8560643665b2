"""A real Nomad agent of our own: on loopback, with free ports, in directories that the caller gives it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.networks import Namespace

READY_S = 90.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPaths:
    """Where one agent keeps its things. `base` must be short: the plugin's sockets lie below it."""

    base: Path

    @property
    def config(self) -> Path:
        return self.base / "agent.hcl"

    @property
    def nomad_data(self) -> Path:
        return self.base / "nomad"

    @property
    def chv_data(self) -> Path:
        return self.base / "data"

    @property
    def chv_run(self) -> Path:
        return self.base / "run"

    @property
    def temp(self) -> Path:
        """TMPDIR of the agent and its plugins."""
        return self.base / "tmp"

    @property
    def log(self) -> Path:
        return self.base / "agent.log"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody holds now."""
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def agent_config(
    paths: AgentPaths,
    *,
    plugin_dir: Path,
    guest_dir: Path,
    ports: list[int],
    dev: bool,
    more_drivers: Sequence[str] = (),
    interface: str = "lo",
    networks_block: str = "",
    cores_block: str = "",
    client_block: str = "",
    more_plugins: str = "",
) -> str:
    """The agent file. Nothing in it reaches beyond loopback, unless `interface` is another: that is where ports of
    jobs are. `more_drivers` are Nomad's own, beside ours.

    `networks_block` and `cores_block` go into our plugin block, `client_block` into the client's, `more_plugins`
    beside ours.
    """
    http, rpc, serf = ports
    data_dir = "" if dev else f'data_dir = "{paths.nomad_data}"'
    server = "" if dev else "server {\n  enabled = true\n  bootstrap_expect = 1\n}"
    return f"""
{data_dir}
bind_addr            = "127.0.0.1"
plugin_dir           = "{plugin_dir}"
disable_update_check = true
log_level            = "DEBUG"
leave_on_terminate   = false
leave_on_interrupt   = false
ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}
advertise {{
  http = "127.0.0.1:{http}"
  rpc  = "127.0.0.1:{rpc}"
  serf = "127.0.0.1:{serf}"
}}
{server}
client {{
  enabled           = true
  network_interface = "{interface}"
  options = {{
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean,consul,vault"
    "driver.allowlist"     = "{",".join(["chv", *more_drivers])}"
  }}
  meta {{
    chv_guest = "{guest_dir}"
  }}
  {client_block}
}}
consul {{
  address          = "127.0.0.1:1"
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}}
vault {{
  enabled = false
}}
telemetry {{
  publish_allocation_metrics = true
}}
plugin "chv" {{
  config {{
    data_dir    = "{paths.chv_data}"
    run_dir     = "{paths.chv_run}"
    image_paths = ["{guest_dir}"]
    vm_uids     = "210000-210099"
    network "user0" {{
      mode = "user"
    }}
    {networks_block}
    {cores_block}
  }}
}}
{more_plugins}
{"".join(_PLUGINS[name].format(guest_dir=guest_dir) for name in more_drivers)}"""


# What Nomad's own drivers need to be told.
_PLUGINS = {
    "raw_exec": 'plugin "raw_exec" {{\n  config {{\n    enabled = true\n  }}\n}}\n',
    "qemu": 'plugin "qemu" {{\n  config {{\n    image_paths = ["{guest_dir}"]\n  }}\n}}\n',
}


@dataclass(slots=True)
class Agent:
    """One agent, from start to end. `dev` keeps nothing over a restart."""

    binary: str
    paths: AgentPaths
    plugin_dir: Path
    guest_dir: Path
    dev: bool = False
    more_drivers: tuple[str, ...] = ()
    space: Namespace | None = None  # the network namespace it runs in; None = that of the tests
    interface: str = "lo"
    networks_block: str = ""
    cores_block: str = ""
    client_block: str = ""
    more_plugins: str = ""
    env: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def start(self) -> None:
        """Start the agent and wait until it has a node that is ready and knows our driver."""
        self.paths.temp.mkdir(parents=True, exist_ok=True)
        self.paths.config.write_text(
            agent_config(
                self.paths,
                plugin_dir=self.plugin_dir,
                guest_dir=self.guest_dir,
                ports=self.ports,
                dev=self.dev,
                more_drivers=self.more_drivers,
                interface=self.interface,
                networks_block=self.networks_block,
                cores_block=self.cores_block,
                client_block=self.client_block,
                more_plugins=self.more_plugins,
            )
        )
        argv = [self.binary, "agent", *(["-dev"] if self.dev else []), f"-config={self.paths.config}"]
        with open(self.paths.log, "ab") as log:
            # A session of its own: a ^C at the terminal is for whoever started us, who then stops the agent.
            self.process = self.inside(
                lambda: subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"TMPDIR": str(self.paths.temp)} | self.env,
                    start_new_session=True,
                )
            )
        self.wait_for("the node to be ready with a healthy driver", self._driver_healthy, timeout_s=READY_S)

    def inside(self, func: Callable[[], T]) -> T:
        """Call `func` where the agent's network is."""
        return func() if self.space is None else self.space.do(func)

    def _driver_healthy(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the agent ended with {self.process.returncode}: {self.log_tail()}")
        with contextlib.suppress(OSError):
            for node in self.get("/v1/nodes"):
                driver = (node.get("Drivers") or {}).get("chv") or {}
                if node["Status"] == "ready" and driver.get("Healthy"):
                    return True
        return False

    def log_tail(self, lines: int = 40) -> str:
        every = self.paths.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in every if "http: request complete" not in line][-lines:])

    def stop(self) -> None:
        """End the agent as its service manager would. Its tasks go on unless it is a dev agent."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    # -- what a person would type --------------------------------------------------------------------------------

    def command(self, *words: str, check: bool = True, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run `nomad WORDS` against this agent."""
        done = self.inside(
            lambda: subprocess.run(
                [self.binary, *words],
                env=os.environ | {"NOMAD_ADDR": self.address},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"nomad {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def get(self, path: str) -> Any:
        def ask() -> Any:
            with urllib.request.urlopen(self.address + path, timeout=10) as answer:
                return json.load(answer)

        return self.inside(ask)

    def run_job(self, path: Path, *more: str) -> str:
        """`nomad job run`; returns the job's id."""
        self.command("job", "run", "-detach", *more, str(path))
        return str(json.loads(self.command("job", "run", "-output", *more, str(path)).stdout)["Job"]["ID"])

    def purge_jobs(self) -> None:
        """Stop every job, wait until each of its allocs has ended, then forget it."""
        jobs = [job["ID"] for job in self.get("/v1/jobs")]
        for job in jobs:
            self.command("job", "stop", "-detach", job)
        ended = ("complete", "failed", "lost")
        # Before the purge: the server forgets a purged job's allocs at once, whether they have ended or not.
        self.wait_for(
            "all allocs to end", lambda: all(one["ClientStatus"] in ended for one in self.get("/v1/allocations"))
        )
        for job in jobs:
            self.command("job", "stop", "-purge", "-detach", job)

    def allocs(self, job: str) -> list[dict[str, Any]]:
        """Newest first."""
        found = self.get(f"/v1/job/{job}/allocations")
        return sorted(found, key=lambda alloc: -int(alloc["CreateIndex"]))

    def alloc(self, alloc_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/allocation/{alloc_id}")
        return found

    def task_events(self, alloc_id: str, task: str) -> list[tuple[str, str]]:
        """Type and shown message of each event, oldest first."""
        state = (self.alloc(alloc_id)["TaskStates"] or {}).get(task) or {"Events": []}
        return [(event["Type"], event["DisplayMessage"]) for event in state["Events"]]

    def logs(self, alloc_id: str, *, stderr: bool = False) -> str:
        return self.command("alloc", "logs", *(["-stderr"] if stderr else []), alloc_id, check=False).stdout

    def wait_alloc(self, job: str, *statuses: str, timeout_s: float = 60.0) -> str:
        """The id of the job's newest alloc once its client status is one of `statuses`."""

        def reached() -> str | None:
            for alloc in self.allocs(job)[:1]:
                if alloc["ClientStatus"] in statuses:
                    return str(alloc["ID"])
            return None

        return str(self.wait_for(f"alloc of {job} to be {' or '.join(statuses)}", reached, timeout_s=timeout_s))

    def wait_for(self, what: str, look: Callable[[], Any], *, timeout_s: float = 60.0) -> Any:
        """Poll until `look` gives something true. Raises TimeoutError that names `what`."""
        deadline = time.monotonic() + timeout_s
        while True:
            if found := look():
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}; the agent's last words:\n{self.log_tail()}")
            time.sleep(0.2)


@contextlib.contextmanager
def running(agent: Agent) -> Iterator[Agent]:
    """Start, and at the end stop, also when the block raises."""
    try:
        agent.start()
        yield agent
    finally:
        agent.stop()
