"""Undo steps are on disk before the thing exists, and are taken newest first, past every failure."""

import errno
import os
from pathlib import Path

import pytest

from vmlib import postflight
from vmlib.errors import HostError
from vmlib.journal import Journal, Undo
from vmlib.paths import Layout
from vmlib.process import identify, save_identity


class World:
    """Things that are made and taken back."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.stuck: set[str] = set()

    def remove(self, name: str) -> None:
        if name in self.stuck:
            raise OSError(errno.EBUSY, "busy", name)
        self.undone.append(name)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def journal(world: World, tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", {"thing.remove": world.remove})


def make_and_fail(journal: Journal) -> None:
    with journal.rollback_on_error():
        journal.note("thing.remove", name="one")
        raise KeyError("boom")


def test_undoes_newest_first_and_then_forgets(journal: Journal, world: World, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        journal.note("thing.remove", name=name)
    assert journal.unwind() == []
    assert world.undone == ["third", "second", "first"]
    assert not (tmp_path / "journal").exists()
    assert journal.unwind() == []


def test_another_process_can_undo_it(journal: Journal, world: World, tmp_path: Path) -> None:
    journal.note("thing.remove", name="ä\n")
    other = Journal(tmp_path / "journal", {"thing.remove": world.remove})
    assert other.pending() == [Undo("thing.remove", {"name": "ä\n"})]
    assert other.unwind() == []
    assert world.undone == ["ä\n"]


def test_unwind_goes_on_past_a_failure_and_keeps_the_journal(journal: Journal, world: World) -> None:
    for name in ("first", "second", "third"):
        journal.note("thing.remove", name=name)
    world.stuck.add("second")
    (failure,) = journal.unwind()
    assert str(failure) == "[Errno 16] busy: 'second'"
    assert world.undone == ["third", "first"]
    world.stuck.clear()
    assert journal.unwind() == []
    assert world.undone[2:] == ["third", "second", "first"]


def test_an_undo_of_a_later_version_is_kept_and_stops_nothing(journal: Journal, world: World, tmp_path: Path) -> None:
    journal.note("thing.remove", name="ours")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"action": "thing.of_tomorrow", "args": {}}\n')
    assert len(journal.unwind()) == 1
    assert world.undone == ["ours"]
    assert len(journal.pending()) == 2


@pytest.mark.parametrize("cut", ['{"action": "thing.remove", "args": {"na', "{", '"', ""])
def test_a_last_line_that_a_crash_cut_short_does_not_count(
    journal: Journal, world: World, tmp_path: Path, cut: str
) -> None:
    journal.note("thing.remove", name="whole")
    with (tmp_path / "journal").open("a") as file:
        file.write(cut)
    assert journal.pending() == [Undo("thing.remove", {"name": "whole"})]
    assert journal.unwind() == []
    assert world.undone == ["whole"]


def test_a_block_that_raises_is_taken_back(journal: Journal, world: World) -> None:
    with pytest.raises(KeyError, match="boom"):
        make_and_fail(journal)
    assert world.undone == ["one"]


def test_a_block_that_ends_well_is_kept(journal: Journal, world: World) -> None:
    with journal.rollback_on_error():
        journal.note("thing.remove", name="one")
    assert world.undone == []
    assert [undo.args["name"] for undo in journal.pending()] == ["one"]


def test_a_step_that_is_not_wholly_on_disk_was_not_recorded(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is nearly full takes a part of the line, and the write does not raise."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(OSError, match="No space left on device") as caught:
        journal.note("thing.remove", name="one")
    assert caught.value.errno == errno.ENOSPC
    assert journal.pending() == []


def test_only_an_action_that_exists_can_be_noted(journal: Journal) -> None:
    with pytest.raises(AssertionError):
        journal.note("thing.unknown", name="x")


def test_the_journal_is_private(journal: Journal, tmp_path: Path) -> None:
    journal.note("thing.remove", name="x")
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_the_uid_of_a_vmm_that_survives_is_not_given_away(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", tmp_path / "run")
    paths, run = layout.machine("a/t"), layout.run("a/t/1")
    paths.root.mkdir(parents=True)
    run.root.mkdir(parents=True)
    paths.uid.write_text("200000")
    me = identify(os.getpid())
    assert me is not None
    save_identity(run.vmm, me)
    free = postflight.actions(layout)["uid.free"]
    with pytest.raises(HostError, match="still runs"):
        free(path=str(paths.uid), run_dir=str(run.root))
    assert paths.uid.exists()
    run.vmm.unlink()
    free(path=str(paths.uid), run_dir=str(run.root))
    assert not paths.uid.exists()
