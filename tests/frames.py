"""Frames as guests and their neighbours send them, whole and in bytes."""

import socket
import struct

from vmlib.net.bpf import ip_bytes, mac_bytes

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"


def ethernet(source: str, kind: int, body: bytes, *, to: str = BROADCAST) -> bytes:
    return mac_bytes(to) + mac_bytes(source) + struct.pack("!H", kind) + body


def arp(source: str, sender_ip: str, *, sender_mac: str = "", target: str = "192.0.2.1", answer: bool = False) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2 if answer else 1)
    body = head + mac_bytes(sender_mac or source) + ip_bytes(sender_ip) + bytes(6) + ip_bytes(target)
    return ethernet(source, 0x0806, body)


def ipv4(source: str, sender: str, *, to: str = "192.0.2.1", protocol: int = 17, body: bytes = b"") -> bytes:
    length = 20 + len(body)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, 0) + ip_bytes(sender) + ip_bytes(to)
    return ethernet(source, 0x0800, head[:10] + _checksum(head) + head[12:] + body)


def udp(source: str, sender: str, ports: tuple[int, int], body: bytes, *, to: str = "192.0.2.1") -> bytes:
    return ipv4(source, sender, to=to, body=struct.pack("!HHHH", *ports, 8 + len(body), 0) + body)


def dhcp(source: str, guest_mac: str, kind: int, *, yours: str = "0.0.0.0", server: bool = True) -> bytes:
    body = struct.pack("!BBBBIHH", 2 if server else 1, 1, 6, 0, 7, 0, 0) + bytes(4) + ip_bytes(yours) + bytes(8)
    body += mac_bytes(guest_mac) + bytes(10 + 64 + 128) + b"\x63\x82\x53\x63" + bytes((54, 4, 192, 0, 2, 1))
    body += bytes((53, 1, kind, 255))
    if server:
        return udp(source, "192.0.2.1", (67, 68), body, to="255.255.255.255")
    return udp(source, "0.0.0.0", (68, 67), body, to="255.255.255.255")


def ipv6(source: str, sender: str, body: bytes, *, following: int = 58, to: str = "ff02::1") -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), following, 255) + ip_bytes(sender) + ip_bytes(to)
    return ethernet(source, 0x86DD, head + body, to=ALL_NODES)


def icmpv6(kind: int, target: str = "::") -> bytes:
    """Of neighbour discovery; checksums are nobody's business here."""
    return struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, target)


def _checksum(head: bytes) -> bytes:
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
