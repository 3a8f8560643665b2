"""What the guest agent costs: a command by it over one by ssh, bytes by it over the bare channel. One Debian guest."""

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import setup as machine_setup
from tests.bench.measure import LeftOutError, Line, Settings, in_turns, line, say
from tests.bench.start import machines_in
from tests.guest import cloud
from tests.nomad.agent import free_ports
from vmlib.guest.session import Event, Exited, Ready, Said, Session
from vmlib.running import Machine
from vmlib.spec import FileRef, MachineSpec, NicSpec, PortForward, RootDisk, SeedSpec, UserLink

BOOT_S = 300.0
BYTES = 8 << 20
PORT = "/dev/virtio-ports/org.chv.agent.0"
_EXECS = 10  # for each measurement, because one is short


@dataclass
class Agent:
    """The host's end, without a plugin."""

    machine: Machine
    sock: socket.socket = field(init=False)

    def connect(self) -> None:
        self.sock = self.machine.agent_socket()
        self.session = Session(time.monotonic())
        self.session.begin()

    def until(self, wanted: Callable[[Event], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self._send()
            if not select.select([self.sock], [], [], 1.0)[0]:
                if time.monotonic() > deadline:
                    raise LeftOutError(f"the guest agent did not answer within {timeout_s:.0f} s")
                self.session.tick(time.monotonic())
                continue
            events = self.session.feed(self.sock.recv(1 << 16), time.monotonic())
            for event in events:
                if isinstance(event, Said):
                    self.session.took(event.stream, len(event.data))
            if any(map(wanted, events)):
                return

    def run(self, *argv: str) -> None:
        number = self.session.open({"op": "exec", "argv": list(argv)})
        self.session.end_input(number)
        self.until(lambda event: isinstance(event, Exited) and event.stream == number, 120.0)

    def _send(self) -> None:
        self.sock.setblocking(True)
        self.sock.sendall(self.session.outgoing())
        self.sock.setblocking(False)


@dataclass(frozen=True)
class Ssh:
    """One open connection to the same guest, on which each command is a session of its own."""

    argv: list[str]

    def run(self, *words: str, check: bool = True) -> None:
        subprocess.run([*self.argv, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=check)


def run_exec(settings: Settings) -> list[Line]:
    with debian(settings, "exec") as (agent, ssh):

        def ours() -> float:
            return timed(lambda: agent.run("true"), times=_EXECS)

        def theirs() -> float:
            return timed(lambda: ssh.run("true"), times=_EXECS)

        baseline, measured = in_turns([theirs, ours], pairs=settings.pairs)
    return [
        line(
            "exec round trip",
            "`true` in the guest by its agent / by ssh on an open connection, the client's start included",
            ours=measured,
            baseline=baseline,
        )
    ]


def run_throughput(settings: Settings) -> list[Line]:
    blocks = f"count={BYTES >> 15}"
    with debian(settings, "bytes") as (agent, ssh):

        def ours() -> float:
            return timed(lambda: agent.run("dd", "if=/dev/zero", "bs=32k", blocks, "status=none"))

        def theirs() -> float:
            ssh.run("sudo", "systemctl", "stop", "chv-agent")
            writer = subprocess.Popen(
                [*ssh.argv, "sudo", "dd", "if=/dev/zero", f"of={PORT}", "bs=32k", blocks], stderr=subprocess.DEVNULL
            )
            took = timed(lambda: read_bytes(agent.sock))
            writer.wait(60)
            ssh.run("sudo", "systemctl", "start", "chv-agent")
            agent.until(lambda event: isinstance(event, Ready), 60.0)
            return took

        baseline, measured = in_turns([theirs, ours], pairs=settings.pairs)
    return [
        line(
            "agent throughput",
            f"{BYTES >> 20} MiB out of the guest by a command's output / written to the bare channel; time",
            ours=measured,
            baseline=baseline,
        )
    ]


def timed(what: Callable[[], object], *, times: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        what()
    return time.perf_counter() - begin


def read_bytes(sock: socket.socket) -> None:
    """All of them, from the first one on."""
    left = BYTES
    while left > 0:
        if not select.select([sock], [], [], 120.0)[0]:
            raise LeftOutError("the bare channel was silent for two minutes")
        left -= len(sock.recv(1 << 16))


@contextmanager
def debian(settings: Settings, name: str) -> Iterator[tuple[Agent, Ssh]]:
    if not cloud.is_current(machine_setup.cache_dir()):
        raise LeftOutError("no Debian image: `make cloud` builds one")
    directory = settings.directory(name)
    key = directory / "key"
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30)
    except FileNotFoundError:
        raise LeftOutError("no ssh here") from None
    (port,) = free_ports(1)
    with ExitStack() as stack:
        machines = stack.enter_context(machines_in(directory))
        say("a Debian guest boots")
        agent = Agent(machines.start(_spec(name, port, Path(f"{key}.pub").read_text())))
        agent.connect()
        stack.callback(agent.sock.close)
        agent.until(lambda event: isinstance(event, Ready), BOOT_S)
        ssh = Ssh(_ssh_argv(directory, port))
        stack.callback(ssh.run, "-O", "exit", check=False)
        deadline = time.monotonic() + BOOT_S
        while subprocess.run([*ssh.argv, "true"], capture_output=True, timeout=60, check=False).returncode:
            if time.monotonic() > deadline:
                raise LeftOutError("the guest's sshd did not let us in")
            time.sleep(1)
        yield agent, ssh


def _spec(name: str, port: int, key: str) -> MachineSpec:
    image = cloud.image_in(machine_setup.cache_dir())
    forward = PortForward(label="ssh", host_ip="127.0.0.1", host_port=port, guest_port=22)
    return MachineSpec(
        id=f"bench/{name}/1",
        name=f"bench/{name}",
        owner="run",
        vcpus=1,
        memory_mib=512,
        root=RootDisk(image=FileRef(root=image.parent, relative=image.name), format="qcow2"),
        seed=SeedSpec(instance_id=name, hostname=name, ssh_authorized_keys=(key.strip(),), agent=True),
        nics=(NicSpec(network="user0", link=UserLink(forwards=(forward,)), mac="52:54:00:12:34:56"),),
        agent=True,
    )


def _ssh_argv(directory: Path, port: int) -> list[str]:
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": os.devnull,
        "LogLevel": "ERROR",
        "ControlMaster": "auto",
        "ControlPath": str(directory / "ssh"),
        "ControlPersist": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", *words, "-i", str(directory / "key"), "-p", str(port), "debian@127.0.0.1"]
