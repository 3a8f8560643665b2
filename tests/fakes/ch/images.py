"""Files that the machine uses: opened as Cloud Hypervisor opens them, formats judged, locks taken."""

import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.ch.config import RefusedError

_TYPES = {"Raw": "raw", "Qcow2": "qcow2", "FixedVhd": "fixed_vhd", "Vhdx": "vhdx"}
_DRIVERS = {"raw": "raw", "qcow2": "qcow2", "fixed_vhd": "vpc", "vhdx": "vhdx"}
_F_OFD_SETLK = 37
_MAX_DEPTH = 10


@dataclass(slots=True)
class Layer:
    """One file of a disk; what it rests on comes after it."""

    fd: int
    driver: str  # as QEMU names formats
    block_device: bool


@dataclass(slots=True)
class Image:
    layers: list[Layer]
    size_bytes: int

    def close(self) -> None:
        for layer in self.layers:
            os.close(layer.fd)


def open_boot_file(path: str, what: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise RefusedError(f"Cannot open {what} file", _os_words(exc)) from exc


def open_disk(disk: Mapping[str, Any], *, allowed: "Rules | None") -> Image:
    """Raises RefusedError with the chain of messages for a disk that cannot be used."""
    path = disk["path"]
    fd = _open(path, readonly=disk["readonly"])
    image = Image([], 0)
    try:
        image.layers.append(_layer(fd))
        found = detect(fd)
        image.layers[0].driver = _DRIVERS[found]
        wanted = _TYPES.get(disk["image_type"])
        if wanted is not None and wanted != found:
            raise RefusedError(
                "Error from device manager",
                f"Disk image type does not match expected type: specified = {wanted}, detected = {found}",
            )
        image.size_bytes = _size(fd, found)
        name = _backing_of(fd, path) if found == "qcow2" else None
        while name is not None:
            if not disk["backing_files"] or len(image.layers) > _MAX_DEPTH:
                raise RefusedError(
                    "Error from device manager",
                    "Cannot open disk path",
                    f"Unsupported feature (path={path} op=open)",
                    "Maximum disk nesting depth exceeded",
                )
            if allowed is not None and not allowed.may_read(name):
                raise _io_error(name, PermissionError(13, "Permission denied"))
            lower = _open(name, readonly=True)
            image.layers.append(_layer(lower))
            kind = detect(lower)
            image.layers[-1].driver = _DRIVERS[kind]
            name = _backing_of(lower, name) if kind == "qcow2" else None
        _lock(fd, write=not disk["readonly"])
    except BaseException:
        if not image.layers:
            os.close(fd)
        image.close()
        raise
    return image


class Rules:
    """Landlock: what a path that the configuration does not name needs."""

    def __init__(self, rules: list[Mapping[str, str]]) -> None:
        self._rules = [(Path(rule["path"]).resolve(), rule["access"]) for rule in rules]

    def may_read(self, path: str) -> bool:
        real = Path(path).resolve()
        return any("r" in access and real.is_relative_to(below) for below, access in self._rules)


def detect(fd: int) -> str:
    head = os.pread(fd, 8, 0)
    if head[:4] == b"QFI\xfb":
        return "qcow2"
    if head == b"vhdxfile":
        return "vhdx"
    end = os.lseek(fd, 0, os.SEEK_END)
    if end >= 512 and os.pread(fd, 8, end - 512) == b"conectix":
        return "fixed_vhd"
    return "raw"


def _size(fd: int, kind: str) -> int:
    if kind == "qcow2":
        return int(struct.unpack(">Q", os.pread(fd, 8, 24))[0])
    return os.lseek(fd, 0, os.SEEK_END)


def _backing_of(fd: int, path: str) -> str | None:
    offset, size = struct.unpack(">QI", os.pread(fd, 12, 8))
    if offset == 0 or size == 0:
        return None
    name = os.pread(fd, size, offset).decode()
    return name if name.startswith("/") else str(Path(os.path.realpath(path)).parent / name)


def _layer(fd: int) -> Layer:
    return Layer(fd, "raw", stat.S_ISBLK(os.fstat(fd).st_mode))


def _open(path: str, *, readonly: bool) -> int:
    try:
        return os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as exc:
        raise _io_error(path, exc) from exc


def _io_error(path: str, exc: OSError) -> RefusedError:
    where = f"I/O error (path={path} op=open)"
    return RefusedError("Error from device manager", "Cannot open disk path", where, _os_words(exc))


def _os_words(exc: OSError) -> str:
    return f"{exc.strerror} (os error {exc.errno})"


def _lock(fd: int, *, write: bool) -> None:
    """Over the whole file, as an open file description's lock: it dies with the descriptor."""
    flock = struct.pack("hhqqi4x", fcntl.F_WRLCK if write else fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, flock)
    except OSError as exc:
        raise RefusedError("Error locking disk images: Another instance likely holds a lock") from exc
