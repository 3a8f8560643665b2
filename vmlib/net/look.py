"""A look at interfaces of the host's by name, for whoever says what this node offers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmlib.net import netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An interface that is there."""

    name: str
    state: Literal["up", "down"]  # up: set up, and with a carrier
    kind: str = ""  # "bridge", "veth"; "" = hardware
    wireless: bool = False


def look(names: Iterable[str], net: Path = Path("/sys/class/net")) -> dict[str, Seen]:
    """Those of the named interfaces that are there, by these names. Raises OSError when the kernel cannot be asked."""
    wanted = set(names)
    if not wanted:
        return {}
    with netlink.connect() as kernel:
        # One by one, because an interface has other names beside its first, and a link is made by any of them.
        return {
            name: Seen(
                name=name,
                state="up" if link.up and link.carrier else "down",
                kind=link.kind,
                wireless=(net / link.name / "phy80211").exists(),
            )
            for name in wanted
            if (link := kernel.find(name)) is not None
        }
