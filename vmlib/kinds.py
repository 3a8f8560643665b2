"""The words that task events begin with, so that people can search for them. docs/events.md says what each means."""

from typing import Literal, get_args

EventKind = Literal[
    "machine started",
    "cores",
    "address",
    "agent ready",
    "power button",
    "forced off",
    "rebooted",
    "panic",
    "paused",
    "resumed",
    "cores repaired",
    "yielded",
    "partition invalid",
    "link lost",
    "link back",
    "keeper replaced",
    "helper restarted",
    "helper lost",
    "disk created",
    "lint",
    "image",
]

KINDS: tuple[EventKind, ...] = get_args(EventKind)
