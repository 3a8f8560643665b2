"""Cloud Hypervisor as its keeper hears it: event monitor, log, a pty for the console, vsock for the guest channel."""

import contextlib
import json
import os
import select
import socket

from vmlib.keeper.api_call import ApiCall
from vmlib.keeper.calling import Caller
from vmlib.keeper.channel import ChannelListener
from vmlib.keeper.cloud_events import CloudEvent, EventDecoder
from vmlib.keeper.cloud_life import Life, shutdown_reason
from vmlib.keeper.cloud_log import LogReader
from vmlib.keeper.console import PtyConsole, Typing
from vmlib.keeper.dialect import House
from vmlib.keeper.fds import read
from vmlib.keeper.relay import Relay
from vmlib.keeper.spawn import open_fifo

_API = "api"  # the listener that its API has
_PANIC_REBOOT_S = 1.0  # a guest that reboots itself at a panic does it at once
_LOOK_AGAIN_S = 1.0
_LONGEST_LOOK_S = 5.0


class CloudHypervisor:
    """The dialect of Cloud Hypervisor."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._decoder = EventDecoder()
        self._log = LogReader()
        self._life = Life()
        self._console = PtyConsole(house.loop, house.console_said, self._on_console_gone)
        self._channel = ChannelListener(house.loop, house.guest_said)
        self.relay = Relay(house.loop, house.guest_said, self._see_to_the_agent)
        self._uid = house.plan.uid if os.geteuid() == 0 else os.geteuid()
        self._caller = Caller(house.loop, house.run_paths.vsock, self._uid, self._on_agent)
        self._look: ApiCall | None = None
        self._console_known = False
        self._api = house.plan.run / house.plan.listeners[_API]
        self._reboots = 0
        self._limit_s = house.plan.reboot_timeout_s

    @property
    def typing(self) -> Typing:
        return self._console.typing

    def make(self) -> None:
        run, plan = self._house.run_paths, self._house.plan
        os.mkfifo(run.events, 0o600)
        if not run.vmm_dir.exists():
            run.vmm_dir.mkdir(mode=0o700)
            os.chown(run.vmm_dir, plan.uid, plan.gid)
        self._channel.listen(run.guest_channel)

    def open(self) -> None:
        run, loop = self._house.run_paths, self._house.loop
        self._stdout_fd = open_fifo(run.console_out)  # it says nothing there, and must never wait for us
        self._stderr_fd = open_fifo(run.stderr)
        self._events_fd = open_fifo(run.events)
        loop.on_read(self._stdout_fd, self._on_stdout)
        loop.on_read(self._stderr_fd, self._on_stderr)
        loop.on_read(self._events_fd, self._on_events)

    def inherited(self) -> dict[str, int]:
        # For reading too, so that what it writes while there is no keeper waits for the next one. An open file of its
        # own, because it makes it non-blocking.
        return {"events": os.open(self._house.run_paths.events, os.O_RDWR | os.O_CLOEXEC)}

    def connect(self, *, adopted: bool) -> None:
        if not adopted:
            return
        house, seen = self._house, self._house.evidence
        self._log = LogReader(torn=True)
        with contextlib.suppress(OSError):  # a machine without its channel is kept all the same
            self._channel.listen(house.run_paths.guest_channel)
        if seen.panic or seen.hang:
            house.kill_vmm()
        elif seen.phase == "rebooting" and seen.shutdown == "guest-reset":
            house.end_vmm()
        elif seen.phase == "rebooting":
            self._on_rebooting()
        else:
            self._look_for_console(_LOOK_AGAIN_S)
            if seen.anew:
                self._start_anew_soon()

    def arm_writers(self) -> None:
        self.typing.arm()
        self.relay.arm()

    def take_console(self, path: str) -> str:
        try:
            shut_in = self._house.plan.cage is not None
            self._console.open(path, uid=self._uid, vmm_fd=self._house.vmm_fd, shut_in=shut_in)
        except OSError as exc:
            return f"{path[:64]}: {(exc.strerror or str(exc)).lower()}"
        except ValueError as exc:
            return str(exc)
        self._console_known = True
        return ""

    def read_console(self) -> None:
        self._console.read()

    def drain(self) -> None:
        self._console.close()
        for fd, take in (
            (self._stderr_fd, self._on_stderr),
            (self._stdout_fd, self._on_stdout),
            (self._events_fd, self._on_events),
        ):
            while select.select([fd], [], [], 0)[0]:
                take()
        if rest := self._log.finish():
            self._house.vmm_said(rest)
        self._note_words()
        self._channel.drain()
        self.relay.drain()
        self._note_reason()

    # -- the guest's agent ---------------------------------------------------------------------------------------

    def _see_to_the_agent(self) -> None:
        """Call it while somebody wants it, and hang up when nobody does."""
        if not self.relay.has_client:
            self.relay.drop_guest()
        self._caller.want(self.relay.has_client and not self.relay.has_guest)

    def _on_agent(self, sock: socket.socket) -> None:
        self.relay.take_guest(sock)

    # -- what comes in -------------------------------------------------------------------------------------------

    def _on_stdout(self) -> None:
        self._house.vmm_said(read(self._stdout_fd))

    def _on_stderr(self) -> None:
        if shown := self._log.feed(read(self._stderr_fd)):
            self._house.vmm_said(shown)
        self._note_words()

    def _note_words(self) -> None:
        seen, words = self._house.evidence, self._log.words
        seen.error, seen.seccomp = words.last_error or seen.error, words.seccomp or seen.seccomp
        if words.button:
            words.button = False
            self._house.button_pressed()

    def _note_reason(self) -> None:
        seen = self._house.evidence
        if seen.shutdown != "guest-reset" and (reason := shutdown_reason(self._life, self._log.words)) is not None:
            seen.shutdown = reason
            if reason == "vmm-error":
                seen.error = self._log.words.why_exit

    def _on_events(self) -> None:
        self._on_stderr()  # the log says it first, and why
        for event in self._decoder.feed(read(self._events_fd)):
            self._on_event(event)

    def _on_event(self, event: CloudEvent) -> None:
        house = self._house
        match self._life.take(event):
            case "booting":
                house.evidence.phase = "booting"
            case "booted":
                house.evidence.phase = "running"
                house.guest_runs()
            case "paused":
                house.guest_paused()
            case "resumed":
                house.guest_runs()
            case "panic":
                self._on_panic()
            case "rebooting":
                self._on_rebooting()
            case "rebooted":
                self._on_rebooted()
            case "shutdown":
                self._note_reason()
                house.helpers.let_go()
                house.save_state()

    # -- panic and reboot ----------------------------------------------------------------------------------------

    def _on_panic(self) -> None:
        house = self._house
        self.read_console()  # the last words are there already
        if house.guest_panicked():
            house.kill_vmm()  # now: a guest may reboot itself at the very same moment
            house.save_state()
            return
        house.evidence.anew = True
        house.save_state()
        self._start_anew_soon()

    def _start_anew_soon(self) -> None:
        """A guest that panicked and does not reboot by itself is made to."""
        seen = self._reboots
        self._house.loop.after(_PANIC_REBOOT_S, lambda: self._start_anew(seen))

    def _start_anew(self, seen: int) -> None:
        house = self._house
        if self._reboots != seen:
            return
        ApiCall(house.loop, self._api, "PUT", "vm.reboot", lambda *_: None)
        house.loop.after(
            self._limit_s, lambda: self._expect(self._reboots != seen, "the guest panicked, and its reboot")
        )

    def _on_rebooting(self) -> None:
        house = self._house
        self._reboots += 1
        house.evidence.phase = "rebooting"
        if house.plan.on_reboot == "exit" and not house.evidence.anew:
            house.evidence.shutdown = "guest-reset"
            house.save_state()
            house.end_vmm()
            return
        house.save_state()
        house.helpers.hurry(on=True)
        seen = self._reboots
        house.loop.after(
            self._limit_s,
            lambda: self._expect(self._reboots != seen or house.evidence.phase != "rebooting", "the guest's reboot"),
        )

    def _on_rebooted(self) -> None:
        house = self._house
        if house.evidence.shutdown == "guest-reset":
            return  # it is being ended
        house.evidence.phase = "running"
        house.evidence.anew = False
        house.save_state()
        house.helpers.hurry(on=False)
        house.guest_rebooted("by the guest" if self._log.words.reset_by_guest else "from outside")
        self._console_known = False
        self._look_for_console(0.0)

    def _expect(self, met: bool, what: str) -> None:
        if met:
            return
        house = self._house
        why = f": {house.evidence.error}" if house.evidence.error else ""
        house.evidence.hang = f"{what} hung, the VMM was killed after {self._limit_s:.0f} s{why}"
        house.kill_vmm()
        house.save_state()

    # -- the console's place -------------------------------------------------------------------------------------

    def _on_console_gone(self) -> None:
        """Most often because of a reboot or the end, which say so by themselves."""
        self._console_known = False
        self._house.loop.after(_LOOK_AGAIN_S, lambda: self._look_for_console(_LOOK_AGAIN_S))

    def _look_for_console(self, delay_s: float) -> None:
        """Ask the VMM where the console is, until that is known; the first thing after a reboot."""
        house = self._house
        if house.evidence.phase == "rebooting" or self._console_known:
            return
        if self._look is not None:
            self._look.cancel()

        def found(status: int, body: bytes) -> None:
            self._look = None
            path = console_path(body) if status == 200 else ""
            if not path or self.take_console(path):
                longer = min(_LONGEST_LOOK_S, max(_LOOK_AGAIN_S, delay_s * 2))
                house.loop.after(longer, lambda: self._look_for_console(longer))

        self._look = ApiCall(house.loop, self._api, "GET", "vm.info", found)


def console_path(info: bytes) -> str:
    """Where vm.info says that the serial port's pty is; "" when it does not."""
    try:
        match json.loads(info):
            case {"config": {"serial": {"mode": "Pty", "file": str(path)}}}:
                return path
    except (ValueError, RecursionError):
        pass
    return ""
