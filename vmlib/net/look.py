"""A look at interfaces of the host's by name, for whoever says what this node offers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vmlib.net import netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An interface that is there."""

    name: str
    state: Literal["up", "down"]  # up: set up, and with a carrier
    kind: str = ""  # "bridge", "veth"; "" = hardware


def look(names: Iterable[str]) -> dict[str, Seen]:
    """Those of the named interfaces that are there. Raises OSError when the kernel cannot be asked."""
    wanted = set(names)
    if not wanted:
        return {}
    with netlink.connect() as kernel:
        return {
            link.name: Seen(name=link.name, state="up" if link.up and link.carrier else "down", kind=link.kind)
            for link in kernel.links()
            if link.name in wanted
        }
