"""Persistent disks: one owner at a time, kept until somebody removes them, found again by the same words."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.disk.persistent import Holder, PersistentDisks, Taken, disk_id
from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.spec import DiskKey

KEY = DiskKey(namespace="default", job="db", group="g", index=0, name="data")
MIB = 1 << 20


def holder(name: str, start: int = 0) -> Holder:
    return Holder(machine_id=f"{name}/{start}", name=name, boot_id="b", run_dir=f"/run/{name}")


class Disks:
    """The disks of one directory, with the machines that live."""

    def __init__(self, top: Path) -> None:
        self.living: set[str] = set()
        self.store = PersistentDisks(top, lambda one: one.name in self.living)

    def take(self, name: str, key: DiskKey = KEY, size: int = MIB, start: int = 0) -> Taken:
        taken = self.store.take(
            key, format="raw", size_bytes=size, max_virtual_bytes=1 << 40, holder=holder(name, start), what="disk[0]"
        )
        self.living.add(name)
        os.close(taken.file.fd)
        return taken


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "disks")


def test_the_next_machine_finds_what_the_last_one_left(disks: Disks) -> None:
    first = disks.take("a")
    assert first.created
    first.file.path.write_bytes(b"content".ljust(MIB))
    disks.living.clear()
    disks.store.release(disks.store.directory(KEY), "a/0")
    second = disks.take("b")
    assert (second.created, second.file.path) == (False, first.file.path)
    assert second.file.path.read_bytes().startswith(b"content")
    (disk,) = disks.store.list()
    assert (disk.key, disk.size_bytes, disk.holder) == (KEY, MIB, holder("b"))


def test_two_machines_never_have_one(disks: Disks) -> None:
    disks.take("a")
    with pytest.raises(NoCapacityError, match=r"disk\[0\]: persistent disk [0-9a-f]{12} is in use by a"):
        disks.take("b")
    assert not disks.take("a", start=1).created  # its own next start
    disks.store.release(disks.store.directory(KEY), "a/0")  # the earlier one is taken back late
    with pytest.raises(NoCapacityError):
        disks.take("b")


def test_a_machine_that_died_without_a_word_holds_nothing(disks: Disks) -> None:
    disks.take("a")
    disks.living.clear()
    assert not disks.take("b").created


@pytest.mark.parametrize("change", [{"job": "web"}, {"index": 1}, {"name": "log"}, {"namespace": "x"}, {"group": "h"}])
def test_other_words_are_another_disk(disks: Disks, change: dict[str, Any]) -> None:
    disks.take("a")
    assert disks.take("b", replace(KEY, **change)).created


def test_it_grows_and_does_not_shrink(disks: Disks) -> None:
    assert disks.take("a", size=MIB).file.path.stat().st_size == MIB
    assert disks.take("a", size=3 * MIB).file.path.stat().st_size == 3 * MIB
    with pytest.raises(SpecError, match=r"disk\[0\].size = 2 MiB: smaller than the disk, which has 3 MiB"):
        disks.take("a", size=2 * MIB)


def test_another_format_is_refused(disks: Disks) -> None:
    disks.take("a")
    with pytest.raises(SpecError, match="this persistent disk is raw"):
        disks.store.take(
            KEY, format="qcow2", size_bytes=MIB, max_virtual_bytes=1 << 40, holder=holder("a"), what="disk[0]"
        )


def test_removal_is_for_good_and_never_under_a_machine(disks: Disks) -> None:
    disks.take("a")
    with pytest.raises(HostError, match="in use by a"):
        disks.store.remove(disk_id(KEY))
    disks.living.clear()
    disks.store.remove(disk_id(KEY))
    assert list(disks.store.list()) == []
    assert disks.take("b").created


@pytest.mark.parametrize("wanted", ["", "x", "..", "../../etc/passw", "0" * 12])
def test_nothing_else_is_removed(disks: Disks, wanted: str) -> None:
    disks.take("a")
    with pytest.raises(HostError, match="no persistent disk"):
        disks.store.remove(wanted)
    assert len(list(disks.store.list())) == 1


def damage_note(directory: Path) -> None:
    (directory / "disk.json").write_bytes(b"{")


def damage_holder(directory: Path) -> None:
    (directory / "holder.json").write_bytes(b"[]")


@pytest.mark.parametrize("damage", [damage_note, damage_holder])
def test_a_damaged_note_is_set_aside_and_costs_nobody_the_disk(disks: Disks, damage: Callable[[Path], None]) -> None:
    taken = disks.take("a")
    taken.file.path.write_bytes(b"content".ljust(MIB))
    disks.living.clear()
    damage(disks.store.directory(KEY))
    assert not disks.take("b").created
    assert taken.file.path.read_bytes().startswith(b"content")
    assert [disk.key for disk in disks.store.list()] == [KEY]
    assert len(list(disks.store.directory(KEY).glob("*.json.corrupt-*"))) == 1


def test_one_whose_note_of_its_disk_is_damaged_keeps_it(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    disks.store = PersistentDisks(tmp_path / "disks", lambda one: one.name in disks.living, lambda _: [holder("a")])
    disks.take("a")
    damage_holder(disks.store.directory(KEY))
    for _ in range(2):  # Nomad tries again
        with pytest.raises(NoCapacityError, match="in use by a"):
            disks.take("b")
    damage_holder(disks.store.directory(KEY))
    with pytest.raises(HostError, match="in use by a"):
        disks.store.remove(disk_id(KEY))
    assert not disks.take("a", start=1).created


def test_whoever_wants_a_disk_does_not_hide_who_has_it(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "disks")
    disks.store = PersistentDisks(
        tmp_path / "disks", lambda one: one.name in ("a", "b"), lambda _: [holder("b"), holder("a")]
    )
    disks.take("a")
    damage_holder(disks.store.directory(KEY))
    with pytest.raises(NoCapacityError, match="in use by a"):
        disks.take("b")


@given(st.text(), st.text(), st.text(), st.integers(0, 99), st.text())
def test_a_disks_id_is_no_path_whatever_a_job_is_called(ns: str, job: str, group: str, index: int, name: str) -> None:
    key = DiskKey(namespace=ns, job=job, group=group, index=index, name=name)
    assert disk_id(key).isalnum()
    assert disk_id(key) == disk_id(replace(key))
