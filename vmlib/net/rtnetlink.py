"""Plain route netlink, where it is smaller than a library: messages as bytes, and asking the kernel for one thing."""

import os
import socket
import struct
from collections.abc import Iterator

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWQDISC, NEWFILTER = 36, 44
DONE, OVERRUN = 3, 4
_ERROR = 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400

_HEAD = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_BUFFER_BYTES = 1 << 16
_TIMEOUT_S = 5


def attribute(kind: int, value: bytes) -> bytes:
    return _padded(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value)


def message(kind: int, flags: int, body: bytes, *, sequence: int = 1) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each; stops at what is cut off or makes no sense."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, _, _, _ = _HEAD.unpack_from(data, at)
        if length < _HEAD.size or at + length > len(data):
            return
        yield kind, data[at + _HEAD.size : at + length]
        at += _aligned(length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Those at the end of a body, the last of each kind; the rest of what is cut off is left out."""
    found, at = {}, 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            break
        found[kind & ~_NESTED] = data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def open_socket(groups: int = 0) -> socket.socket:
    """Of this thread's network namespace, wherever it is used later."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    made.bind((0, groups))
    return made


def change(kind: int, flags: int, body: bytes) -> None:
    """Have the kernel do one thing. Raises OSError with its reason."""
    with open_socket() as talk:
        talk.settimeout(_TIMEOUT_S)
        talk.send(message(kind, _REQUEST | _ACK | flags, body))
        for answer, said in messages(talk.recv(_BUFFER_BYTES)):
            if answer == _ERROR:
                _raise(said)


def dump(kind: int, body: bytes) -> list[tuple[int, bytes]]:
    """Everything of a kind. Raises OSError."""
    found: list[tuple[int, bytes]] = []
    with open_socket() as talk:
        talk.settimeout(_TIMEOUT_S)
        talk.send(message(kind, _REQUEST | _DUMP, body))
        while True:
            for answer, said in messages(talk.recv(_BUFFER_BYTES)):
                if answer == DONE:
                    return found
                if answer == _ERROR:
                    _raise(said)
                found.append((answer, said))


def _raise(said: bytes) -> None:
    code = -int(struct.unpack_from("=i", said)[0])
    if code:
        raise OSError(code, os.strerror(code))


def _padded(data: bytes) -> bytes:
    return data + bytes(_aligned(len(data)) - len(data))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
