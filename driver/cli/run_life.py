"""The life of a machine that `chv run` starts: at its console, left to itself, stopped by a signal, taken back.

Whoever sees to the machine holds a lock beside it. Where nobody does and it has ended, `chv gc` removes it; one that
still runs is left alone, for `chv stop`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from driver.cli.errors import NoMachineError
from driver.cli.itself import this_command
from driver.cli.run_settings import RunSettings
from driver.cli.terminal import LEAVE, SIGNALS, Keyboard, ended_by_signals, handled, me, say, write
from vmlib import files, process, version
from vmlib.disk.intake import Tell
from vmlib.errors import HypervisorError, VmError
from vmlib.hypervisor.select import attach, choose, probe_offers
from vmlib.keeper.client import Console
from vmlib.machine import Machines
from vmlib.paths import Layout, MachinePaths
from vmlib.preflight import make_private
from vmlib.record import ExitRecord
from vmlib.running import Machine
from vmlib.spec import MachineSpec

_READ = 1 << 16
_AHEAD = 1 << 16  # typed and not yet taken by the keeper
_LAST_WORDS_S = 5.0  # for a keeper to pass on what its guest said last
_LOOK_S = 1.0
_WATCH_S = 5.0  # between two looks at a machine that nobody attends


class Life:
    """One machine, and who sees to it: this process."""

    def __init__(self, machines: Machines, machine: Machine, *, stop_timeout_s: float) -> None:
        self.machines = machines
        self.machine = machine
        self.out, self.err = -1, -1
        self.left = False
        self._stop_timeout_s = stop_timeout_s
        self._signals = 0
        self._stopping: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.machine.record.name

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The first one asks the guest, the next one does not."""
        self._signals += 1
        if self._signals > 1:
            self.machine.kill()
            return
        self._stopping = threading.Thread(target=self._stop, daemon=True)
        self._stopping.start()

    def _stop(self) -> None:
        with contextlib.suppress(VmError):  # it is over by the next look, or the next signal kills it
            self.machine.stop(self._stop_timeout_s)

    def leave(self, config: Path | None) -> None:
        """Have another process see to the machine."""
        named = str(config or os.environ.get("CHV_CONFIG", ""))
        option = ["--config", str(Path(named).absolute())] if named else []
        timeout = f"{self._stop_timeout_s:g}s"
        subprocess.Popen(
            [*this_command(), "run", "--wait-for", self.name, "--stop-timeout", timeout, *option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.left = True

    def end(self) -> ExitRecord | None:
        """How it ended; waits for whoever writes that down."""
        if self._stopping is not None:
            self._stopping.join(_LAST_WORDS_S)
        try:
            return self.machine.settle()
        except VmError:
            return self.machine.exit_record()

    def remove(self) -> None:
        """Take back everything, running or not."""
        self.machines.remove(self.name)


def machines_of(settings: RunSettings) -> Machines:
    return Machines(settings.host, lambda spec: choose(spec, probe_offers(settings.hypervisors)), attach)


def lock_of(paths: MachinePaths) -> Path:
    """Held by whoever sees to a machine of `chv run`."""
    return paths.root / "run.lock"


def unattended(machines: Machines, layout: Layout) -> Iterator[str]:
    """Machines of `chv run` that have ended, or never came to run, while nobody saw to them, by name."""
    marks = {mark.name: mark for mark in machines.marks()}
    for root in sorted(layout.machines.glob("run-*/*")):
        name = str(root.relative_to(layout.machines))
        if name in marks and marks[name].owner != "run":
            continue
        machine = machines.find(name)
        if not attended(layout.machine(name)) and (machine is None or not machine.running()):
            yield name


def attended(paths: MachinePaths) -> bool:
    """Whether somebody sees to it, or nobody has to any more."""
    try:
        with files.locked(lock_of(paths), blocking=False):
            return False
    except (BlockingIOError, FileNotFoundError):
        return True


@contextlib.contextmanager
def start(settings: RunSettings, spec: MachineSpec, *, stop_timeout_s: float) -> Iterator[Life]:
    """A machine whose guest runs; at the end it is removed, unless it was left to somebody else. Raises VmError."""
    machines = machines_of(settings)
    version.expect_ours(settings.host.layout)
    paths = settings.host.layout.machine(spec.name)
    with contextlib.ExitStack() as held, ended_by_signals():
        for directory in (settings.host.layout.data_dir, settings.host.layout.machines, paths.root):
            make_private(directory)
        held.enter_context(files.locked(lock_of(paths)))
        life: Life | None = None
        try:
            streams = []
            for name in ("stdout", "stderr"):
                os.mkfifo(paths.root / name, 0o600)
                streams.append(os.open(paths.root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                held.callback(os.close, streams[-1])
            spec = replace(spec, stdout=paths.root / "stdout", stderr=paths.root / "stderr")
            machines.bring_images(spec, _progress())
            life = Life(machines, machines.start(spec), stop_timeout_s=stop_timeout_s)
            life.out, life.err = streams
            yield life
        finally:
            if life is None or not life.left:
                for number in SIGNALS:  # what is taken back halfway is for `chv gc`
                    signal.signal(number, signal.SIG_IGN)
                machines.remove(spec.name)


def attend(life: Life, config: Path | None) -> int:
    """Show the console and pass on what is typed, until the machine ends or is left. Returns the exit code."""
    keyboard = Keyboard.standard_input(watch=False)
    if keyboard.terminal:
        say(keyboard, f"{life.name}, Ctrl-] leaves it running")
    with handled(life.on_signal), keyboard.raw():
        if _Attendance(life, keyboard).go_on():
            life.leave(config)
    if life.left:
        say(keyboard, f"{life.name} goes on: `chv console {life.name}` shows it, `chv stop {life.name}` ends it")
        return 0
    return _code(life)


def wait_for(settings: RunSettings, name: str, *, stop_timeout_s: float) -> int:
    """See to a machine that another process has left, to its end."""
    machines = machines_of(settings)
    paths = settings.host.layout.machine(name)
    if (machine := machines.find(name)) is None or machine.record.owner != "run":
        raise NoMachineError(f"no machine {name!r} of chv run")
    with contextlib.ExitStack() as held:
        held.enter_context(files.locked(lock_of(paths)))
        life = Life(machines, machine, stop_timeout_s=stop_timeout_s)
        with handled(life.on_signal):
            while not process.wait_gone(machine.vmm_identity, _WATCH_S):
                with contextlib.suppress(VmError):  # a machine without a keeper gets another one
                    machine.settle()
        code = _code(life)
        with contextlib.suppress(FileNotFoundError):  # `chv stop` was here first
            life.remove()
    return code


class _Attendance:
    """Standard input to the console, both logs to our own streams."""

    def __init__(self, life: Life, keyboard: Keyboard) -> None:
        self._life = life
        self._keyboard = keyboard
        self._reads = keyboard.fd >= 0
        self._typed = bytearray()
        self._line: Console | None = None
        self._streams = {life.out: 1, life.err: 2}

    def go_on(self) -> bool:
        """True when the machine was left, False when it has ended."""
        machine, deadline = self._life.machine, float("inf")
        try:
            while self._streams:
                if self._pump() == "left":
                    return True
                if machine.running():
                    self._keep()
                elif deadline == float("inf"):
                    deadline = time.monotonic() + _LAST_WORDS_S
                elif time.monotonic() > deadline:
                    break
        finally:
            self._hang_up()
        return False

    def _keep(self) -> None:
        """There is somebody to type to, as long as there is a keeper; another one comes where it is gone."""
        if self._line is None and (self._reads or self._typed):
            try:
                self._line = self._life.machine.console(write=True, who=me(self._keyboard))
            except HypervisorError:
                with contextlib.suppress(VmError):
                    self._life.machine.settle()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.sock.close()
            self._line = None

    def _pump(self) -> str:
        poll = select.poll()
        for fd in self._streams:
            poll.register(fd, select.POLLIN)
        if self._line is not None:
            poll.register(self._line.sock, select.POLLIN | (select.POLLOUT if self._typed else 0))
        if self._reads and len(self._typed) < _AHEAD and (self._keyboard.terminal or not self._typed):
            poll.register(self._keyboard.fd, select.POLLIN)
        ready = dict(poll.poll(_LOOK_S * 1000))
        for fd in [fd for fd in self._streams if fd in ready]:
            self._pass_on(fd)
        if self._keyboard.fd in ready and self._type() == "left":
            return "left"
        if self._line is not None and self._line.sock.fileno() in ready:
            self._talk(self._line)
        return ""

    def _pass_on(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return
        if not data:
            del self._streams[fd]
            return
        ours = self._streams[fd]
        if ours == 2 and self._keyboard.terminal:  # in raw mode it needs both ends of a line
            data = data.replace(b"\n", b"\r\n")
        with contextlib.suppress(OSError):  # nobody reads it any more, which is no reason for the guest to end
            write(data, ours)

    def _type(self) -> str:
        try:
            data = os.read(self._keyboard.fd, _READ)
        except OSError:  # a terminal that is gone
            data = b""
        before, key, _ = data.partition(LEAVE) if self._keyboard.terminal else (data, b"", b"")
        self._reads = bool(data)
        self._typed += before
        return "left" if key else ""

    def _talk(self, line: Console) -> None:
        """What the console says comes by the log as well, where it is whole."""
        try:
            if self._typed:
                del self._typed[: line.sock.send(self._typed)]
            if not line.sock.recv(_READ):
                self._hang_up()
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()


def _code(life: Life) -> int:
    ended = life.end()
    if ended is None:
        print(f"chv: {life.name}: nobody knows how it ended", file=sys.stderr)
        return 1
    if ended.message:
        print(f"chv: {life.name} ended: {ended.message}", file=sys.stderr)
    return 128 + ended.signal if ended.signal and not ended.exit_code else ended.exit_code


def _progress() -> Tell | None:
    """Of an image that takes long: on a terminal only."""
    if not sys.stderr.isatty():
        return None
    return lambda text: print(f"chv: {text}", file=sys.stderr)
