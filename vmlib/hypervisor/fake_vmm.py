"""A VMM without a guest: serves the sockets of QEMU, plays the test guest, uses no memory to speak of.

Run as `python -I -S fake_vmm.py --name=value…`; standard library only. One loop does everything; each vCPU is a real
thread that sleeps, so that it can be pinned and looked at.
"""

import contextlib
import os
import selectors
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Any

# Isolated mode knows no site-packages; the library is found from where this file lies.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from vmlib.hypervisor.fake_guest import Config, Guest
from vmlib.hypervisor.fake_ports import Console, Event, Monitor, Port

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def parse(words: list[str]) -> Config:
    """Read `--name=value` words; --listener=NAME:FD and --file=FD may come several times."""
    single: dict[str, str] = {}
    listeners: dict[str, int] = {}
    files: list[int] = []
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name == "listener":
            listener, _, number = value.partition(":")
            listeners[listener] = int(number)
        elif name == "file":
            files.append(int(value))
        else:
            single[name] = value
    return Config(
        vcpus=int(single["vcpus"]),
        memory_mib=int(single["memory-mib"]),
        on_reboot=single["reboot"],
        on_panic=single["panic"],
        cmdline=single["append"],
        listeners=listeners,
        files=files,
    )


@dataclass(slots=True)
class Clock:
    """The guest's own time, which stands still while it is held or paused."""

    elapsed: float = 0.0
    since: float | None = None

    def now(self) -> float:
        return self.elapsed + (monotonic() - self.since if self.since is not None else 0.0)

    def run(self) -> None:
        if self.since is None:
            self.since = monotonic()

    def stop(self) -> None:
        self.elapsed, self.since = self.now(), None


@dataclass(slots=True)
class Machine:
    """The state of the VMM and what its commands do to it, as QEMU 7.2 does it."""

    config: Config
    loop: selectors.BaseSelector = field(default_factory=selectors.PollSelector)
    state: str = "prelaunch"
    once_done: bool = False  # survives a reset, as the clock chip of a real machine does
    exit_code: int | None = None
    pressed: bool = False
    threads: list[int] = field(default_factory=list)
    monitors: list[Monitor] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    channel: Port = field(init=False)
    console: Console = field(init=False)
    guest: Guest = field(init=False)
    on_reboot: str = field(init=False)
    on_panic: str = field(init=False)

    def __post_init__(self) -> None:
        self.on_reboot, self.on_panic = self.config.on_reboot, self.config.on_panic
        fds = self.config.listeners
        self.monitors = [Monitor(self.loop, fds[name], self.execute) for name in ("qmp", "events")]
        self.channel = Port(self.loop, fds["channel"])
        self.console = Console(self.loop, self._typed)
        self.threads = [_vcpu_thread(number) for number in range(self.config.vcpus)]
        self.guest = Guest(self)

    def guest_time(self) -> float:
        return self.clock.now()

    def execute(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """Answer one QMP command. Raises LookupError for one that there is not."""
        match command:
            case "query-status":
                return {"status": self.state, "running": self.state == "running"}
            case "query-cpus-fast":
                return [{"cpu-index": n, "thread-id": tid, "target": "none"} for n, tid in enumerate(self.threads)]
            case "query-named-block-nodes":
                return []  # it reads no disk
            case "cont" if self.state != "running":
                self._enter("running", "RESUME")
            case "stop" if self.state == "running":
                self._enter("paused", "STOP")
            case "cont" | "stop":
                pass
            case "system_powerdown":
                self._event("POWERDOWN")
                self.pressed = True
            case "system_reset":
                self.reset(guest=False, reason="host-qmp-system-reset")
            case "set-action":
                self.on_reboot = arguments.get("reboot", self.on_reboot)
                self.on_panic = arguments.get("panic", self.on_panic)
            case "inject-nmi":
                if self.state == "running":
                    self.console.write("Uhhuh. NMI received for unknown reason 30.\n")
            case "quit":
                self.shut_down(guest=False, reason="host-qmp-quit")
            case _:
                raise LookupError(command)
        return {}

    def running(self) -> bool:
        return self.state == "running"

    def reset(self, *, guest: bool, reason: str) -> None:
        if self.on_reboot == "shutdown":
            self.shut_down(guest=guest, reason=reason)
            return
        self._event("RESET", guest=guest, reason=reason)
        self.guest = Guest(self, warm=self.clock.now() > 0)
        self.clock = Clock()
        self.pressed = False
        if self.state == "running":
            self.clock.run()
        else:
            self.state = "prelaunch"

    def firmware_reset(self) -> None:
        self._event("RESET", guest=True, reason="guest-reset")

    def panic(self) -> None:
        if self.on_panic == "none":
            self._event("GUEST_PANICKED", action="run")
            return
        self._event("GUEST_PANICKED", action="poweroff")
        self.state = "guest-panicked"
        self.clock.stop()
        self.shut_down(guest=True, reason="guest-panic", exit_code=1)

    def shut_down(self, *, guest: bool, reason: str, exit_code: int = 0) -> None:
        if self.exit_code is None:
            self._event("SHUTDOWN", guest=guest, reason=reason)
            self.exit_code = exit_code

    def serve(self) -> int:
        """Run until the end; return the exit status."""
        while (status := self._ended()) is None:
            timeout = self._run_guest()
            if self._ended() is None:
                for key, mask in self.loop.select(timeout):
                    key.data(mask)
        for port in (*self.monitors, self.channel):
            port.flush(1.0)
        return status

    def _ended(self) -> int | None:
        return self.exit_code

    def _run_guest(self) -> float | None:
        """Let the guest go on; return how long it has nothing to do, None for until something happens."""
        if self.state != "running":
            return None
        if self.pressed:
            self.pressed = False
            self.guest.press()
        guest, now = self.guest, self.clock.now()
        wake = guest.run(now)
        if guest is not self.guest:  # it was reset
            return 0.0
        return None if wake is None else max(0.0, wake - now)

    def _typed(self, data: bytes) -> None:
        self.guest.typed(data)  # of the guest that runs now: a reset makes a new one

    def _enter(self, state: str, event: str) -> None:
        self.state = state
        if state == "running":
            self.clock.run()
        else:
            self.clock.stop()
        self._event(event)

    def _event(self, name: str, **data: object) -> None:
        now = time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1_000_000)}
        event: Event = {"timestamp": stamp, "event": name, **({"data": data} if data else {})}
        for monitor in self.monitors:
            monitor.event(event)


def _vcpu_thread(number: int) -> int:
    """Start a thread that sleeps for ever; its number is the host's."""
    threading.stack_size(1 << 16)
    thread = threading.Thread(target=threading.Event().wait, name=f"CPU {number}/FAKE", daemon=True)
    thread.start()
    tid = thread.native_id
    assert tid is not None  # a thread that was started has one
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{tid}/comm").write_text(f"CPU {number}/FAKE")
    return tid


def _on_signals(machine: Machine) -> None:
    """Turn the signals that end a VMM into something that the loop reads."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_end)
    for number in SHUTDOWN_SIGNALS:
        signal.signal(number, lambda *_: None)

    def ready(_mask: int) -> None:
        os.read(read_end, 64)
        machine.shut_down(guest=False, reason="host-signal")

    machine.loop.register(read_end, selectors.EVENT_READ, ready)


def main() -> None:
    config = parse(sys.argv[1:])
    for fd in config.files:
        os.fstat(fd)  # raises when the launcher did not hand it over
    machine = Machine(config)
    _on_signals(machine)
    status = machine.serve()
    # The vCPU threads never end by themselves.
    os._exit(status)


if __name__ == "__main__":
    main()
