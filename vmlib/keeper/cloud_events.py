"""Cloud Hypervisor's event monitor: JSON objects with an empty line between them, however they are cut. No I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

# An event is some hundred bytes, and a guest can lengthen none of them.
_MAX_EVENT = 1 << 16


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """Something happened: `vm` `rebooting`, `virtio-device` `reset`, `guest` `panic`, …"""

    source: str
    event: str
    properties: Mapping[str, str] = field(default_factory=dict)


class EventDecoder:
    """Turns what the monitor writes into events. What makes no sense is left out up to the next empty line."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False  # of what is not complete yet too much has come already

    def feed(self, data: bytes) -> list[CloudEvent]:
        *whole, rest = (self._rest + data).split(b"\n\n")
        if self._skipping and whole:
            del whole[0]
            self._skipping = False
        if self._skipping or len(rest) > _MAX_EVENT:
            self._skipping = True
            rest = rest[-1:]  # it may be the first half of an empty line
        self._rest = rest
        events = (_event(one) for one in whole if len(one) <= _MAX_EVENT)
        return [event for event in events if event is not None]


def _event(text: bytes) -> CloudEvent | None:
    # A write that found the pipe full leaves half an event behind: the next one still begins with its brace.
    for start in (0, text.rfind(b"\n{\n") + 1):
        try:
            said = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        match said:
            case {"source": str(source), "event": str(event), **rest}:
                return CloudEvent(source, event, _properties(rest.get("properties")))
        return None
    return None


def _properties(said: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}
