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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vmlib import files
from vmlib.aside import set_aside
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
    """Those of one data directory. `busy` says whether that holder still has a hold on anything.

    `claims` are those who have said elsewhere that they take the disk in a directory, should the note there be damaged.
    """

    def __init__(
        self,
        top: Path,
        busy: Callable[[Holder], bool],
        claims: Callable[[Path], Iterable[Holder]] = lambda _: (),
    ) -> None:
        self._top = top
        self._busy = busy
        self._claims = claims

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
            files.make_directory(directory)
            with files.locked(directory / "lock"):
                self._expect_free(directory, holder, what)
                note = _mended_note(directory, key)
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
            holder = self._holder(directory, but=machine_id)
            if holder is not None and holder.machine_id == machine_id:
                (directory / _HOLDER).unlink(missing_ok=True)

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
            holder = self._holder(directory)
            if holder is not None and self._busy(holder):
                raise HostError(f"persistent disk {id_}: in use by {holder.name}")
            # Away in one step: who looks meanwhile sees all of it or nothing.
            gone = self._top / f".{id_}.{os.urandom(4).hex()}"
            directory.rename(gone)
            files.sync_directory(self._top)
        shutil.rmtree(gone)

    def _expect_free(self, directory: Path, holder: Holder, what: str) -> None:
        other = self._holder(directory, but=holder.machine_id)
        # An earlier start of the same machine has been taken back before anybody comes here.
        if other is not None and other.name != holder.name and self._busy(other):
            raise NoCapacityError(f"{what}: persistent disk {directory.name} is in use by {other.name}")

    def _holder(self, directory: Path, *, but: str = "") -> Holder | None:
        """For whoever holds the disk's lock. A damaged note is made anew from what holders have said elsewhere.

        The start `but`, who asks, is in the midst of taking or releasing it, and hides nobody.
        """
        try:
            return _load_holder(directory)
        except HostError as exc:
            reason = str(exc)
        found = next((one for one in self._claims(directory) if one.machine_id != but and self._busy(one)), None)
        # Whoever is killed in between finds the damaged note once more.
        set_aside(directory / _HOLDER, reason)
        if found is not None:
            files.write_atomic(directory / _HOLDER, json.dumps(asdict(found)).encode())
        return found

    def _load(self, directory: Path) -> PersistentDisk | None:
        if directory.name.startswith(".") or (note := _load_note(directory)) is None:
            return None
        try:
            holder = _load_holder(directory)
        except HostError:  # set aside by the next one who takes or removes the disk; it is there all the same
            holder = next(filter(self._busy, self._claims(directory)), None)
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
        data = files.parse_json(files.read_own(directory / _NOTE))
        DiskKey(**data["key"])
        if data["format"] not in ("raw", "qcow2"):
            raise ValueError(data["format"])
        return dict(data)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise HostError(f"{directory / _NOTE}: not readable: {exc}") from exc


def _mended_note(directory: Path, key: DiskKey) -> dict[str, Any] | None:
    """What the disk is. A damaged note is made anew from the disk that lies there: it is `key`'s by its directory."""
    try:
        return _load_note(directory)
    except HostError as exc:
        disks = [path for path in (_disk_in(directory, "raw"), _disk_in(directory, "qcow2")) if path.exists()]
        if len(disks) > 1:
            raise
        set_aside(directory / _NOTE, str(exc))
    if not disks:
        return None
    note = {"key": asdict(key), "format": disks[0].suffix[1:], "created_at": disks[0].stat().st_mtime}
    files.write_atomic(directory / _NOTE, json.dumps(note).encode())
    return note


def _load_holder(directory: Path) -> Holder | None:
    try:
        data = files.parse_json(files.read_own(directory / _HOLDER))
        return Holder(**{field.name: str(data[field.name]) for field in fields(Holder)})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        raise HostError(f"{directory / _HOLDER}: not readable: {exc}") from exc
