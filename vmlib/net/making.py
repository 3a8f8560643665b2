"""What making a link needs to know beside the link itself, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmlib.net.names import link_name
from vmlib.resources import Nic, OpenFile, TapNic
from vmlib.spec import NicSpec

MAX_QUEUE_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How the links of one start of a machine are made."""

    machine_id: str
    mark: str  # of vmlib.net.names
    queue_pairs: int
    vhost: bool  # the VMM can use the kernel's vhost-net
    passt: bool = False  # it is the router of user networks
    note: Callable[[str, str], None]  # writes down name and MAC of a link before it is made
    keep: Callable[[OpenFile], None]  # owns a descriptor from now on

    def name(self, index: int) -> str:
        return link_name(self.machine_id, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugged:
    """An interface that is plugged in: what the VMM gets, and what is known now."""

    nic: Nic
    spec: NicSpec  # with what it took over from a namespace filled in
    link: str = ""  # the host's name for it; "" = it has none
    ifindex: int = 0
    notice: str = ""  # what is odd about it, in a sentence


def tap_nic(making: Making, index: int, fds: list[int], vhost: list[int], *, mac: str, mtu: int) -> TapNic:
    """The interface with those descriptors, which belong to `making.keep` from now on."""
    path = Path("/dev") / making.name(index)
    files = [OpenFile(fd=fd, path=path) for fd in (*fds, *vhost)]
    for file in files:
        making.keep(file)
    return TapNic(name=f"net{index}", mac=mac, queues=tuple(files[: len(fds)]), vhost=tuple(files[len(fds) :]), mtu=mtu)
