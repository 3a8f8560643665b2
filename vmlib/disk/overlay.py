"""The name of the image below an overlay, in the overlay's header: for a VMM that finds it there, while that VMM runs.

The name leads to a descriptor of that VMM's and means nothing to anybody else. It is taken out before an overlay is
looked at again, by us or by a tool: its VMM was able to write another one there.
"""

import os
import struct

_MAGIC = b"QFI\xfb"
_VERSION_AT = 4
_BACKING_AT = 8  # offset, then size of the name
_CLUSTER_BITS_AT = 20
_HEADER_SIZE_AT = 100
_V2_HEADER_BYTES = 72
_END_OF_EXTENSIONS = 0
_BACKING_FORMAT = 0xE2792ACA
_ROOM_BYTES = 256  # at the end of the first cluster, behind all extensions
_MAX_EXTENSIONS = 64


def name_backing(fd: int, name: str, format_: str) -> None:
    """Write into the overlay that the image below it, of that format, is to be opened at `name`.

    Raises ValueError for what is no overlay of ours.
    """
    head = os.pread(fd, _HEADER_SIZE_AT + 4, 0)
    if not head.startswith(_MAGIC):
        raise ValueError("no qcow2 header")
    version, cluster_bits = (struct.unpack_from(">I", head, at)[0] for at in (_VERSION_AT, _CLUSTER_BITS_AT))
    at = struct.unpack_from(">I", head, _HEADER_SIZE_AT)[0] if version >= 3 else _V2_HEADER_BYTES
    start = (1 << cluster_bits) - _ROOM_BYTES
    _note_format(fd, at, format_, before=start)
    encoded = name.encode()
    if len(encoded) > _ROOM_BYTES:
        raise ValueError(f"a name of {len(encoded)} bytes, expected at most {_ROOM_BYTES}")
    os.pwrite(fd, encoded, start)
    os.pwrite(fd, struct.pack(">QI", start, len(encoded)), _BACKING_AT)


def forget_backing(fd: int) -> None:
    """Let the overlay name no other file. Does nothing to a file that is no qcow2."""
    if os.pread(fd, len(_MAGIC), 0) == _MAGIC:
        os.pwrite(fd, struct.pack(">QI", 0, 0), _BACKING_AT)


def _note_format(fd: int, at: int, format_: str, *, before: int) -> None:
    """Nothing guesses the format of what lies below."""
    data = format_.encode()
    note = struct.pack(">II", _BACKING_FORMAT, len(data)) + data.ljust((len(data) + 7) & ~7, b"\0")
    for _ in range(_MAX_EXTENSIONS):
        kind, size = struct.unpack(">II", os.pread(fd, 8, at))
        if kind == _BACKING_FORMAT:
            if os.pread(fd, size, at + 8) != data:
                raise ValueError("an overlay over an image of another format")
            return
        if kind == _END_OF_EXTENSIONS:
            if at + len(note) + 8 > before:
                break
            os.pwrite(fd, note + struct.pack(">II", _END_OF_EXTENSIONS, 0), at)
            return
        at += 8 + ((size + 7) & ~7)
        if at + 8 > before:
            break
    raise ValueError("no room in the header")
