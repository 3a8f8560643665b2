"""Who holds which CPU: one file for plugin, `dev` and `run`, under one lock, and its way back after any crash."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from vmlib.aside import set_aside
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.words import Entry, Placement
from vmlib.errors import HostError
from vmlib.files import locked, make_directory, read_own, write_atomic

VERSION = 1


class LedgerConflictError(HostError):
    """A CPU would belong to two machines. The book is left as it was."""


class _UnreadableError(Exception):
    """The file cannot be used; the message says why."""


class _Head(msgspec.Struct, frozen=True):
    """What every version of the file has."""

    version: int


class _File(msgspec.Struct, frozen=True):
    version: int
    sha256: str  # of `entries` as they stand there
    entries: msgspec.Raw


class Book:
    """The ledger while its lock is held. No CPU is ever in two of its entries."""

    def __init__(self, path: Path, entries: Iterable[Entry], *, quarantined: str = "", reason: str = "") -> None:
        self.quarantined = quarantined  # where a file that could not be used lies now; "" = there was none
        self.reason = reason  # why it could not be used
        self._path = path
        self._entries: dict[str, Entry] = {}
        self._holders: dict[int, str] = {}  # id by CPU
        self.put(*entries)
        self._saved = tuple(self._entries.values())

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By id, oldest first. A live view: take a copy before changing the book while walking over it."""
        return MappingProxyType(self._entries)

    def put(self, *entries: Entry) -> None:
        """Add entries or replace those of the same id, all or none of them; machines may swap CPUs in one call.

        Raises LedgerConflictError.
        """
        new = {entry.id: entry for entry in entries}
        claimed: dict[int, str] = {}
        for entry in new.values():
            self._check(entry, new, claimed)
        self._release(new)
        self._entries.update(new)
        self._holders.update(claimed)

    def drop(self, id: str) -> Entry | None:  # noqa: A002  the entry's word
        """Take one out; None when it is not there."""
        self._release([id])
        return self._entries.pop(id, None)

    def save(self) -> None:
        """Write the file if anything changed."""
        now = tuple(self._entries.values())
        if now != self._saved:
            write_atomic(self._path, _encode(now))
            self._saved = now

    def _check(self, entry: Entry, new: Mapping[str, Entry], claimed: dict[int, str]) -> None:
        """Claim the entry's CPUs, or say who has them. What a replaced entry holds counts no more."""
        taken: dict[str, list[int]] = {}
        for cpu in entry.placement.cpus:
            holder = claimed.setdefault(cpu, entry.id)
            if holder == entry.id:
                holder = self._holders.get(cpu, entry.id)
                holder = entry.id if holder in new else holder
            if holder != entry.id:
                taken.setdefault(holder, []).append(cpu)
        for holder, cpus in taken.items():
            other = new.get(holder) or self._entries[holder]
            raise LedgerConflictError(f"CPU {format_cpus(cpus)} of {_who(entry)} belongs to {_who(other)}")

    def _release(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            if id_ in self._entries:
                for cpu in self._entries[id_].placement.cpus:
                    self._holders.pop(cpu, None)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The file and its lock. The lock is another file, because the ledger is replaced at every change."""

    path: Path
    lock: Path

    @contextlib.contextmanager
    def open(self) -> Iterator[Book]:
        """Wait for the lock, read, and save at the end; an exception inside leaves the file as it was.

        A file whose content cannot be used is moved aside and the book begins empty, to be filled by `reconcile`. Not
        for use inside itself: the second would wait for the first. Raises HostError when the file cannot be read now.
        """
        for directory in {self.path.parent, self.lock.parent}:
            make_directory(directory)
        with locked(self.lock):
            book = self._load()
            yield book
            book.save()

    def _load(self) -> Book:
        try:
            return Book(self.path, _decode(read_own(self.path)))
        except FileNotFoundError:
            return Book(self.path, ())
        except OSError as exc:
            raise HostError(f"ledger {self.path}: {(exc.strerror or str(exc)).lower()}") from exc
        except (ValueError, _UnreadableError, LedgerConflictError) as exc:
            reason = str(exc)
        return Book(self.path, (), quarantined=str(set_aside(self.path, reason)), reason=reason)


def read_entries(path: Path) -> tuple[Entry, ...]:
    """What the ledger says now, for those who only look: without the lock, and nothing when it cannot be used."""
    try:
        return _decode(path.read_bytes())
    except (OSError, _UnreadableError):
        return ()


# -- after a crash ---------------------------------------------------------------------------------------------------


def reconcile(
    book: Book,
    *,
    boot_id: str,
    lives: Callable[[Entry], bool],
    all_known: Iterable[Entry] = (),
    started_at: Callable[[Entry], float] = lambda _: 0.0,
) -> list[str]:
    """Bring the book in line with what lives, and say what was changed.

    `lives`: the VMM or the keeper runs, or the cgroup is not empty. What the book says of a machine that lives is
    right. One that lives and is missing is put in from `all_known`: those to whom the scheduler itself gave their
    cores, then the earlier start, then by id, in whatever order they are given. It loses its cores, not its entry, if
    one of them belongs to another by then.
    """
    said = []
    for entry in tuple(book.entries.values()):
        why = "of an earlier boot" if entry.boot_id != boot_id else "" if lives(entry) else "gone"
        if why:
            book.drop(entry.id)
            said.append(f"{_who(entry)} is {why}{_holding(entry, ', free again: ')}")
    for entry in sorted(all_known, key=lambda entry: (entry.placement.source != "given", started_at(entry), entry.id)):
        if entry.id in book.entries or entry.boot_id != boot_id or not lives(entry):
            continue
        try:
            book.put(entry)
            said.append(f"{_who(entry)} lives and was missing{_holding(entry, ', entered again with ')}")
        except LedgerConflictError as exc:
            floats = Placement(nodes=entry.placement.nodes)
            book.put(replace(entry, placement=floats, level=floats.level, yielded=str(exc)))
            said.append(f"{_who(entry)} lives and was missing, entered again without cores: {exc}")
    return said


# -- the file --------------------------------------------------------------------------------------------------------


def _encode(entries: tuple[Entry, ...]) -> bytes:
    body = msgspec.json.encode(entries)
    return msgspec.json.encode(_File(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def _decode(data: bytes) -> tuple[Entry, ...]:
    try:
        version = msgspec.json.decode(data, type=_Head).version
        if version != VERSION:
            raise _UnreadableError(f"version = {version}, expected {VERSION}")
        file = msgspec.json.decode(data, type=_File)
        if hashlib.sha256(file.entries).hexdigest() != file.sha256:
            raise _UnreadableError("the checksum is wrong")
        return msgspec.json.decode(file.entries, type=tuple[Entry, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _UnreadableError(f"no ledger: {str(exc).lower()}") from exc


def _who(entry: Entry) -> str:
    return f"{entry.name} ({entry.owner})"


def _holding(entry: Entry, words: str) -> str:
    return f"{words}CPU {format_cpus(entry.placement.cpus)}" if entry.placement.cpus else ""
