"""Links of the kernel's, by netlink: the only module that knows pyroute2. What the kernel refuses is an OSError."""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmlib.net.names import MAX_NAME_BYTES

_UP = 0x1
_UP_ALLMULTI = 0x201  # without ALLMULTI a guest never hears who asks for its IPv6 address
_MAIN_TABLE = 254
# The host takes no IPv6 address there and says nothing in the guest's name.
_SILENT = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One link as the kernel describes it."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    carrier: bool
    kind: str = ""  # "macvtap", "tun", "bridge", "veth"; "" = hardware
    mode: str = ""  # of a macvtap or macvlan
    alias: str = ""
    parent: int = 0
    foreign_parent: bool = False  # that number counts in another namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a link has moved since it was made; its guest receives and sends."""

    received_bytes: int
    sent_bytes: int
    received_frames: int
    sent_frames: int


class Netlink:
    """A conversation with the kernel about the links of the namespace in which it was opened."""

    def __init__(self, ipr: Any) -> None:
        self._ipr = ipr

    def find(self, name: str) -> Interface | None:
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            return None
        try:
            with _told(name):
                (message,) = self._ipr.link("get", ifname=name)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                return None
            raise
        return _interface(message)

    def links(self) -> list[Interface]:
        with _told("links"):
            return [_interface(message) for message in self._ipr.get_links()]

    def carried(self, name: str, index: int) -> Carried | None:
        """Of a tap or a macvtap; None when another link has its name. Raises OSError when there is none."""
        with _told(name):
            (message,) = self._ipr.link("get", ifname=name)
        link = _interface(message)
        if link.index != index:
            return None
        told = message.get_attr("IFLA_STATS64")
        # A tap is the other end of its guest's cable; a macvtap counts as if it were the guest's own interface.
        received, sent = ("tx", "rx") if link.kind == "tun" else ("rx", "tx")
        return Carried(
            received_bytes=told[f"{received}_bytes"],
            sent_bytes=told[f"{sent}_bytes"],
            received_frames=told[f"{received}_packets"],
            sent_frames=told[f"{sent}_packets"],
        )

    def create_macvtap(self, name: str, *, parent: int, mode: str, mac: str = "", netns_fd: int | None = None) -> None:
        """Not up yet. With `netns_fd` it is made there, while `parent` counts here; without `mac`, and with `passthru`
        always, it has that of its parent, else a random one.
        """
        more: dict[str, object] = {"address": mac} if mac else {}
        if netns_fd is not None:
            more["net_ns_fd"] = netns_fd
        with _told(name):
            self._ipr.link("add", ifname=name, kind="macvtap", link=parent, macvtap_mode=mode, **more)

    def create_macvlan(self, name: str, *, parent: int, mac: str) -> None:
        """A place of the host's own among what else is on that parent; not up yet."""
        with _told(name):
            self._ipr.link("add", ifname=name, kind="macvlan", link=parent, macvlan_mode="bridge", address=mac)

    def mark(self, index: int, *, alias: str) -> None:
        with _told(str(index)):
            self._ipr.link("set", index=index, ifalias=alias)

    def add_address(self, index: int, address: str) -> None:
        """Of the form "192.0.2.5/24"; nothing happens when it is there already."""
        ip, _, length = address.partition("/")
        try:
            with _told(str(index)):
                self._ipr.addr("add", index=index, address=ip, prefixlen=int(length))
        except FileExistsError:
            return

    def raise_up(self, index: int) -> None:
        """As an ordinary interface of the host's."""
        with _told(str(index)):
            self._ipr.link("set", index=index, state="up")

    def silence(self, index: int, *, alias: str) -> None:
        """Mark a link, and keep the host from using IPv6 on it."""
        with _told(str(index)):
            self._ipr.link("set", index=index, ifalias=alias)
            try:
                self._ipr.link("set", index=index, IFLA_AF_SPEC=_SILENT)
            except Exception as exc:
                # A kernel without IPv6 says nothing anyway.
                if getattr(exc, "code", 0) not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    raise

    def set_mac(self, index: int, mac: str) -> None:
        with _told(str(index)):
            self._ipr.link("set", index=index, address=mac)

    def set_up(self, index: int) -> None:
        with _told(str(index)):
            self._ipr.link("set", index=index, flags=_UP_ALLMULTI, change=_UP_ALLMULTI)

    def join(self, index: int, *, mac: str, mtu: int, bridge: int) -> None:
        """Give the host's end of a tap its MAC and MTU and make it a port of the bridge."""
        with _told(str(index)):
            self._ipr.link("set", index=index, address=mac, mtu=mtu)
            self._ipr.link("set", index=index, master=bridge)

    def delete(self, index: int) -> None:
        """Nothing happens when it is gone already."""
        try:
            with _told(str(index)):
                self._ipr.link("del", index=index)
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise

    def addresses(self, index: int) -> tuple[str, ...]:
        """What it has beyond the link itself, IPv4 first: "192.0.2.5/24"."""
        with _told(str(index)):
            messages = list(self._ipr.get_addr(index=index, scope=0))
        messages.sort(key=lambda message: int(message["family"]))
        return tuple(
            f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
            for message in messages
        )

    def gateways(self, index: int) -> tuple[str, ...]:
        """Where its default routes lead, at most one of each family, IPv4 first."""
        found = []
        for family in (2, 10):
            with _told(str(index)):
                routes = list(self._ipr.get_routes(family=family, table=_MAIN_TABLE))
            defaults = [
                route
                for route in routes
                if route["dst_len"] == 0 and route.get_attr("RTA_OIF") == index and route.get_attr("RTA_GATEWAY")
            ]
            defaults.sort(key=lambda route: int(route.get_attr("RTA_PRIORITY") or 0))
            found += [str(route.get_attr("RTA_GATEWAY")) for route in defaults[:1]]
        return tuple(found)


@contextlib.contextmanager
def connect() -> Iterator[Netlink]:
    """Talk to the kernel about the namespace of this thread."""
    from pyroute2 import IPRoute  # here: it takes a quarter of a second, and most processes need none of it

    with _told("netlink"):
        ipr = IPRoute()
    try:
        yield Netlink(ipr)
    finally:
        ipr.close()


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What the kernel refuses as an OSError about `what`."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as exc:
        code = int(exc.code)
        raise OSError(code, os.strerror(code), what) from exc


def _interface(message: Any) -> Interface:
    info: Any = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else ""
    data = info.get_attr("IFLA_INFO_DATA") if info and kind in ("macvtap", "macvlan") else None
    mode = (data.get_attr(f"IFLA_{kind.upper()}_MODE") if data else "") or ""
    return Interface(
        index=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        mac=str(message.get_attr("IFLA_ADDRESS") or ""),
        mtu=int(message.get_attr("IFLA_MTU") or 0),
        up=bool(message["flags"] & _UP),
        carrier=message.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
        kind=str(kind or ""),
        mode=str(mode),
        alias=str(message.get_attr("IFLA_IFALIAS") or ""),
        parent=int(message.get_attr("IFLA_LINK") or 0),
        foreign_parent=message.get_attr("IFLA_LINK_NETNSID") is not None,
    )
