"""User-mode links: a process of ours is the router, and host ports are forwarded to the guest.

That is passt where it is installed, else the VMM itself. Either gives the guest the same addresses.
"""

import ipaddress
import re

from vmlib.errors import HostError, SpecError
from vmlib.resources import Forward, StreamNic, UserNic
from vmlib.spec import Link, NicSpec, PortForward, UserLink

_PORTS = range(1, 65536)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# How QEMU quotes the rule that it could not set up: PROTOCOL:[ADDRESS]:PORT-[ADDRESS]:PORT
_REFUSED = re.compile(
    r"[Cc]ould not set up host forwarding rule"
    r" '(?P<protocol>tcp|udp):(?P<host_ip>[0-9.]*):(?P<host_port>\d+)-[0-9.]*:(?P<guest_port>\d+)'"
)
# And how passt does: -t or -u [ADDRESS/]PORT:PORT
_REFUSED_BY_PASST = re.compile(
    r"Failed to bind .*'-(?P<option>[tu]) (?:(?P<host_ip>[0-9.]+)/)?(?P<host_port>\d+):(?P<guest_port>\d+)'"
)


def attach_user(nic: NicSpec, link: UserLink, index: int, *, passt: bool) -> UserNic | StreamNic:
    """The link for the guest's interface number `index`.

    Raises SpecError for what can never be forwarded, HostError when the network namespace is not there.
    """
    mac = nic.mac.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise SpecError(f"mac = {nic.mac!r}: expected a unicast address like 52:54:00:12:34:56")
    seen: list[PortForward] = []
    for forward in link.forwards:
        _check(forward)
        for other in seen:
            if forward.host_port == other.host_port and _overlap(forward.host_ip, other.host_ip):
                raise SpecError(
                    f"port {forward.label!r}: host port {_host_side(forward)} is taken"
                    f" by port {other.label!r} of this task"
                )
        seen.append(forward)
    if link.netns is not None and not link.netns.exists():
        raise HostError(f"network {nic.network!r}: there is no network namespace {link.netns}")
    forwards = tuple(
        # Nomad's ports say nothing of a protocol: both.
        Forward(
            protocol=protocol,
            host_ip=forward.host_ip,
            host_port=forward.host_port,
            guest_port=forward.guest_port,
        )
        for forward in link.forwards
        for protocol in ("tcp", "udp")
    )
    name, netns = f"net{index}", "" if link.netns is None else str(link.netns)
    if passt:
        return StreamNic(name=name, mac=mac, network=nic.network, forwards=forwards, netns=netns, dns=nic.dns)
    return UserNic(name=name, mac=mac, forwards=forwards, netns=netns)


def explain_forward_failure(stderr: str, link: Link) -> str | None:
    """Turn the router's words about a port that it could not listen on into ours; None when they are of other things.

    Asking beforehand whether a port is free would prove nothing: it may be taken in between.
    """
    if not isinstance(link, UserLink):
        return None
    if (refused := _REFUSED.search(stderr)) is not None:
        protocol, by_passt = refused["protocol"], False
    elif (refused := _REFUSED_BY_PASST.search(stderr)) is not None:
        protocol, by_passt = "tcp" if refused["option"] == "t" else "udp", True
    else:
        return None
    host_ip, host_port, guest_port = refused["host_ip"] or "", int(refused["host_port"]), int(refused["guest_port"])
    where, whose = ("the host", "this host's") if link.netns is None else ("the group's network", "one of its")
    for forward in link.forwards:
        if (forward.host_ip, forward.host_port, forward.guest_port) == (host_ip, host_port, guest_port):
            if not by_passt and forward.host_port < 1024:
                whose += ", or QEMU may not have it: for a port below 1024 install passt"
            return (
                f"port {forward.label!r}: {protocol} port {_host_side(forward)} of {where} is not to be"
                f" had: another process listens on it, or the address is not {whose}"
            )
    return None


def _check(forward: PortForward) -> None:
    what = f"port {forward.label!r}"
    if forward.host_port not in _PORTS:
        raise SpecError(f"{what}: host port {forward.host_port}, expected 1 to 65535")
    if forward.guest_port not in _PORTS:
        raise SpecError(
            f"{what}: guest port {forward.guest_port}, expected 1 to 65535",
            hint="`to` in the port's block says where it ends in the guest",
        )
    if forward.host_ip:
        try:
            ipaddress.IPv4Address(forward.host_ip)
        except ValueError as exc:
            raise SpecError(
                f"{what}: host address {forward.host_ip!r}, expected an IPv4 address: user-mode links forward no other"
            ) from exc


def _overlap(one: str, other: str) -> bool:
    everywhere = ("", "0.0.0.0")
    return one == other or one in everywhere or other in everywhere


def _host_side(forward: PortForward) -> str:
    return f"{forward.host_ip}:{forward.host_port}" if forward.host_ip else str(forward.host_port)
