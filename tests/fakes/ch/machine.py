"""What the VMM knows of the guest's side, whichever engine runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.fakes.ch.images import Image


@dataclass(slots=True, kw_only=True)
class Hardware:
    """All that a boot needs; its owner closes what is open."""

    config: Mapping[str, Any]
    kernel: int | None = None
    initrd: int | None = None
    firmware: int | None = None
    disks: list[Image] = field(default_factory=list)
    nics: list[list[int]] = field(default_factory=list)  # descriptors of each interface
    sockets: dict[str, int] = field(default_factory=dict)  # to the helpers: of a share by its tag, "tpm"
    cpus: set[int] = field(default_factory=set)  # where its vCPUs run, empty: anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """Whom an engine tells. Each may be called from any thread."""

    output: Callable[[bytes], None]  # on the serial port
    channel: Callable[[bytes], None]  # on the agent's port
    channel_closed: Callable[[], None]
    alive: Callable[[], None]  # the guest drives its devices
    power_off: Callable[[], None]
    reset: Callable[[], None]
    panic: Callable[[], None]
    crashed: Callable[[str], None]  # the engine itself ended


class Engine(Protocol):
    """Runs the guest."""

    def boot(self, hardware: Hardware, *, held: bool) -> None:
        """Raises RefusedError."""

    def reset(self) -> None:
        """Start anew with the same hardware."""

    def stop(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def press(self) -> None: ...

    def nmi(self) -> None: ...

    def typed(self, data: bytes) -> None: ...

    def to_channel(self, data: bytes) -> None: ...

    def counters(self) -> dict[str, dict[str, int]]: ...

    def set_balloon(self, size_bytes: int) -> None: ...

    def ballooned(self) -> int:
        """Bytes that the guest has given back."""
