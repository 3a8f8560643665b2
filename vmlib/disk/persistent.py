"""Persistent disks: kept when their machine goes, attached to the next one that asks, never to two at once.

Each has a directory of its own with the disk, a note of what it is, and while a machine has it one of who that is.
Nothing here removes a disk but `remove`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmlib import files
from vmlib.disk.copy import told
from vmlib.disk.grow import make_empty, open_grown
from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.resources import OpenFile
from vmlib.spec import DiskFormat, DiskKey

_ID_DIGITS = 12
_NOTE, _HOLDER = "disk.json", "holder.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One start of a machine that has the disk, or had it when it came to its end."""

    machine_id: str
    name: str
    boot_id: str
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentDisk:
    """One disk, for people. `size_bytes` is None when its file is missing."""

    id: str
    key: DiskKey
    format: DiskFormat
    created_at: float  # seconds since 1970
    path: Path
    size_bytes: int | None
    used_bytes: int
    holder: Holder | None


@dataclass(frozen=True, slots=True)
class Taken:
    """A disk in a machine's hands; the descriptor is the caller's."""

    file: OpenFile
    created: bool  # it was not there before, so it is empty


class PersistentDisks:
    """Those of one data directory. `busy` says whether that holder still has a hold on anything."""

    def __init__(self, top: Path, busy: Callable[[Holder], bool]) -> None:
        self._top = top
        self._busy = busy

    def directory(self, key: DiskKey) -> Path:
        return self._top / disk_id(key)

    def take(
        self,
        key: DiskKey,
        *,
        format: DiskFormat,  # noqa: A002  the job's word
        size_bytes: int,
        max_virtual_bytes: int,
        holder: Holder,
        what: str,
    ) -> Taken:
        """Attach a disk to a machine, and make it first when there is none. `what` is the job's words for it.

        Raises NoCapacityError while another machine has it or when the host's disk is full, SpecError when it is
        another disk than the job thinks, HostError.
        """
        directory = self.directory(key)
        with told(f"persistent disk {directory}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.locked(directory / "lock"):
                self._expect_free(directory, holder, what)
                note = _load_note(directory)
                if note is not None and note["format"] != format:
                    raise SpecError(
                        f"{what}.format = {format!r}: this persistent disk is {note['format']}, made before"
                    )
                files.write_atomic(directory / _HOLDER, json.dumps(asdict(holder)).encode())
                if note is None:
                    text = {"key": asdict(key), "format": format, "created_at": time.time()}
                    files.write_atomic(directory / _NOTE, json.dumps(text).encode())
                path = _disk_in(directory, format)
                created = not path.exists()
                if created:
                    make_empty(path, format, size_bytes)
                fd = open_grown(
                    path, format, size_bytes, what=what, size_key=f"{what}.size", max_virtual_bytes=max_virtual_bytes
                )
        return Taken(OpenFile(fd=fd, path=path), created)

    def release(self, directory: Path, machine_id: str) -> None:
        """The undo of `take`; the machine has ended. Does nothing when another one has the disk by now."""
        if directory.parent != self._top:
            raise HostError(f"{directory} is not beneath {self._top}")
        if not directory.exists():
            return
        with files.locked(directory / "lock"):
            holder = _load_holder(directory)
            if holder is not None and holder.machine_id == machine_id:
                (directory / _HOLDER).unlink()

    def list(self) -> Iterator[PersistentDisk]:
        """Every disk, by what it belongs to."""
        found = []
        for note in self._top.glob(f"*/{_NOTE}"):
            with contextlib.suppress(HostError):  # `take` says it to whom it concerns
                if (disk := self._load(note.parent)) is not None:
                    found.append(disk)
        yield from sorted(found, key=lambda disk: (disk.key, disk.id))

    def remove(self, id_: str) -> None:
        """Remove a disk and all that is on it. Raises HostError while a machine has it, or when there is none."""
        directory = self._top / id_
        if len(id_) != _ID_DIGITS or not (directory / _NOTE).exists():
            raise HostError(f"no persistent disk {id_!r} in {self._top}")
        with files.locked(directory / "lock"):
            holder = _load_holder(directory)
            if holder is not None and self._busy(holder):
                raise HostError(f"persistent disk {id_}: in use by {holder.name}")
            # Away in one step: who looks meanwhile sees all of it or nothing.
            gone = self._top / f".{id_}.{os.urandom(4).hex()}"
            directory.rename(gone)
        shutil.rmtree(gone)

    def _expect_free(self, directory: Path, holder: Holder, what: str) -> None:
        other = _load_holder(directory)
        # An earlier start of the same machine has been taken back before anybody comes here.
        if other is not None and other.name != holder.name and self._busy(other):
            raise NoCapacityError(f"{what}: persistent disk {directory.name} is in use by {other.name}")

    def _load(self, directory: Path) -> PersistentDisk | None:
        if directory.name.startswith(".") or (note := _load_note(directory)) is None:
            return None
        holder = _load_holder(directory)
        path = _disk_in(directory, note["format"])
        status = None
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
        return PersistentDisk(
            id=directory.name,
            key=DiskKey(**note["key"]),
            format=note["format"],
            created_at=note["created_at"],
            path=path,
            size_bytes=None if status is None else status.st_size,
            used_bytes=0 if status is None else status.st_blocks * 512,
            holder=holder if holder is not None and self._busy(holder) else None,
        )


def disk_id(key: DiskKey) -> str:
    """The directory's name: short, the same for the same key, and no path whatever a job is called."""
    return hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()[:_ID_DIGITS]


def _disk_in(directory: Path, format_: str) -> Path:
    return directory / f"disk.{format_}"


def _load_note(directory: Path) -> dict[str, Any] | None:
    """None when there is none. Raises HostError on one that is damaged: the disk beside it is somebody's."""
    try:
        data = json.loads((directory / _NOTE).read_bytes())
        DiskKey(**data["key"])
        if data["format"] not in ("raw", "qcow2"):
            raise ValueError(data["format"])
        return dict(data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise HostError(f"{directory / _NOTE}: not readable: {exc}") from exc


def _load_holder(directory: Path) -> Holder | None:
    try:
        return Holder(**json.loads((directory / _HOLDER).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as exc:
        raise HostError(f"{directory / _HOLDER}: not readable: {exc}") from exc
