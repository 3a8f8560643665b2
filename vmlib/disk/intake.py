"""What a job names, made ready to be built on: unpacked, and out of the job's own reach, by way of the image cache."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from vmlib.disk.cache import ImageCache, Recipe
from vmlib.disk.copy import Progress, clone_or_copy
from vmlib.disk.image import check_image, most_bytes
from vmlib.disk.unpack import UnpackLimits, expect_kind, unpack
from vmlib.files import open_ref
from vmlib.spec import DiskFormat, FileRef, Packing

_PIECE_BYTES = 64 * 1024
_ZEROS = bytes(_PIECE_BYTES)

# Nomad keeps ten events of a task: the first word after this long, each further one after three times as long.
_FIRST_WORD_S = 2.0
_PATIENCE = 3.0

Tell = Callable[[str], None]


class Intake:
    """The way of all images into machines. `tell` gets the text of a task event now and then while that takes long."""

    def __init__(self, cache: ImageCache, *, max_virtual_bytes: int, tell: Tell | None = None) -> None:
        self._cache = cache
        self._tell = tell
        self.max_virtual_bytes = max_virtual_bytes

    def bring(self, ref: FileRef, format_: DiskFormat, packed: Packing, target: Path | None, *, key: str) -> str:
        """Put the image that a job named with `key` at `target`, beside the cache; returns what it is called there.

        Without `target` into the cache alone. It is one file for all who have it, and nobody writes to it.
        Raises SpecError, NoCapacityError, HostError.
        """
        what = f"{key} = {str(ref)!r}"
        fd = open_ref(ref, key=key, max_bytes=most_bytes(self.max_virtual_bytes))
        try:
            if packed:
                expect_kind(os.pread(fd, _PIECE_BYTES, 0), packed, what=what)
            else:  # before the copy, because that may take long
                check_image(fd, declared=format_, key=key, path=ref, max_virtual_bytes=self.max_virtual_bytes)
            return self._cache.get(fd, self._recipe(ref, format_, packed, key), target, what=what)
        finally:
            os.close(fd)

    def open(self, ref: FileRef, format_: DiskFormat, packed: Packing, beside: Path, *, key: str) -> int:
        """Open the image that a job named, unpacked if need be; `beside` is a free name that is gone again afterwards.

        The caller owns the descriptor. Raises as `bring`.
        """
        if not packed:
            return open_ref(ref, key=key, max_bytes=most_bytes(self.max_virtual_bytes))
        self.bring(ref, format_, packed, beside, key=key)
        try:
            return os.open(beside, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        finally:
            beside.unlink()

    def _recipe(self, ref: FileRef, format_: DiskFormat, packed: Packing, key: str) -> Recipe:
        what = f"{key} = {str(ref)!r}"
        limit = self.max_virtual_bytes

        def unpacked(source_fd: int, target_fd: int) -> str:
            assert packed
            digest = hashlib.sha256()
            limits = UnpackLimits(max_bytes=most_bytes(limit))
            with _Telling(self._tell, ref, "unpacked") as progress:
                unpack(
                    source_fd,
                    target_fd,
                    kind=packed,
                    limits=limits,
                    what=what,
                    progress=progress,
                    read=digest.update,
                    target=str(self._cache),
                )
            check_image(target_fd, declared=format_, key=key, path=ref, max_virtual_bytes=limit)
            return digest.hexdigest()

        def copied(source_fd: int, target_fd: int) -> str:
            with _Telling(self._tell, ref, "copied") as progress:
                clone_or_copy(source_fd, target_fd, progress=progress)
            check_image(target_fd, declared=format_, key=key, path=ref, max_virtual_bytes=limit)
            return disk_checksum(target_fd)

        if packed:
            return Recipe(kind=f"{packed}.{format_}", checksum=file_checksum, fill=unpacked)
        return Recipe(kind=format_, checksum=disk_checksum, fill=copied)


def file_checksum(fd: int) -> str:
    """SHA-256 of a file's bytes."""
    digest, pos = hashlib.sha256(), 0
    while piece := os.pread(fd, _PIECE_BYTES, pos):
        digest.update(piece)
        pos += len(piece)
    return digest.hexdigest()


def disk_checksum(fd: int) -> str:
    """SHA-256 of a file's size and of every 64 KiB of it that is not all zeros, so that holes make no difference.

    Moves the read position.
    """
    size = os.fstat(fd).st_size
    digest, pos = hashlib.sha256(str(size).encode()), 0
    while pos < size:
        try:
            start = os.lseek(fd, pos, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError:  # only a hole is left, or the file became shorter
            break
        pos = start // _PIECE_BYTES * _PIECE_BYTES
        while pos < end:
            piece = os.pread(fd, _PIECE_BYTES, pos)
            if piece != _ZEROS[: len(piece)]:
                digest.update(pos.to_bytes(8, "big") + piece)
            pos += _PIECE_BYTES
    return digest.hexdigest()


class _Telling:
    """Tells of a long piece of work, more and more seldom, and of its end when it was told of at all."""

    def __init__(self, tell: Tell | None, ref: FileRef, done: str) -> None:
        self._tell = tell
        self._name = Path(ref.relative).name
        self._done = done
        self._began = time.monotonic()
        self._next = self._began + _FIRST_WORD_S
        self._told = False

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(self, kind: object, *_: object) -> None:
        if self._told and self._tell is not None and kind is None:
            self._tell(f"image: {self._name!r} {self._done} in {time.monotonic() - self._began:.0f} s")

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._tell is None or now < self._next:
            return
        self._told = True
        self._next = self._began + (now - self._began) * _PATIENCE
        self._tell(f"image: {self._name!r} is being {self._done}, {100 * done // max(total, 1)} %")
