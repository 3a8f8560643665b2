"""Images that had to be unpacked, kept once for all machines: by their content, made by one at a time.

`images/SHA256.FORMAT` is what came out of the file with that checksum, `seen/KEY` remembers the checksum of a file by
what changes with it, and `locks/KEY` makes those wait who want the same. A machine has a hard link of its own to the
image below its disk, so that removing one here takes nothing from anybody.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib import files
from vmlib.disk.copy import made_beside, told
from vmlib.spec import DiskFormat

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20

# Fills the empty file behind the second descriptor from the file behind the first. Raises SpecError, OSError.
Fill = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedImage:
    """One image in the cache."""

    path: Path
    used_at: float  # seconds since 1970
    bytes: int  # that its removal would give back; 0 while a machine has it


class ImageCache:
    """The cache in one directory. Safe to be used by several threads and processes at once."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def get(self, source_fd: int, format_: DiskFormat, fill: Fill, *, what: str) -> Path:
        """The image that `fill` makes of the file behind `source_fd`, made now if nobody has made it before.

        Whoever wants the same file meanwhile waits for the first. `what` is the job's words for it. Raises SpecError,
        NoCapacityError when the host's disk is full, HostError; nothing partial stays.
        """
        for name in ("images", "seen", "locks"):
            (self._top / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        key = _key(os.fstat(source_fd), format_)
        with told(what), files.locked(self._top / "locks" / key):
            seen = self._top / "seen" / key
            path = self._known(seen)
            if path is None:
                path = self._top / "images" / f"{_checksum(source_fd)}.{format_}"
                # Two files of one content have two keys, and this is where they meet.
                with files.locked(self._top / "locks" / path.name):
                    if not path.exists():
                        with made_beside(path) as (fd, _):
                            fill(source_fd, fd)
                files.write_atomic(seen, json.dumps(path.name).encode())
            os.utime(path)
            return path

    def link(self, image: Path, target: Path) -> None:
        """Give a machine its own name for an image. Raises FileNotFoundError when that was removed meanwhile."""
        target.unlink(missing_ok=True)
        os.link(image, target)

    def images(self) -> Iterator[CachedImage]:
        """Every image, the one that was used longest ago first."""
        found = []
        for path in (self._top / "images").glob("[0-9a-f]*.*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                alone = status.st_nlink == 1
                found.append(
                    CachedImage(path=path, used_at=status.st_mtime, bytes=status.st_blocks * 512 if alone else 0)
                )
        yield from sorted(found, key=lambda image: image.used_at)

    def collect(self, *, max_bytes: int, max_age_s: float, now: float | None = None) -> list[Path]:
        """Remove what was not used for so long, then the oldest until no more than `max_bytes` are left.

        What a machine has a link to costs the host its room anyway, and stays. Returns what was removed.
        """
        now = time.time() if now is None else now
        images = [image for image in self.images() if image.bytes]
        total = sum(image.bytes for image in images)
        gone = []
        for image in images:
            if now - image.used_at <= max_age_s and total <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                image.path.unlink()
                gone.append(image.path)
                log.info("image cache: removed %s, %d bytes", image.path.name, image.bytes)
            total -= image.bytes
        self._forget_lost()
        return gone

    def _known(self, seen: Path) -> Path | None:
        try:
            path = self._top / "images" / str(json.loads(seen.read_bytes()))
        except (FileNotFoundError, ValueError):
            return None
        return path if path.parent == self._top / "images" and path.exists() else None

    def _forget_lost(self) -> None:
        """What was remembered of files whose image is gone."""
        for seen in (self._top / "seen").glob("*"):
            if self._known(seen) is None:
                seen.unlink(missing_ok=True)
                (self._top / "locks" / seen.name).unlink(missing_ok=True)


def _key(status: os.stat_result, format_: DiskFormat) -> str:
    """What changes when a file does. The ctime is what nobody can set."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, format_)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _checksum(fd: int) -> str:
    digest, pos = hashlib.sha256(), 0
    while piece := os.pread(fd, _PIECE_BYTES, pos):
        digest.update(piece)
        pos += len(piece)
    return digest.hexdigest()
