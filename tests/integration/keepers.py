"""Keepers of Cloud Hypervisor without a plugin: of a VMM that a test drives, or of a real one."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import driven_vmm
from tests.integration.machines import Log
from vmlib import postflight, process
from vmlib.errors import HypervisorError
from vmlib.keeper import client
from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import Layout, RunPaths
from vmlib.process import Identity
from vmlib.record import ExitRecord, load_exit

WAIT_S = 20.0
OPTIONS = ("--api-socket", "fd={fd:api}", "--event-monitor", "fd={fd:events}", "-v", "--seccomp", "true")


def cloud_plan(base: Path, argv: list[str]) -> KeeperPlan:
    """Of a VMM that runs as whoever runs the tests."""
    (base / "run" / "m" / "x").mkdir(mode=0o700, parents=True)
    return KeeperPlan(
        id="x/web/1",
        run_dir=str(base / "run" / "m" / "x"),
        exit_record=str(base / "exit.json"),
        stdout=str(base / "stdout"),
        stderr=str(base / "stderr"),
        argv=argv,
        listeners={"api": "api"},
        dialect="cloud-hypervisor",
        environment={"PATH": "/usr/bin:/bin"},
        uid=os.geteuid(),
        gid=os.getegid(),
    )


def driven_plan(base: Path) -> KeeperPlan:
    (base / "drive").mkdir(mode=0o700)
    return cloud_plan(base, [sys.executable, driven_vmm.__file__, str(base / "drive" / "sock"), *OPTIONS])


@dataclass(slots=True)
class Kept:
    """A keeper, its VMM and the two logs."""

    directory: Path
    plan: KeeperPlan
    out: Log
    err: Log
    lease: client.Lease = field(init=False)
    vmm: Identity = field(init=False)

    @property
    def run(self) -> RunPaths:
        return RunPaths(self.plan.run)

    def start(self) -> None:
        self.lease, self.vmm = client.start_keeper(self.plan)

    def show_console(self, path: str) -> None:
        self.lease.send({"console": path})
        answer = self.lease.receive()
        if answer != {"ok": True}:
            raise HypervisorError(str(answer))

    def pump(self) -> None:
        self.out.pump()
        self.err.pump()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}\n{self.report()}"
            self.pump()
            time.sleep(0.01)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.out.text, f"{text!r} on the console")

    def until_told(self, text: str) -> None:
        self.until(lambda: text in self.err.text, f"{text!r} in the log")

    def end(self, timeout_s: float = WAIT_S) -> ExitRecord:
        path = Path(self.plan.exit_record)
        self.until(lambda: load_exit(path, self.plan.id), "the end", timeout_s)
        record = load_exit(path, self.plan.id)
        assert record is not None
        self.pump()
        return record

    def kinds(self) -> list[str]:
        found = []
        with client.Connection.open(self.run.control) as connection:
            connection.ask("subscribe")
            with contextlib.suppress(TimeoutError):
                while (message := connection.receive(0.2)) is not None:
                    found.append(str(message["event"]["kind"]))
        return found

    def keeper(self) -> Identity:
        who = process.load_identity(self.run.keeper)
        assert who is not None
        return who

    def kill_keeper(self) -> None:
        who = self.keeper()
        assert process.send_signal(who, signal.SIGKILL)
        assert process.wait_gone(who, 5.0)

    def report(self) -> str:
        log = self.run.keeper_log
        return f"console: {self.out.text[-2000:]}\nstderr: {self.err.text[-2000:]}\nkeeper: {log.read_text()}"

    def close(self) -> None:
        undo = postflight.actions(Layout(self.directory / "data", self.directory / "run"))
        undo["machine.end"](run_dir=str(self.run.root))
        undo["run_dir.remove"](path=str(self.run.root))
        for thing in (getattr(self, "lease", None), self.out, self.err):
            if thing is not None:
                thing.close()
        client.reap()


@dataclass(slots=True)
class Driven(Kept):
    """One whose VMM does what it is told."""

    drive: socket.socket = field(init=False)

    def connect(self) -> None:
        self.drive = socket.socket(socket.AF_UNIX)
        self.drive.settimeout(WAIT_S)
        path = self.directory / "drive" / "sock"
        self.until(path.exists, "the VMM")
        self.until(lambda: self.drive.connect_ex(str(path)) == 0, "the VMM")

    def boot(self) -> None:
        """What the plugin does, up to the commit."""
        self.connect()
        self.show_console(self("pty", True))
        self("close_slave", True)
        self("event", ["vm", "booting"])
        self("event", ["vm", "booted"])
        self.lease.commit()

    def __call__(self, name: str, value: Any) -> Any:
        """Have the VMM do one step. Raises ConnectionError when that was its last."""
        self.drive.sendall(json.dumps({name: value}).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self.drive.recv(1 << 16)
            if not piece:
                raise ConnectionResetError(f"the VMM ended at {name}")
            answer += piece
        return json.loads(answer)

    def last(self, name: str, value: Any) -> None:
        """A step that it does not survive."""
        with contextlib.suppress(ConnectionError):
            self(name, value)

    def reboot(self) -> None:
        self("event", ["vm", "rebooting"])
        self("pty", True)
        self("event", ["vm", "rebooted"])

    def power_off(self) -> None:
        for words in (["virtio-device", "reset", {"id": "root"}], ["vm", "shutdown"], ["vm", "deleted"]):
            self("event", words)
        self("event", ["vmm", "shutdown"])
        self.last("exit", 0)

    def close(self) -> None:
        Kept.close(self)
        if hasattr(self, "drive"):
            self.drive.close()


@contextlib.contextmanager
def driven_by(plan: KeeperPlan) -> Iterator[Driven]:
    yield from _kept(Driven(*_places(plan)))


@contextlib.contextmanager
def kept_by(plan: KeeperPlan) -> Iterator[Kept]:
    yield from _kept(Kept(*_places(plan)))


def _places(plan: KeeperPlan) -> tuple[Path, KeeperPlan, Log, Log]:
    return Path(plan.exit_record).parent, plan, Log(Path(plan.stdout)), Log(Path(plan.stderr))


def _kept(one: Any) -> Iterator[Any]:
    try:
        one.start()
        yield one
    finally:
        one.close()
