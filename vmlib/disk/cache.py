"""Images that jobs bring along, kept once for all machines: by their content, made by one at a time.

`images/SHA256.KIND` is what was made of the file with that checksum, `seen/KEY` remembers the checksum of a file by
what changes with it, and `locks/` makes those wait who want the same. A machine has a hard link of its own to the
image below its disk, so that removing one here takes nothing from anybody.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib import files
from vmlib.aside import set_aside
from vmlib.disk.copy import made_beside, told
from vmlib.errors import SpecError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an image is made of a file."""

    kind: str  # what comes out, and of what: files of one content and kind are one image
    checksum: Callable[[int], str]  # of the file behind a descriptor
    # Fills the empty file behind the second descriptor from the file behind the first. Returns the checksum of what it
    # has read, because a job may write to the first meanwhile. Raises SpecError, OSError.
    fill: Callable[[int, int], str]


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

    def __str__(self) -> str:
        return f"image cache {self._top}"

    def get(self, source_fd: int, recipe: Recipe, target: Path | None, *, what: str) -> str:
        """Give a machine its own name `target` for the image of a file, which is made now if nobody did it before.

        Without `target` it is only made. Whoever wants the same file meanwhile waits for the first. `what` is the job's
        words for it. Returns the image's name here. Raises SpecError, NoCapacityError when the host's disk is full,
        HostError; nothing partial stays.
        """
        with told(f"{what}, {self}"):
            for name in ("images", "seen", "locks"):
                files.make_directory(self._top / name)
            while True:
                path = self._make(source_fd, recipe, what)
                try:
                    os.utime(path)
                    if target is not None:
                        target.unlink(missing_ok=True)
                        os.link(path, target)
                        files.sync_directory(target.parent)
                except FileNotFoundError:  # it was old, and somebody collected it just now
                    continue
                return path.name

    def _make(self, source_fd: int, recipe: Recipe, what: str) -> Path:
        key = _key(os.fstat(source_fd), recipe.kind)
        seen = self._top / "seen" / key
        if (path := self._known(seen)) is not None:
            return path
        with files.locked(self._top / "locks" / key):
            if (path := self._known(seen)) is not None:
                return path
            _expect_readable(seen)
            path = self._top / "images" / f"{recipe.checksum(source_fd)}.{recipe.kind}"
            # Two files of one content have two keys, and this is where they meet.
            with files.locked(self._top / "locks" / path.name):
                if not path.exists():
                    with made_beside(path) as (fd, _):
                        used = recipe.fill(source_fd, fd)
                        # Under the checksum of one content nobody may find another: other jobs trust it.
                        if f"{used}.{recipe.kind}" != path.name:
                            raise SpecError(f"{what}: changed while it was read, expected a file that is complete")
                        os.fchmod(fd, 0o400)
            files.write_atomic(seen, json.dumps(path.name).encode())
            return path

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

    def collect(
        self, *, max_bytes: int, max_age_s: float, now: float | None = None, dry_run: bool = False
    ) -> list[Path]:
        """Remove what was not used for so long, then the oldest until no more than `max_bytes` are left.

        What a machine has a link to costs the host its room anyway, and stays. Returns what was removed, or with
        `dry_run` what would have been.
        """
        now = time.time() if now is None else now
        images = [image for image in self.images() if image.bytes]
        total = sum(image.bytes for image in images)
        gone = []
        for image in images:
            if now - image.used_at <= max_age_s and total <= max_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                if not dry_run:
                    image.path.unlink()
                gone.append(image.path)
                verb = "would remove" if dry_run else "removed"
                log.info("%s image=%s: %d bytes, not used lately", verb, image.path.name, image.bytes)
            total -= image.bytes
        if not dry_run:
            self._forget_lost()
        return gone

    def _known(self, seen: Path) -> Path | None:
        try:
            path = self._top / "images" / str(files.parse_json(files.read_own(seen)))
            return path if path.parent == self._top / "images" and path.exists() else None
        except (FileNotFoundError, ValueError):
            return None
        except OSError as exc:  # a name that there cannot be
            if exc.errno != errno.ENAMETOOLONG:
                raise
            return None

    def _forget_lost(self) -> None:
        """What was remembered of files whose image is gone."""
        for seen in (self._top / "seen").glob("*"):
            if self._known(seen) is None:
                seen.unlink(missing_ok=True)
                self._unlock(seen.name)
        for torn in (self._top / "images").glob(".*"):  # by somebody who was killed while it was made
            name = torn.name[1:].rpartition(".")[0]
            with contextlib.suppress(BlockingIOError), files.locked(self._top / "locks" / name, blocking=False):
                torn.unlink(missing_ok=True)
        for lock in (self._top / "locks").glob("*.*"):
            if not (self._top / "images" / lock.name).exists():
                self._unlock(lock.name)

    def _unlock(self, name: str) -> None:
        """Remove a lock that nobody holds. Whoever waits for it notices, and makes it anew."""
        path = self._top / "locks" / name
        with contextlib.suppress(BlockingIOError), files.locked(path, blocking=False):
            path.unlink(missing_ok=True)


def _expect_readable(seen: Path) -> None:
    """One that is damaged is set aside; only its lock's holder calls this."""
    try:
        if not isinstance(files.parse_json(files.read_own(seen)), str):
            raise ValueError("no name")
    except FileNotFoundError:
        pass
    except ValueError as exc:
        set_aside(seen, str(exc))


def _key(status: os.stat_result, kind: str) -> str:
    """What changes when a file does. The ctime is what nobody can set."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, kind)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
