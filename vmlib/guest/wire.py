"""The guest agent's wire, without I/O: lines that are frames, on a channel where other lines may stand between them.

The same text runs at both ends: the agent's file is made of this one and `agent.py`. So: standard library only, and
no syntax or name that Python 3.6 does not have.

A frame is a line: byte 0x01, then, with line breaks escaped, kind (one byte), stream (u32, big-endian), payload and a
CRC-32 of these. Every line break is a place to begin anew, so whoever comes in the middle, or finds half a frame that
somebody left who was killed, loses that frame and no more. The other side may be hostile: memory is bounded, what is
damaged or too long is passed over, and nothing here raises for what was received.
"""

import binascii
import json
import struct
from typing import Any, Dict, List, NamedTuple, Union

VERSION = 1
MAX_PAYLOAD = 32768  # bytes
MAX_LINE = 66000  # bytes of a line: a payload of nothing but line breaks has twice its size
WINDOW = 131072  # bytes that may be under way, for each direction of a stream
MAX_STREAMS = 32  # open at once

HELLO = b"H"  # a session begins
OPEN = b"O"  # host: a stream begins, and what it is for
DATA = b"D"  # the first byte of the payload is the channel; no more bytes are its end
CREDIT = b"C"  # so many bytes of DATA were consumed
RESIZE = b"Z"  # host: the terminal's size
EXITED = b"X"  # agent: the stream's end, after all its DATA
CANCEL = b"K"  # end what runs on the stream
NOTE = b"N"  # agent: facts about the guest
PING = b"P"
PONG = b"Q"

STDIN, STDOUT, STDERR = 0, 1, 2  # channels

_FRAME = 0x01
_ESC, _NEWLINE = b"\x1b", b"\n"
_ESCAPED_ESC, _ESCAPED_NEWLINE = b"\x1be", b"\x1bn"
_HEAD = struct.Struct(">cI")
_U32 = struct.Struct(">I")

Frame = NamedTuple("Frame", [("kind", bytes), ("stream", int), ("payload", bytes)])


def encode(kind: bytes, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame as its whole line. `payload` has at most MAX_PAYLOAD bytes."""
    assert len(payload) <= MAX_PAYLOAD
    body = _HEAD.pack(kind, stream) + payload
    body += _U32.pack(binascii.crc32(body) & 0xFFFFFFFF)
    return b"\x01" + body.replace(_ESC, _ESCAPED_ESC).replace(_NEWLINE, _ESCAPED_NEWLINE) + b"\n"


def encode_json(kind: bytes, stream: int, value: Dict[str, Any]) -> bytes:
    """A frame whose payload is a JSON object."""
    return encode(kind, stream, json.dumps(value, separators=(",", ":")).encode())


def encode_data(stream: int, channel: int, data: bytes) -> bytes:
    """Frames with all of `data`; none is the channel's end, which is a frame too."""
    step = MAX_PAYLOAD - 1
    mark = bytes([channel])
    if len(data) <= step:
        return encode(DATA, stream, mark + data)
    return b"".join(encode(DATA, stream, mark + data[at : at + step]) for at in range(0, len(data), step))


def encode_credit(stream: int, count: int) -> bytes:
    return encode(CREDIT, stream, _U32.pack(count))


def credit_of(frame: Frame) -> int:
    """The bytes of a CREDIT; 0 for what is none."""
    return int(_U32.unpack(frame.payload)[0]) if len(frame.payload) == _U32.size else 0


def json_of(frame: Frame) -> Dict[str, Any]:
    """The JSON object of a frame; {} for what is none."""
    try:
        value = json.loads(frame.payload.decode())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _frame(line: bytes) -> "Union[Frame, None]":
    """None for what is damaged. `line` is without its first byte and its line break."""
    body = line.replace(_ESCAPED_NEWLINE, _NEWLINE).replace(_ESCAPED_ESC, _ESC)
    end = len(body) - _U32.size
    if end < _HEAD.size or end > _HEAD.size + MAX_PAYLOAD:
        return None
    if _U32.unpack_from(body, end)[0] != binascii.crc32(body[:end]) & 0xFFFFFFFF:
        return None
    kind, stream = _HEAD.unpack_from(body)
    return Frame(kind, stream, body[_HEAD.size : end])


class Decoder:
    """Bytes in, whole frames and other lines out."""

    def __init__(self) -> None:
        self.dropped = 0  # lines that were damaged or too long
        self._parts: List[bytes] = []
        self._held = 0
        self._skipping = False  # the line that is not complete yet was too long already

    def feed(self, data: bytes) -> "List[Union[Frame, bytes]]":
        """Take what was read. A line that is no frame comes as its bytes, without the line break."""
        found: List[Union[Frame, bytes]] = []
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            whole = b"".join(self._parts) + line if self._parts else line
            too_long = self._skipping or len(whole) > MAX_LINE
            self._parts, self._held, self._skipping = [], 0, False
            if too_long:
                self.dropped += 1
            elif whole[:1] != b"\x01":
                if whole:
                    found.append(whole)
            else:
                frame = _frame(whole[1:])
                if frame is None:
                    self.dropped += 1
                else:
                    found.append(frame)
        if rest and not self._skipping:
            self._held += len(rest)
            self._parts.append(rest)
            if self._held > MAX_LINE:
                self._parts, self._held, self._skipping = [], 0, True
            elif len(self._parts) > 64:  # a line that comes byte by byte must not cost an object for each
                self._parts = [b"".join(self._parts)]
        return found
