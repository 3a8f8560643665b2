"""Whether the links of machines are still what they were: the kernel's notices of changes, and one look at them all."""

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from vmlib.net import rtnetlink

_GROUP_LINK = 1
_NAME, _LINK, _MASTER, _INFO, _LINK_NETNSID = 3, 5, 10, 18, 37
_INFO_KIND = 1
_UP, _LOWER_UP = 0x1, 0x10000
_IFINFO = struct.Struct("=BxHiII")
_MESSAGES_AT_ONCE = 256
_BUFFER_BYTES = 1 << 16


class Nic(Protocol):
    """What must be known of an interface here; vmlib.record.NicRecord is one."""

    @property
    def network(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def link(self) -> str: ...
    @property
    def ifindex(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What the kernel says of one link."""

    index: int
    name: str
    up: bool
    carrier: bool
    kind: str = ""
    parent: int = 0  # of a macvtap; 0 = it lies in another namespace
    master: int = 0  # the bridge that it is a port of


class LinkNotices:
    """The kernel's notices about links of the namespace in which it was opened; `fd` is readable when it has some."""

    def __init__(self, *, receive_bytes: int = 1 << 20) -> None:
        self._socket = rtnetlink.open_socket(_GROUP_LINK)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.fd = self._socket.fileno()

    def read(self) -> frozenset[int] | None:
        """Indexes of the links that changed since the last call; None when some notices were lost. Never waits."""
        changed: set[int] = set()
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                data = self._socket.recv(_BUFFER_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno == errno.ENOBUFS:
                    return None
                raise
            changed |= indexes(data)
        return frozenset(changed)

    def close(self) -> None:
        self._socket.close()


def indexes(data: bytes) -> set[int]:
    """Of the links that notices are about."""
    return {
        _IFINFO.unpack_from(body)[2]
        for kind, body in rtnetlink.messages(data)
        if kind in (rtnetlink.NEWLINK, rtnetlink.DELLINK) and len(body) >= _IFINFO.size
    }


def look() -> dict[int, LinkState]:
    """All links of this thread's namespace, by index. Raises OSError."""
    found = (parse(body) for kind, body in rtnetlink.dump(rtnetlink.GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)))
    return {one.index: one for one in found if one is not None}


def parse(body: bytes) -> LinkState | None:
    """None for what is no message about a link."""
    if len(body) < _IFINFO.size:
        return None
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    said = rtnetlink.attributes(body[_IFINFO.size :])
    info = rtnetlink.attributes(said.get(_INFO, b""))
    return LinkState(
        index=index,
        name=_text(said.get(_NAME, b"")),
        up=bool(flags & _UP),
        carrier=bool(flags & _LOWER_UP),
        kind=_text(info.get(_INFO_KIND, b"")),
        parent=0 if _LINK_NETNSID in said else _number(said.get(_LINK, b"")),
        master=_number(said.get(_MASTER, b"")),
    )


def what_is_lost(nic: Nic, links: Mapping[int, LinkState]) -> str:
    """Why no frame passes an interface, in a sentence; "" when all is well, or when it has no link of the host's."""
    if not nic.link:
        return ""
    who = f"{nic.link} ({nic.network})"
    one = links.get(nic.ifindex)
    if one is None or one.name != nic.link:
        return f"{who} is gone, deleted by hand or with what it was on: the task has it again after a restart"
    if not one.up:
        return f"{who} was set down"
    if one.kind == "tun":
        return _lost_on_bridge(who, links.get(one.master))
    if not one.carrier:
        below = links.get(one.parent)
        why = "what it is on" if below is None else below.name
        state = "is down" if below is not None and not below.up else "has no carrier"
        return f"{who}: {why} {state}"
    return ""


def _lost_on_bridge(who: str, bridge: LinkState | None) -> str:
    if bridge is None:
        return f"{who} is a port of no bridge any more: the task is on one again after a restart"
    return "" if bridge.up else f"{who}: bridge {bridge.name} is down"


def interesting(nics: Iterable[Nic], links: Mapping[int, LinkState]) -> set[int]:
    """Links whose change may mean something for these interfaces."""
    found = set()
    for nic in nics:
        if nic.link:
            one = links.get(nic.ifindex)
            found |= {nic.ifindex} | ({one.parent, one.master} if one is not None else set())
    return found - {0}


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder) if len(raw) == 4 else 0
