"""A guest without a machine: the test guest is played, as the fake backend's VMM plays it."""

import threading
import time
from collections.abc import Callable
from typing import cast

from tests.fakes.ch import config as configs
from tests.fakes.ch.machine import Ears, Hardware
from tests.fakes.ch.threads import Loop
from vmlib.hypervisor import fake_ports
from vmlib.hypervisor.fake_guest import Config, Guest

_BUSY_S = 0.001


class _Console:
    """The serial port as the played guest sees it: it never waits for a reader."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def room(self) -> bool:
        return True

    def empty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self._output(text.replace("\n", "\r\n").encode())


class _Channel:
    client = True  # what the guest says is passed on, whoever listens

    def __init__(self, ears: Ears) -> None:
        self._ears = ears

    def send(self, data: bytes) -> None:
        self._ears.channel(data)
        self._ears.channel_closed()


class _Machine:
    """What the played guest sees of the machine it runs on."""

    def __init__(self, engine: "Light", ears: Ears) -> None:
        self._engine = engine
        self._ears = ears
        self.once_done = False  # survives a reset, as the clock chip of a real machine does
        self.console = cast("fake_ports.Console", _Console(ears.output))
        self.channel = cast("fake_ports.Port", _Channel(ears))
        self.config = Config(vcpus=0, memory_mib=0, on_reboot="", on_panic="", cmdline="", listeners={}, files=[])

    def guest_time(self) -> float:
        return self._engine.guest_time()

    def running(self) -> bool:
        return self._engine.running()

    def reset(self, *, guest: bool, reason: str) -> None:  # noqa: ARG002  the played guest's words
        self._engine.over()
        self._ears.reset()

    def firmware_reset(self) -> None:
        """There is no firmware that would."""

    def panic(self) -> None:
        self._ears.panic()

    def shut_down(self, *, guest: bool, reason: str) -> None:  # noqa: ARG002
        self._engine.over()
        self._ears.power_off()


class Light:
    """An engine; the guest's tasks run in `loop`."""

    def __init__(self, loop: Loop, ears: Ears) -> None:
        self._loop = loop
        self._ears = ears
        self._machine = _Machine(self, ears)
        self._guest: Guest | None = None
        self._turns = 0  # only the newest of what was put off counts
        self._paused = False
        self._pressed = False
        self._told = False
        self._elapsed_s = 0.0
        self._since: float | None = None
        self._balloon_bytes = 0
        self._lock = threading.RLock()
        self._names: dict[str, list[str]] = {}

    def boot(self, hardware: Hardware, *, held: bool) -> None:
        config = hardware.config
        self._machine.config = Config(
            vcpus=config["cpus"]["boot_vcpus"],
            memory_mib=(config["memory"]["size"] or sum(zone["size"] for zone in config["memory"]["zones"])) >> 20,
            on_reboot="reset",
            on_panic="none",
            cmdline=config["payload"].get("cmdline", ""),
            listeners={},
            files=[],
        )
        self._names = configs.names(dict(config))
        self._balloon_bytes = config.get("balloon", {}).get("size", 0)
        if not held:
            self.reset()

    def reset(self) -> None:
        with self._lock:
            self._elapsed_s, self._since = 0.0, time.monotonic()
            self._paused = self._pressed = self._told = False
            self._guest = Guest(self._machine)
        self._loop.call(self._turn)

    def stop(self) -> None:
        self.over()

    def pause(self) -> None:
        with self._lock:
            self._elapsed_s = self.guest_time()
            self._since = None
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._since = time.monotonic()
            self._paused = False
        self._loop.call(self._turn)

    def press(self) -> None:
        self._pressed = True
        self._loop.call(self._turn)

    def nmi(self) -> None:
        self._machine.console.write("Uhhuh. NMI received for unknown reason 30.\n")

    def typed(self, data: bytes) -> None:
        with self._lock:
            if self._guest is not None:
                self._guest.typed(data)

    def to_channel(self, data: bytes) -> None:
        """The played guest does not read its channel."""

    def counters(self) -> dict[str, dict[str, int]]:
        disk = ("read_bytes", "write_bytes", "read_ops", "write_ops")
        net = ("rx_bytes", "tx_bytes", "rx_frames", "tx_frames")
        found = {name: dict.fromkeys(disk, 0) for name in self._names.get("disks", [])}
        return found | {name: dict.fromkeys(net, 0) for name in self._names.get("net", [])}

    def set_balloon(self, size_bytes: int) -> None:
        self._balloon_bytes = size_bytes

    def ballooned(self) -> int:
        return self._balloon_bytes

    def guest_time(self) -> float:
        return self._elapsed_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def running(self) -> bool:
        return self._guest is not None and not self._paused

    def over(self) -> None:
        """The guest that runs now does nothing more."""
        with self._lock:
            self._guest = None

    def _turn(self) -> None:
        """Let the guest go on, and see to it that it does so when it next wants to."""
        with self._lock:
            guest = self._guest
            if guest is None or self._paused:
                return
            if self._pressed:
                self._pressed = False
                guest.press()
            now = self.guest_time()
            wake = guest.run(now)
            if guest is not self._guest:
                return
            if not self._told:
                self._told = True
                self._ears.alive()
            self._turns += 1
            turn = self._turns
        if wake is not None:
            self._loop.after(max(_BUSY_S, wake - now), lambda: self._turn() if turn == self._turns else None)
