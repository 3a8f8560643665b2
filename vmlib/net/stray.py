"""Taking links away: by the undo of the start that made them, and those that nobody's start knows any more."""

import logging
from dataclasses import dataclass
from pathlib import Path

from vmlib.net import devices, netlink
from vmlib.net.names import read_mark

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A link with our mark."""

    name: str
    owner: str
    run_dir: Path
    mark: str


def remove_link(name: str, *, mac: str, mark: str) -> None:
    """Delete the link of that name if it is ours: by its mark, or by its MAC when it was not marked yet."""
    with netlink.connect() as kernel:
        link = kernel.find(name)
        if link is None:
            return
        unmarked = not link.alias and link.mac == mac and link.kind == "macvtap"
        if link.alias != mark and not unmarked:
            log.warning("link left alone name=%s alias=%r mac=%s: not ours", name, link.alias, link.mac)
            return
        kernel.delete(link.index)


def marked_links() -> list[Marked]:
    """Every link of this namespace that has a mark of ours."""
    found = []
    for name, alias in sorted(devices.aliases().items()):
        if (read := read_mark(alias)) is not None:
            found.append(Marked(name=name, owner=read[0], run_dir=read[1], mark=alias))
    return found
