"""Every file of ours, cut short at every byte or full of garbage, is read as if it were not there, or as it was."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from driver.handle import Handle
from tests.unit.test_record import MACHINE
from vmlib import aside, version, vfio
from vmlib.cores.ledger import Ledger, read_entries
from vmlib.cores.words import Entry, Placement
from vmlib.disk.persistent import Holder, PersistentDisks
from vmlib.errors import HostError
from vmlib.journal import Journal
from vmlib.paths import Layout, MachinePaths
from vmlib.preflight import held_uids
from vmlib.record import ExitRecord, Mark, RunMark, damaged, load_exit, load_machine, load_mark, load_run_mark
from vmlib.spec import DiskKey

_KEY = DiskKey(namespace="default", job="db", group="g", index=0, name="data")
GARBAGE = (
    b"\0" * 100,
    b"\xff" * 100,
    Random(1).randbytes(100),
    b"[" * 100_000,
    b"[]",
    b"{}",
    b"null",
    b'"x"',
    b"7",
    b'{"version": 1, "id": []}\n',
    b'{"action": "x", "args": 3}\n',
)


@dataclass(frozen=True)
class Kind:
    """One file of ours: how it is made, and what its reader says. `nothing` is what it says of a missing file."""

    name: str
    make: Callable[[Layout], Path]
    read: Callable[[Path], Any]
    nothing: Any = None


def _entry() -> Entry:
    placement = Placement(level="driver", vcpus=(1,), cpus=(1,), nodes=(0,))
    return Entry(id="a/web/1", name="a/web", owner="nomad", boot_id="b", run_dir="/run/x", placement=placement)


def _machine(layout: Layout, kind: str) -> Path:
    paths = layout.machine("a/web")
    paths.root.mkdir(parents=True)
    match kind:
        case "mark":
            Mark(name="a/web", owner="nomad", alive_while="/alloc").save(paths.mark)
            return paths.mark
        case "record":
            MACHINE.save(paths.record)
            return paths.record
        case "exit":
            ExitRecord(id="a/web/1", at=1.0, exit_code=0).save(paths.exit_record)
            return paths.exit_record
        case "run":
            RunMark(id="a/web/1", name="a/web", owner="nomad", data_dir="/d").save(paths.root / "run")
            return paths.root / "run"
        case "uid":
            paths.uid.write_bytes(b"200000\n")
            return paths.uid
        case "vfio":
            paths.vfio.write_bytes(b'["17"]')
            return paths.vfio
    Journal(paths.journal, {"x": print}).note("x", name="ä")
    return paths.journal


def _ledger(layout: Layout) -> Path:
    with Ledger(layout.ledger, layout.ledger_lock).open() as book:
        book.put(_entry())
    return layout.ledger


def _version(layout: Layout) -> Path:
    layout.data_dir.mkdir()
    version.claim(layout)
    return layout.version


def _holder(layout: Layout) -> Path:
    store = PersistentDisks(layout.disks, lambda _: False)
    holder = Holder(machine_id="a/web/1", name="a/web", boot_id="b", run_dir="/r")
    taken = store.take(_KEY, format="raw", size_bytes=4096, max_virtual_bytes=1 << 40, holder=holder, what="disk[0]")
    os.close(taken.file.fd)
    return store.directory(_KEY) / "holder.json"


def _disk(path: Path) -> Any:
    store = PersistentDisks(path.parent.parent, lambda _: True)
    return [(disk.key, disk.format) for disk in store.list()]


def _held(path: Path) -> Any:
    store = PersistentDisks(path.parent.parent, lambda _: True)
    return [disk.holder for disk in store.list() if disk.holder]


KINDS = (
    Kind("mark", lambda layout: _machine(layout, "mark"), load_mark),
    Kind("record", lambda layout: _machine(layout, "record"), load_machine),
    Kind("exit", lambda layout: _machine(layout, "exit"), lambda path: load_exit(path, "a/web/1")),
    Kind("run", lambda layout: _machine(layout, "run"), load_run_mark),
    Kind("journal", lambda layout: _machine(layout, "journal"), lambda path: Journal(path, {}).pending(), []),
    Kind("vfio", lambda layout: _machine(layout, "vfio"), lambda path: vfio.load_claims([path]), {}),
    Kind("ledger", _ledger, read_entries, ()),
    Kind("holder", _holder, _held, []),
    Kind("disk", lambda layout: _holder(layout).with_name("disk.json"), _disk, []),
)


def _cut(whole: bytes) -> Iterator[bytes]:
    yield from (whole[:length] for length in range(len(whole)))
    yield from GARBAGE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_half_a_file_is_none_and_never_another_one(kind: Kind, tmp_path: Path) -> None:
    path = kind.make(Layout(tmp_path / "data", tmp_path / "run"))
    whole, said = path.read_bytes(), kind.read(path)
    assert said != kind.nothing
    for data in _cut(whole):
        path.write_bytes(data)
        assert kind.read(path) in (said, kind.nothing), data
    path.unlink()
    assert kind.read(path) == kind.nothing


@pytest.mark.parametrize("kind", ["mark", "record", "exit"])
def test_what_is_no_record_is_found_to_be_damaged(kind: str, tmp_path: Path) -> None:
    path = _machine(Layout(tmp_path / "data", tmp_path / "run"), kind)
    paths = MachinePaths(path.parent)
    assert list(damaged(paths)) == []
    for data in _cut(path.read_bytes()):
        path.write_bytes(data)
        assert [one for one, _ in damaged(paths)] == [path], data


def test_a_uid_that_was_cut_short_is_still_that_of_the_record(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", tmp_path / "run")
    path = _machine(layout, "uid")
    MACHINE.save(layout.machine("a/web").record)
    for data in _cut(path.read_bytes()):
        path.write_bytes(data)
        assert (MACHINE.uid in held_uids(path)) is not data.endswith(b"\n"), data
    path.write_bytes(b"200000")  # as the last release wrote it
    assert held_uids(path) == {200000}


def test_a_version_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", tmp_path / "run")
    path = _version(layout)
    whole = path.read_bytes()
    for data in (b"", b"1", *GARBAGE):
        path.write_bytes(data)
        if data == b"7":
            continue
        version.expect_ours(layout)
        version.claim(layout)
        assert path.read_bytes() == whole, data
        assert list(aside.found(layout))
    path.write_bytes(b"12\n")
    with pytest.raises(version.OtherVersionError, match="says 12, expected 1"):
        version.claim(layout)


def test_a_damaged_journal_is_set_aside_once_the_rest_is_undone(tmp_path: Path) -> None:
    undone: list[str] = []
    journal = Journal(tmp_path / "journal", {"x": lambda *, name: undone.append(name)})
    for name in ("first", "second", "third"):
        journal.note("x", name=name)
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(lines[0] + b"\xff\0" + lines[1][9:] + lines[2])
    assert journal.unwind() == []
    assert undone == ["third", "first"]
    assert [path.name.partition(".corrupt-")[0] for path in tmp_path.iterdir()] == ["journal"]
    assert journal.pending() == []


def test_no_more_than_four_of_one_name_are_kept(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / "ledger.json").write_text(str(number))
        aside.set_aside(tmp_path / "ledger.json", "by the test")
    kept = sorted(path.read_text() for path in aside.found(Layout(tmp_path, tmp_path)))
    assert len(kept) == 4
    assert "8" in kept


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_is_no_handle(data: bytes) -> None:
    with pytest.raises(HostError, match="task handle"):
        Handle.decode(data)
