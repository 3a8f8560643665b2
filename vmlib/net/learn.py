"""Addresses that a guest was not told but took: seen on its link in ARP, DHCP answers and neighbour discovery.

What is read here was written by a guest, who may be hostile: it is looked at, bounded, and told, and nothing is done
because of it.
"""

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from vmlib.net.bpf import ARP, BYTE, ETHERNET, HALF, IPV4, IPV6, Program, mac_bytes

MAX_ADDRESSES = 16  # of one interface
FRAMES_AT_ONCE = 32
_FRAME_BYTES = 1024  # an answer by DHCP has its options in less
_RECEIVE_BYTES = 1 << 15
_SO_ATTACH_FILTER = 26
_ALL_PROTOCOLS = 0x0003

_UDP, _ICMPV6 = 17, 58
_SERVER, _CLIENT = 67, 68
_CHADDR, _OPTIONS = 28, 240  # in a message of DHCP
_COOKIE = b"\x63\x82\x53\x63"
_MESSAGE_TYPE, _ACK, _END = 53, 5, 255
_SOLICITATION, _ADVERTISEMENT = 135, 136


def filter_program(mac: str) -> bytes:
    """What a socket takes of the link of a guest with that MAC: all else wakes nobody."""
    code = Program()
    code.load(HALF, 12)
    code.go_if(IPV4, "ipv4")
    code.need_bytes(6, mac_bytes(mac), "nothing")
    code.load(HALF, 12)
    code.go_if(ARP, "take")
    code.go_unless(IPV6, "nothing")
    code.load(BYTE, ETHERNET + 6)
    code.go_unless(_ICMPV6, "nothing")
    code.load(BYTE, ETHERNET + 40)
    code.go_if(_SOLICITATION, "take")
    code.go_unless(_ADVERTISEMENT, "nothing")
    code.go("take")
    code.place("ipv4")
    code.load(BYTE, ETHERNET + 9)
    code.go_unless(_UDP, "nothing")
    code.load(HALF, ETHERNET + 6)
    code.go_if_any_bit(0x1FFF, "nothing")
    code.load_behind_ipv4(HALF, 0)
    code.go_unless(_SERVER, "nothing")
    code.load_behind_ipv4(HALF, 2)
    code.go_unless(_CLIENT, "nothing")
    code.place("take")
    code.give(_FRAME_BYTES)
    code.place("nothing")
    code.give(0)
    return code.assemble()


def address_in(frame: bytes, mac: str) -> str:
    """The address that a frame on the link of the guest with that MAC shows to be the guest's; "" for none."""
    own = mac_bytes(mac)
    if len(frame) < ETHERNET:
        return ""
    source, (kind,), body = frame[6:12], struct.unpack_from("!H", frame, 12), frame[ETHERNET:]
    match kind:
        case 0x0806 if source == own:
            return _in_arp(body, own)
        case 0x0800:
            return _in_dhcp(body, own)
        case 0x86DD if source == own:
            return _in_ndp(body)
    return ""


def _in_arp(body: bytes, own: bytes) -> str:
    if len(body) < 28 or body[:6] != b"\0\1\x08\0\6\4" or body[8:14] != own:
        return ""
    return _usable_v4(body[14:18])


def _in_dhcp(body: bytes, own: bytes) -> str:
    """A server's ACK says so before the guest has used its address."""
    if len(body) < 20 or body[0] >> 4 != 4 or body[9] != _UDP:
        return ""
    datagram = body[4 * (body[0] & 15) :]
    if len(datagram) < 8 or struct.unpack_from("!HH", datagram) != (_SERVER, _CLIENT):
        return ""
    said = datagram[8:]
    if len(said) < _OPTIONS or said[:3] != b"\2\1\6" or said[_CHADDR : _CHADDR + 6] != own:
        return ""
    if said[_OPTIONS - 4 : _OPTIONS] != _COOKIE or _message_type(said[_OPTIONS:]) != _ACK:
        return ""
    return _usable_v4(said[16:20])


def _message_type(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == 0:
            at += 1
            continue
        if at + 1 >= len(options):
            break
        if options[at] == _MESSAGE_TYPE and at + 2 < len(options):
            return options[at + 2]
        at += 2 + options[at + 1]
    return 0


def _in_ndp(body: bytes) -> str:
    """Of an advertisement its target, of a solicitation its sender; who asks whether an address is free has none."""
    if len(body) < 64 or body[6] != _ICMPV6 or body[40] not in (_SOLICITATION, _ADVERTISEMENT):
        return ""
    raw = body[48:64] if body[40] == _ADVERTISEMENT else body[8:24]
    address = ipaddress.IPv6Address(raw)
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        return ""
    return str(address)


def _usable_v4(raw: bytes) -> str:
    address = ipaddress.IPv4Address(raw)
    unusable = address.is_unspecified or address.is_multicast or address.is_loopback or address.is_reserved
    return "" if unusable else str(address)


@dataclass(slots=True)
class Seen:
    """The addresses of one interface, the latest that many. A guest that shows thousands only loses its own."""

    _latest: dict[str, None] = field(default_factory=dict)

    def add(self, address: str) -> bool:
        """True when it is new."""
        new = address not in self._latest
        self._latest.pop(address, None)
        self._latest[address] = None
        while len(self._latest) > MAX_ADDRESSES:
            del self._latest[next(iter(self._latest))]
        return new

    def addresses(self) -> tuple[str, ...]:
        """The latest first, as far as `in_order` leaves it so."""
        return in_order(reversed(self._latest))


def in_order(addresses: Iterable[str]) -> tuple[str, ...]:
    """IPv4 first, and last what counts on the link only; otherwise as they come."""

    def rank(address: str) -> tuple[bool, int]:
        one = ipaddress.ip_address(address)
        return one.is_link_local, one.version

    return tuple(sorted(addresses, key=rank))


class Ears:
    """A socket on one link that hears both directions. Opening and closing may take some milliseconds."""

    def __init__(self, link: str, ifindex: int, mac: str) -> None:
        """Raises OSError, also when the link of that name is another one now."""
        self._mac = mac
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            code = filter_program(mac)
            buffer = ctypes.create_string_buffer(code, len(code))
            head = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
            # Before it is bound: until then it hears nothing.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)
            self._socket.bind((link, _ALL_PROTOCOLS))
            if socket.if_nametoindex(link) != ifindex:
                raise FileNotFoundError(f"{link} is another link now")
        except BaseException:
            self._socket.close()
            raise
        self.fd = self._socket.fileno()

    def hear(self) -> tuple[int, list[str]]:
        """How many frames there were, at most FRAMES_AT_ONCE, and the addresses in them. Never waits.

        Raises OSError once the link is gone or down.
        """
        found: list[str] = []
        for count in range(FRAMES_AT_ONCE):
            try:
                frame = self._socket.recv(_FRAME_BYTES)
            except BlockingIOError:
                return count, found
            if address := address_in(frame, self._mac):
                found.append(address)
        return FRAMES_AT_ONCE, found

    def close(self) -> None:
        self._socket.close()
