"""cpio archives, as the kernel unpacks them; several in a row are one initrd."""

from collections.abc import Mapping
from dataclasses import dataclass

EPOCH = 1_700_000_000


class BuildError(Exception):
    """The guest cannot be built here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a cpio archive."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(files: Mapping[str, Entry]) -> bytes:
    """A cpio archive in the "newc" format, all owned by root and of one date."""
    out = bytearray()
    for inode, (name, entry) in enumerate([*sorted(files.items()), ("TRAILER!!!", Entry(0))], start=1):
        path = name.encode() + b"\0"
        fields = (
            inode,
            entry.mode,
            0,  # uid
            0,  # gid
            1,  # links
            EPOCH,
            len(entry.data),
            0,  # the device that the file is on
            0,
            *entry.device,
            len(path),
            0,  # checksum
        )
        out += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + path
        out += b"\0" * (-len(out) % 4)
        out += entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)
