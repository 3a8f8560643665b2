"""Classic BPF: a small assembler with names for places, in which what looks at guests' frames is written. Pure."""

import socket
import struct
from typing import Final

BYTE: Final = 0x30
HALF: Final = 0x28
WORD: Final = 0x20
_INDIRECT: Final = 0x20  # added to a load: counts from where `header_length` says that IPv4 ends
_JUMP, _RETURN, _LOAD_IPV4_LENGTH = 0x05, 0x06, 0xB1
_EQUAL, _ANY_BIT = 0x15, 0x45
_AND = 0x54
_VLAN_TAG_PRESENT = 0xFFFF_F000 + 48  # a pseudo offset of the kernel's: the tag is no longer in the frame
_MAX_INSTRUCTIONS = 4096

ETHERNET: Final = 14
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD


class Program:
    """Instructions in order. Each look at the frame goes on when it holds, or to a named place when it does not."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._places: dict[str, int] = {}
        self._names = 0

    def place(self, name: str) -> None:
        assert name not in self._places, name
        self._places[name] = len(self._code)

    def fresh(self, name: str) -> str:
        """A name for a place that nobody else has."""
        self._names += 1
        return f"{name}{self._names}"

    def load(self, size: int, offset: int) -> None:
        self._code.append((size, 0, 0, offset))

    def load_behind_ipv4(self, size: int, offset: int) -> None:
        """From so many bytes behind the IPv4 header, whatever its length."""
        self._code.append((_LOAD_IPV4_LENGTH, 0, 0, ETHERNET))
        self._code.append((size + _INDIRECT, 0, 0, ETHERNET + offset))

    def load_vlan_tag_present(self) -> None:
        self._code.append((WORD, 0, 0, _VLAN_TAG_PRESENT))

    def mask(self, bits: int) -> None:
        self._code.append((_AND, 0, 0, bits))

    # A conditional jump reaches 255 instructions only; the plain one behind it reaches them all.
    def go_if(self, value: int, place: str) -> None:
        self._code += [(_EQUAL, 0, 1, value), (_JUMP, 0, 0, place)]

    def go_unless(self, value: int, place: str) -> None:
        self._code += [(_EQUAL, 1, 0, value), (_JUMP, 0, 0, place)]

    def go_if_any_bit(self, bits: int, place: str) -> None:
        self._code += [(_ANY_BIT, 0, 1, bits), (_JUMP, 0, 0, place)]

    def go(self, place: str) -> None:
        self._code.append((_JUMP, 0, 0, place))

    def need_bytes(self, offset: int, wanted: bytes, otherwise: str) -> None:
        """Go on when the frame has these bytes there."""
        at = 0
        while at < len(wanted):
            size, length = next((s, n) for s, n in ((WORD, 4), (HALF, 2), (BYTE, 1)) if n <= len(wanted) - at)
            self.load(size, offset + at)
            self.go_unless(int.from_bytes(wanted[at : at + length], "big"), otherwise)
            at += length

    def need_one_of(self, offset: int, wanted: tuple[bytes, ...], otherwise: str) -> None:
        """Go on when one of these stands there."""
        found = self.fresh("found")
        for one in wanted:
            following = self.fresh("next")
            self.need_bytes(offset, one, following)
            self.go(found)
            self.place(following)
        self.go(otherwise)
        self.place(found)

    def give(self, value: int) -> None:
        self._code.append((_RETURN, 0, 0, value))

    def instructions(self) -> tuple[tuple[int, int, int, int], ...]:
        assert len(self._code) <= _MAX_INSTRUCTIONS, "longer than the kernel takes"
        return tuple((op, yes, no, self._operand(at, value)) for at, (op, yes, no, value) in enumerate(self._code))

    def _operand(self, at: int, value: int | str) -> int:
        if isinstance(value, int):
            return value
        distance = self._places[value] - at - 1
        assert distance >= 0, f"{value} lies behind, and the kernel jumps ahead only"
        return distance

    def assemble(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *one) for one in self.instructions())


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(address: str) -> bytes:
    """Of "192.168.1.20/24" and "2001:db8::20/64", without the length of the prefix."""
    plain = address.partition("/")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
