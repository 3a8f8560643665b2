"""Cloud Hypervisor's event monitor: JSON objects with an empty line between them, however they are cut. No I/O."""

import contextlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# An event is some hundred bytes, and a guest can lengthen none of them.
_MAX_EVENT = 1 << 16
_MAX_TORN = 16  # beginnings that are tried in what makes no sense as a whole

_DECODER = json.JSONDecoder()
_BEGINNING = re.compile(r'\{\s*"timestamp"')


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """Something happened: `vm` `rebooting`, `virtio-device` `reset`, `guest` `panic`, …"""

    source: str
    event: str
    properties: Mapping[str, str] = field(default_factory=dict)


class EventDecoder:
    """Turns what the monitor writes into events. What makes no sense is left out."""

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
        return [event for one in whole if len(one) <= _MAX_EVENT for event in _events(one)]


def _events(text: bytes) -> list[CloudEvent]:
    """Mostly one. A pipe that was full has lost parts of what was written: half an event, or the line between two."""
    try:
        return _event(json.loads(text))
    except (ValueError, RecursionError):
        pass
    words, found = text.decode(errors="replace"), []
    for start in itertools.islice(_BEGINNING.finditer(words), _MAX_TORN):
        with contextlib.suppress(ValueError, RecursionError):
            found += _event(_DECODER.raw_decode(words, start.start())[0])
    return found


def _event(said: object) -> list[CloudEvent]:
    match said:
        case {"source": str(source), "event": str(event), **rest}:
            return [CloudEvent(source, event, _properties(rest.get("properties")))]
    return []


def _properties(said: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}
