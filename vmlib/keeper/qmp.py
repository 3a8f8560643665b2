"""QEMU as its keeper hears it: a QMP of the keeper's own, the console on standard streams, a guest channel."""

import contextlib
import math
import select
import socket
import time

from vmlib.keeper.console import Typing
from vmlib.keeper.dialect import House
from vmlib.keeper.fds import connect, read, receive
from vmlib.keeper.qmp_events import MonitorEvent, QmpMonitor
from vmlib.keeper.relay import Relay
from vmlib.keeper.spawn import open_fifo

_PANIC_GRACE_S = 2.0  # the VMM ends by itself at a panic within this
_ONE_REBOOT_S = 1.0


class Qmp:
    """The dialect of QEMU, and of the fake hypervisor."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._events = QmpMonitor()
        self._monitor: socket.socket | None = None
        self.relay = Relay(house.loop, house.guest_said)
        self.typing = Typing(house.loop)
        self._rebooted_at = -math.inf

    def make(self) -> None:
        """Its streams are all that there is."""

    def open(self) -> None:
        run, loop = self._house.run_paths, self._house.loop
        self._console_fd = open_fifo(run.console_out)
        self.typing.onto(open_fifo(run.console_in))
        self._stderr_fd = open_fifo(run.stderr)
        loop.on_read(self._console_fd, self.read_console)
        loop.on_read(self._stderr_fd, self._on_stderr)

    def inherited(self) -> dict[str, int]:
        return {}

    def connect(self, *, adopted: bool) -> None:
        plan, loop = self._house.plan, self._house.loop
        with contextlib.suppress(OSError):
            self._monitor = connect(plan.run / plan.listeners[plan.monitor])
            loop.on_read(self._monitor.fileno(), self._on_monitor)
            self._monitor.send(self._events.greeting)
        with contextlib.suppress(OSError):
            self.relay.take_guest(connect(plan.run / plan.listeners[plan.channel]))
        if adopted and self._house.evidence.panic:
            loop.after(_PANIC_GRACE_S, self._house.kill_vmm)

    def arm_writers(self) -> None:
        self.typing.arm()
        self.relay.arm()

    def take_console(self, path: str) -> str:
        return f"the console is on the VMM's standard streams, not at {path[:64]!r}"

    def read_console(self) -> None:
        self._house.console_said(read(self._console_fd))

    def drain(self) -> None:
        for fd, take in ((self._console_fd, self.read_console), (self._stderr_fd, self._on_stderr)):
            while select.select([fd], [], [], 0)[0]:
                take()
        while self._monitor is not None and select.select([self._monitor], [], [], 0)[0]:
            self._on_monitor()
        self.relay.drain()

    def _on_stderr(self) -> None:
        self._house.vmm_said(read(self._stderr_fd))

    def _on_monitor(self) -> None:
        assert self._monitor is not None
        data = receive(self._monitor)
        if data is None:
            self._house.loop.forget(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None
            return
        try:
            events = self._events.feed(data)
        except ValueError:
            return  # the VMM's end shows by its process in any case
        for event in events:
            self._on_event(event)

    def _on_event(self, event: MonitorEvent) -> None:
        house = self._house
        match event.kind:
            case "shutdown":
                house.evidence.shutdown = event.reason
                house.save_state()
            case "panic":
                self._on_panic()
            case "reset":
                self._on_reset("by the guest" if event.by_guest else "from outside")
            case "router" if self._monitor is not None:
                # A router that was started anew knows of no guest until that has sent something, which may be never.
                with contextlib.suppress(OSError):
                    self._monitor.send(self._events.announce())
            case "power button":
                house.button_pressed()
            case "paused" if house.evidence.panic or house.evidence.shutdown:
                pass  # the VMM stops the guest on its way to the end
            case "paused":
                house.guest_paused()
            case "resumed":
                house.guest_runs()

    def _on_reset(self, by: str) -> None:
        """One reboot is several resets: the firmware makes more of its own in the first moments."""
        now, before = time.monotonic(), self._rebooted_at
        self._rebooted_at = now
        if now - before > _ONE_REBOOT_S:
            self._house.guest_rebooted(by)

    def _on_panic(self) -> None:
        self.read_console()  # the last words are in the pipe already
        if self._house.guest_panicked():
            self._house.save_state()
            self._house.loop.after(_PANIC_GRACE_S, self._house.kill_vmm)  # it ends by itself, unless it hangs
        elif self._monitor is not None:
            with contextlib.suppress(OSError):  # it is ending, and will be started again by somebody else
                self._monitor.send(self._events.reset(reboots_end=self._house.plan.on_reboot == "exit"))
