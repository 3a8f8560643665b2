"""`DirectMachine` for plans of Cloud Hypervisor, whose events it tells in QMP's words."""

import contextlib
import os
import re
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fakes.ch.session import parse_events, receive
from tests.fakes.direct_launch import DirectMachine
from vmlib import process
from vmlib.hypervisor.base import LaunchPlan
from vmlib.paths import RunPaths

_WORDS = {"vm/booted": "RESUME", "vm/resumed": "RESUME", "vm/paused": "STOP"}
_HOST_ENDS = {"API request event: VmmShutdown": "host-qmp-quit", "VM exit event": "host-signal"}
_PRESSED = b"API request event: VmPowerButton"


class DirectCloud(DirectMachine):
    """A running VMM whose machine is made by `Hypervisor.prepare`."""

    def __init__(self, plan: LaunchPlan, run_dir: Path, *, stack: contextlib.ExitStack) -> None:
        run = RunPaths(run_dir)
        self.console = self.channel = self.errors = self._event_bytes = b""
        self.events = []
        self.paused_readers = set()
        self._stack = stack
        self._api = run_dir / "api"
        self._told = 0
        self._shutdown_told = False
        with socket.socket(socket.AF_UNIX) as api:
            api.bind(str(self._api))
            api.listen(16)
            self._vsock = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._vsock.bind(str(run.guest_channel))
            self._vsock.listen(4)
            events, events_in = os.pipe()
            errors, errors_in = os.pipe()
            fds = {**plan.files, "api": api.fileno(), "events": events_in}
            self.process = subprocess.Popen(
                [re.sub(r"\{fd:([a-z0-9_.-]+)\}", lambda found: str(fds[found[1]]), word) for word in plan.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors_in,
                env=dict(plan.environment),
                pass_fds=tuple(fds.values()),
                start_new_session=True,
                cwd="/",
            )
        for fd in (events_in, errors_in):
            os.close(fd)
        for fd in (events, errors):
            os.set_blocking(fd, False)
            stack.callback(os.close, fd)
        stack.callback(self._end)
        who = process.identify(self.process.pid)
        assert who is not None
        process.save_identity(run.vmm, who)
        self._readers: dict[int, Callable[[bytes], None]] = {errors: self._take_errors, events: self._take_events}
        self._errors_fd = errors
        self.console_fd = -1
        stack.callback(self._close_pty)

    def open_console(self, path: str) -> None:
        """Called by `prepare`, and after each reboot."""
        self._close_pty()
        self.console_fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._readers[self.console_fd] = self._take_console

    def type(self, text: str) -> None:
        os.write(self.console_fd, text.encode())

    def pump(self, timeout_s: float = 0.0) -> None:
        super().pump(timeout_s)
        self._vsock.settimeout(0.0)
        with contextlib.suppress(BlockingIOError):
            guest, _ = self._vsock.accept()
            self._stack.callback(guest.close)
            self._readers[guest.fileno()] = self._take_channel

    def _close_pty(self) -> None:
        if self.console_fd >= 0:
            self._readers.pop(self.console_fd, None)
            os.close(self.console_fd)
            self.console_fd = -1

    def _take_events(self, data: bytes) -> None:
        # The log says it first, and why.
        while select.select([self._errors_fd], [], [], 0)[0] and (said := os.read(self._errors_fd, 1 << 16)):
            self._take_errors(said)
        self._event_bytes += data
        found = list(parse_events(self._event_bytes.decode()))
        for one in found[self._told :]:
            self._take_event(f"{one['source']}/{one['event']}")
        self._told = len(found)

    def _take_event(self, name: str) -> None:
        said = self.errors.decode(errors="replace")
        if name in _WORDS:
            self._tell(_WORDS[name])
        elif name == "guest/panic":
            self._tell("GUEST_PANICKED", action="run")
        elif name == "vm/rebooted":
            guest = said.rfind("VM reset event") > said.rfind("API request event: VmReboot")
            self._tell("RESET", guest=guest, reason="guest-reset" if guest else "host-qmp-system-reset")
            self._reopen()
        elif name in ("vm/shutdown", "vmm/shutdown") and not self._shutdown_told:
            self._shutdown_told = True
            host = next((reason for words, reason in _HOST_ENDS.items() if words in said), "")
            reason = "guest-shutdown" if "VM guest exit event" in said else host
            self._tell("SHUTDOWN", guest=reason == "guest-shutdown", reason=reason)

    def _take_errors(self, data: bytes) -> None:
        seen = self.errors.count(_PRESSED)
        super()._take_errors(data)
        for _ in range(self.errors.count(_PRESSED) - seen):
            self._tell("POWERDOWN")

    def _tell(self, name: str, **data: object) -> None:
        self.events.append({"event": name, **({"data": data} if data else {})})

    def _reopen(self) -> None:
        self.open_console(console_path(self._api))


def console_path(api: Path) -> str:
    """The pty of the serial port, asked for by hand."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(api))
        sock.sendall(b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return str(receive(sock).json["config"]["serial"]["file"])


@contextlib.contextmanager
def direct_cloud(plan: LaunchPlan, run_dir: Path) -> Iterator[DirectCloud]:
    with contextlib.ExitStack() as stack:
        yield DirectCloud(plan, run_dir, stack=stack)
