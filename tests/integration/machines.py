"""Machines without Nomad: a host directory, the two logs, and a start in a process of its own that may be killed.

Run as `python -m tests.integration.machines JSON` it starts the machine that `Host.elsewhere` described, says `started`
and waits for the end of its input.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests import needs
from tests.guest import build
from vmlib import probe, process
from vmlib.hypervisor.base import Hypervisor
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import Connection, reap
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.process import Identity
from vmlib.record import ExitRecord
from vmlib.running import Machine
from vmlib.settings import HostSettings
from vmlib.spec import (
    BridgeLink,
    CoresSpec,
    DirectBoot,
    DiskKey,
    DiskSpec,
    FileRef,
    Link,
    MachineSpec,
    MacvtapLink,
    MountSpec,
    NetnsLink,
    NicSpec,
    RootDisk,
    UserLink,
)

CHECKOUT = Path(__file__).parent.parent.parent
READY = "chv test guest: ready"
NOTHING: dict[str, list[int]] = {"keeper": [], "vmm": [], "launcher": []}
# A uid for each machine needs a Python that every user may run; the fake's may lie in a home directory.
UIDS = {"qemu": range(210_000, 210_008), "cloud-hypervisor": range(210_000, 210_008), "fake": None}

# A persistent disk, the same for all who ask for it.
DATA = DiskSpec(
    name="data",
    format="raw",
    size_bytes=8 << 20,
    serial="data",
    persistent=DiskKey(namespace="default", job="db", group="g", index=0, name="data"),
)


def hypervisor_of(name: str, *, binary: str = "") -> Hypervisor:
    if name == "fake":
        return Fake()
    if name == "cloud-hypervisor":
        return CloudHypervisor(binary=binary or str(needs.find_cloud_hypervisor()), version="53.0")
    return Qemu(binary=binary or probe.qemu_program("qemu-system-x86_64").path)


def root_of(guest: Path, image: str) -> RootDisk:
    return RootDisk(image=FileRef(root=guest, relative=image), format="qcow2")


class Log:
    """One log of the task, read as Nomad's logmon reads it: one end only, until told to stop."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.data = b""
        self.ended = False
        self.paused = False
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def pump(self) -> None:
        while not self.paused:
            try:
                piece = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            if not piece:
                # Before the first writer has come that means nothing.
                self.ended = bool(self.data)
                return
            self.data += piece

    def close(self) -> None:
        os.close(self._fd)

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(slots=True)
class Running:
    """A started machine and its two logs."""

    host: "Host"
    spec: MachineSpec
    machine: Machine
    out: Log
    err: Log

    @property
    def vmm(self) -> int:
        return self.machine.record.vmm_pid

    @property
    def keeper(self) -> Identity:
        who = process.load_identity(self.machine.run.keeper)
        assert who is not None
        return who

    def pump(self) -> None:
        self.out.pump()
        self.err.pump()

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Read the logs until `condition` holds; fails the test after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}\n{self.report()}"
            self.pump()
            time.sleep(0.01)

    def until_line(self, text: str, *, count: int = 1, timeout_s: float = 60.0) -> None:
        self.until(lambda: self.out.text.count(text) >= count, f"{count} x {text!r} on the console", timeout_s)

    def until_told(self, text: str, timeout_s: float = 60.0) -> None:
        self.until(lambda: text in self.err.text, f"{text!r} in the stderr log", timeout_s)

    def end(self, timeout_s: float = 60.0) -> ExitRecord:
        """Wait for the end while the logs are read."""
        record: ExitRecord | None = None

        def ended() -> bool:
            nonlocal record
            record = self.machine.wait(0.0)
            return record is not None

        self.until(ended, "the end", timeout_s)
        self.pump()
        assert record is not None
        return record

    def pass_time(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.pump()
            time.sleep(0.02)

    def ask(self, op: str, **details: Any) -> dict[str, Any]:
        with Connection.open(self.machine.run.control) as connection:
            return connection.ask(op, **details)

    def events(self) -> list[tuple[str, str]]:
        """Kind and text of what the keeper has told; it forgets none as long as nobody says that he has it."""
        with Connection.open(self.machine.run.control) as connection:
            connection.ask("subscribe")
            found = []
            with contextlib.suppress(TimeoutError):
                while (message := connection.receive(0.2)) is not None:
                    found.append((str(message["event"]["kind"]), str(message["event"]["text"])))
            return found

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events()]

    def kill_keeper(self) -> Identity:
        """SIGKILL, and wait until it is gone. Returns who it was."""
        who = self.keeper
        assert process.send_signal(who, signal.SIGKILL)
        assert process.wait_gone(who, 5.0)
        return who

    def report(self) -> str:
        """All that is known, for the message of a failed test."""
        log = self.machine.run.keeper_log
        words = log.read_text() if log.exists() else "gone"
        return f"console: {self.out.text[-2000:]}\nstderr: {self.err.text[-2000:]}\nkeeper: {words}"


@dataclass(slots=True)
class Host:
    """Directories of an operator's, and machines in them."""

    directory: Path
    guest: Path  # directory of the test guest
    name: str  # of the hypervisor
    binary: str = ""
    hooks: tuple[str, ...] = ()
    root: Path = Path("/")  # of what it takes for the host's devices
    uids: range | None = None  # other ones than its hypervisor's
    user: str = ""  # one for all machines, instead of uids
    logs: list[Log] = field(default_factory=list)
    count: int = 0

    @property
    def layout(self) -> Layout:
        return Layout(self.directory / "data", self.directory / "run")

    @property
    def machines(self) -> Machines:
        """As a new process would make it: nothing is remembered."""
        settings = HostSettings(
            layout=self.layout,
            vm_uids=None if self.user else self.uids or UIDS[self.name],
            vm_user=self.user,
            hooks=self.hooks,
            host_root=self.root,
        )
        hypervisor = hypervisor_of(self.name, binary=self.binary)
        return Machines(settings, lambda _: (hypervisor, "by the test"), attach)

    def spec(self, words: str = "", *, task: str = "web", **changes: Any) -> MachineSpec:
        """A new start of the task's machine, its guest told `words`."""
        # Groups are named after the id, and another test run may be under way on this host.
        machine_id = f"{self.directory.name}/{task}/{self.count}"
        self.count += 1
        spec = MachineSpec(
            id=machine_id,
            name=f"alloc/{task}",
            owner="dev",
            vcpus=1,
            memory_mib=128,
            boot=DirectBoot(
                kernel=FileRef(root=self.guest, relative="vmlinuz"),
                initrd=FileRef(root=self.guest, relative="initrd.img"),
                cmdline=f"{build.CMDLINE} {words}".strip(),
            ),
        )
        return replace(spec, **changes)

    def start(self, words: str = "", *, task: str = "web", **changes: Any) -> Running:
        return self.run(self.spec(words, task=task, **changes))

    def run(self, spec: MachineSpec) -> Running:
        """Start that spec, with logs of its own unless it names some."""
        if spec.stdout == Path("/dev/null"):
            names = [self.directory / f"{kind}.{len(self.logs)}" for kind in ("stdout", "stderr")]
            self.logs += [Log(path) for path in names]
            spec = replace(spec, stdout=names[0], stderr=names[1])
        out, err = (next(log for log in self.logs if log.path == path) for path in (spec.stdout, spec.stderr))
        return Running(self, spec, self.machines.start(spec), out, err)

    def processes(self) -> dict[str, list[int]]:
        """The living processes that work in these directories, by what they are."""
        found: dict[str, list[int]] = {kind: [] for kind in NOTHING}
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                kind = _kind((Path("/proc", pid, "cmdline")).read_bytes().decode(errors="replace"))
                if kind and self._works_here(int(pid)):
                    found[kind].append(int(pid))
        return found

    def _works_here(self, pid: int) -> bool:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(link).startswith(str(self.directory)):
                    return True
        return False

    def elsewhere(self, spec: MachineSpec, *, do: str = "start", failpoint: str = "") -> "subprocess.Popen[bytes]":
        """Start (or settle) that machine from another process, which dies at `failpoint` if one is named."""
        environment = dict(os.environ)
        environment.pop("CHV_FAILPOINT", None)
        if failpoint:
            marker = self.directory / "marker"
            marker.touch()
            environment["CHV_FAILPOINT"] = f"{failpoint}:{marker}"
        assert spec.boot is not None
        what = {
            "do": do,
            "directory": str(self.directory),
            "guest": str(self.guest),
            "name": self.name,
            "id": spec.id,
            "task": spec.name.partition("/")[2],
            "cmdline": spec.boot.cmdline,
            "stdout": str(spec.stdout),
            "stderr": str(spec.stderr),
            "image": "" if spec.root is None else str(spec.root.image.relative),
            "exclusive": spec.cores.exclusive,
            "persistent": bool(spec.disks),
            "hooks": self.hooks,
            "labels": dict(spec.labels),
            "alive_while": str(spec.alive_while or ""),
            "nics": [_nic_words(nic) for nic in spec.nics],
            "shared": [str(mount.source) for mount in spec.mounts],
            "root": str(self.root),
            "uids": None if self.uids is None else [self.uids.start, self.uids.stop],
            "vfio": spec.vfio,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.machines", json.dumps(what)],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def _nic_words(nic: NicSpec) -> tuple[str, str, str]:
    match nic.link:
        case MacvtapLink(parent=parent):
            return "macvtap", parent, nic.mac
        case BridgeLink(bridge=bridge):
            return "bridge", bridge, nic.mac
        case NetnsLink(netns=netns):
            return "netns", str(netns), nic.mac
        case UserLink():
            return "user", "", nic.mac


def _nic_of(kind: str, where: str, mac: str) -> NicSpec:
    links: dict[str, Callable[[], Link]] = {
        "macvtap": lambda: MacvtapLink(parent=where),
        "bridge": lambda: BridgeLink(bridge=where),
        "netns": lambda: NetnsLink(netns=Path(where)),
        "user": UserLink,
    }
    return NicSpec(network="lan", link=links[kind](), mac=mac)


def _kind(cmdline: str) -> str:
    words = cmdline.split("\0")
    if any(word.endswith("vmlib/keeper/__main__.py") for word in words):
        return "keeper"
    if any(word.endswith("vmlib/launcher.py") for word in words):
        return "launcher"
    vmm = words[0].endswith("cloud-hypervisor") or "qemu-system" in words[0]
    return "vmm" if vmm or any(word.endswith("fake_vmm.py") for word in words) else ""


@contextlib.contextmanager
def host_for(directory: Path, guest: Path, name: str, *, kind: type[Host] = Host) -> Iterator[Host]:
    """A host whose machines are ended when the block ends; what they leave even then fails the test."""
    layout = Layout(directory / "data", directory / "run")
    layout.data_dir.mkdir()
    layout.run_dir.mkdir()
    host = kind(directory, guest, name)
    try:
        yield host
    finally:
        for mark in host.machines.marks():
            host.machines.remove(mark.name)
        for log in host.logs:
            log.close()
        reap()
    assert host.processes() == NOTHING
    assert not layout.runs.exists() or list(layout.runs.iterdir()) == []


def main() -> None:
    what = json.loads(sys.argv[1])
    host = Host(
        Path(what["directory"]),
        Path(what["guest"]),
        what["name"],
        hooks=tuple(what["hooks"]),
        root=Path(what["root"]),
        uids=range(*what["uids"]) if what["uids"] else None,
    )
    spec = host.spec(task=what["task"])
    assert spec.boot is not None
    spec = replace(
        spec,
        id=what["id"],
        boot=replace(spec.boot, cmdline=what["cmdline"]),
        stdout=Path(what["stdout"]),
        stderr=Path(what["stderr"]),
        root=root_of(host.guest, what["image"]) if what["image"] else None,
        cores=CoresSpec(exclusive=what["exclusive"]),
        disks=(DATA,) if what["persistent"] else (),
        labels=what["labels"],
        alive_while=Path(what["alive_while"]) if what["alive_while"] else None,
        nics=tuple(_nic_of(*words) for words in what["nics"]),
        mounts=tuple(MountSpec(source=Path(path), guest_path="/srv/data") for path in what["shared"]),
        vfio=tuple(what["vfio"]),
    )
    if what["do"] == "start":
        host.machines.start(spec)
    else:
        host.machines.recover(spec.name, spec.id).settle()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
