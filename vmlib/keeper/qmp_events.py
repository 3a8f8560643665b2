"""QEMU's events, heard on a QMP of the keeper's own, in words that do not depend on the hypervisor. No I/O."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from vmlib.lines import LineBuffer

Kind = Literal["shutdown", "reset", "panic", "power button", "paused", "resumed", "router"]

# An event of QEMU is some hundred bytes; a guest can lengthen none of them.
_MAX_LINE = 1 << 20

_KINDS: dict[str, Kind] = {
    "SHUTDOWN": "shutdown",
    "RESET": "reset",
    "GUEST_PANICKED": "panic",
    "POWERDOWN": "power button",
    "STOP": "paused",
    "RESUME": "resumed",
    "NETDEV_STREAM_CONNECTED": "router",
}


@dataclass(frozen=True, slots=True)
class MonitorEvent:
    """Something happened to the VMM. `reason` and `by_guest` are set for shutdown and reset."""

    kind: Kind
    reason: str = ""
    by_guest: bool = False


class QmpMonitor:
    """Turns the bytes of a QMP connection into events. Write `greeting` first, it switches the events on."""

    greeting = b'{"execute": "qmp_capabilities"}\n'

    def __init__(self) -> None:
        self._lines = LineBuffer(_MAX_LINE)

    @staticmethod
    def reset(*, reboots_end: bool) -> bytes:
        """What makes the VMM start its guest anew, also where a reboot of the guest's own would end the machine."""
        commands: list[dict[str, Any]] = [{"execute": "system_reset"}]
        if reboots_end:
            commands = [_reboot_means("reset"), *commands, _reboot_means("shutdown")]
        return b"".join(json.dumps(command).encode() + b"\n" for command in commands)

    @staticmethod
    def announce() -> bytes:
        """What makes the VMM, and a guest that can, say on their links which MACs live there."""
        pace = {"initial": 50, "max": 500, "rounds": 4, "step": 100}  # in milliseconds
        return json.dumps({"execute": "announce-self", "arguments": pace}).encode() + b"\n"

    def feed(self, data: bytes) -> list[MonitorEvent]:
        """Raises ValueError on what is not QMP."""
        events = []
        for line in self._lines.feed(data):
            match _parse(line):
                case {"event": str(name), **rest} if name in _KINDS:
                    details = rest.get("data")
                    details = details if isinstance(details, dict) else {}
                    reason, by_guest = str(details.get("reason", "")), bool(details.get("guest", False))
                    events.append(MonitorEvent(_KINDS[name], reason=reason, by_guest=by_guest))
        return events


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc


def _reboot_means(action: str) -> dict[str, Any]:
    return {"execute": "set-action", "arguments": {"reboot": action}}
