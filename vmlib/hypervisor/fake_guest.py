"""The guest that the fake VMM plays: the test guest's words and lines, as tasks that take turns."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from vmlib.hypervisor.fake_ports import Console, Port

BOOT_TIME_S = 0.1
CHANNEL_WAIT_S = 10.0  # how long the guest waits for somebody to listen

# What a task of the guest waits for: seconds of its own time, or a condition.
Wait = float | Callable[[], bool]
Task = Generator[Wait, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the fake VMM was started with."""

    vcpus: int
    memory_mib: int
    on_reboot: str  # reset | shutdown, as QEMU's -action
    on_panic: str  # none | exit-failure
    cmdline: str
    listeners: dict[str, int]
    files: list[int]


class Machine(Protocol):
    """What the guest sees of the machine it runs on."""

    console: Console
    channel: Port
    config: Config
    once_done: bool  # survives a reset, as the clock chip of a real machine does

    def guest_time(self) -> float:
        """Seconds that the guest has run."""

    def running(self) -> bool: ...

    def reset(self, *, guest: bool, reason: str) -> None: ...

    def firmware_reset(self) -> None:
        """SeaBIOS resets once more when it finds itself started after a reset: a second event for one reboot."""

    def panic(self) -> None: ...

    def shut_down(self, *, guest: bool, reason: str) -> None: ...


@dataclass(slots=True)
class _Sleeper:
    """A task of the guest, and what it waits for."""

    task: Task
    wake_at: float = 0.0  # in the guest's own time
    condition: Callable[[], bool] | None = None


@dataclass(slots=True)
class _Line:
    """What is typed, until the line is complete."""

    echo: bool = False
    rest: bytes = b""


class Guest:
    """The test guest (tests/guest/init.sh), as far as it can be played: same words, same lines."""

    def __init__(self, machine: Machine, *, warm: bool = False) -> None:
        self._machine = machine
        self._warm = warm
        self._words = machine.config.cmdline.split()
        self._sleepers: list[_Sleeper] = []
        self._line = _Line()
        self._button: Callable[[], None] | None = None
        self._start(self._main())

    def press(self) -> None:
        """The power button: without effect until the guest watches it."""
        if self._button is not None:
            watcher, self._button = self._button, None
            watcher()

    def typed(self, data: bytes) -> None:
        if not self._line.echo:
            return
        *lines, self._line.rest = (self._line.rest + data.replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            self._say(f"echo: {line.decode(errors='replace')}")
        self._line.rest = self._line.rest[-4096:]

    def run(self, now: float) -> float | None:
        """Let every task go on that can; return the time of the next one that sleeps."""
        for sleeper in list(self._sleepers):
            if sleeper.condition is not None:
                if not sleeper.condition():
                    continue
            elif sleeper.wake_at > now:
                continue
            try:
                wait = next(sleeper.task)
            except StopIteration:
                self._sleepers.remove(sleeper)
                continue
            sleeper.condition = wait if callable(wait) else None
            sleeper.wake_at = now if callable(wait) else now + wait
        ready = [now for s in self._sleepers if s.condition is not None and s.condition()]
        return min([*ready, *(s.wake_at for s in self._sleepers if s.condition is None)], default=None)

    def _start(self, task: Task) -> None:
        self._sleepers.append(_Sleeper(task))

    def _say(self, text: str) -> None:
        self._machine.console.write(text + "\n")

    def _main(self) -> Task:
        config = self._machine.config
        if self._warm:
            yield BOOT_TIME_S
            self._machine.firmware_reset()
        yield BOOT_TIME_S
        for line in ("chv test guest: up", "kernel fake", f"vcpus {config.vcpus}", f"memory {config.memory_mib} MiB"):
            self._say(line)
        if "ignore-acpi" in self._words:
            self._say("ignoring the power button")
        else:
            self._button = lambda: self._start(self._stop())
        self._say("chv test guest: ready")
        for word in self._words:
            yield from self._obey(word)

    def _obey(self, word: str) -> Task:
        name, _, value = word.partition("=")
        match name:
            case "sleep":
                yield float(value)
            case "say":
                self._say(f"say {value}")
            case "tick":
                self._start(self._tick())
            case "echo":
                self._line.echo = True
            case "flood":
                yield from self._flood(int(value or 0))
            case "reboot-once" if self._machine.once_done:
                self._say("rebooted")
            case "reboot-once":
                self._machine.once_done = True
                self._say("rebooting")
                yield self._machine.console.empty
                self._machine.reset(guest=True, reason="guest-reset")
                yield lambda: False
            case "panic" if not value:
                yield from self._panic()
            case "exit-only":
                yield from self._tell(f"exit {value}")
            case "exit":
                yield from self._tell(f"exit {value}")
                self._say(f"exit {value}")
                yield from self._off()
            case "poweroff":
                yield from self._off()

    def _tick(self) -> Task:
        number = 0
        while True:
            number += 1
            self._say(f"tick {number}")
            yield 0.2
            yield self._machine.console.room

    def _flood(self, size: int) -> Task:
        number = 1
        while size == 0 or number * 100 <= size:
            self._say(f"flood {number:07d} " + "." * 85)
            number += 1
            if not self._machine.console.room():
                yield self._machine.console.room
            elif number % 100 == 0:
                yield 0.0
        self._say(f"flood end {size}")

    def _panic(self) -> Task:
        self._say("panicking")
        self._say("Kernel panic - not syncing: sysrq triggered crash")
        yield self._machine.console.empty
        self._machine.panic()
        if self._machine.running() and "panic=-1" in self._words:
            self._machine.reset(guest=True, reason="guest-reset")
        self._sleepers.clear()
        self._button = None
        yield lambda: False

    def _tell(self, line: str) -> Task:
        gave_up = self._machine.guest_time() + CHANNEL_WAIT_S
        while self._machine.channel.client is None and self._machine.guest_time() < gave_up:
            yield 0.02
        if self._machine.channel.client is None:
            self._say(f'channel: not there, "{line}" was not told')
        self._machine.channel.send(line.encode() + b"\n")

    def _stop(self) -> Task:
        self._say("power button")
        for word in self._words:
            if word.startswith("slow-stop="):
                yield float(word.partition("=")[2])
        yield from self._off()

    def _off(self) -> Task:
        yield self._machine.console.empty
        self._machine.shut_down(guest=True, reason="guest-shutdown")
        yield lambda: False
