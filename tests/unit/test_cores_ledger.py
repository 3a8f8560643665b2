"""The ledger: never one CPU for two, and no content of its file stops anybody."""

import errno
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlib.cores.ledger import Book, Ledger, LedgerConflictError, read_entries, reconcile
from vmlib.cores.words import Entry, Placement
from vmlib.errors import HostError

BOOT = "boot-1"


def entry(id_: str, *cpus: int, boot_id: str = BOOT, name: str = "") -> Entry:
    placement = Placement(level="node", source="dedicated", vcpus=cpus, cpus=cpus, nodes=(0,)) if cpus else Placement()
    run_dir = f"/run/chv/{id_}"
    return Entry(id=id_, name=name or f"vm-{id_}", owner="nomad", boot_id=boot_id, run_dir=run_dir, placement=placement)


def ledger_in(directory: Path) -> Ledger:
    return Ledger(directory / "ledger.json", directory / "ledger.lock")


def cpus_of(entries: Iterable[Entry]) -> list[int]:
    return [cpu for one in entries for cpu in one.placement.cpus]


cpu_sets = st.sets(st.integers(0, 11), max_size=4)
entries_of_any_kind = st.builds(
    lambda id_, cpus, name, draining, repairs: replace(
        entry(id_, *sorted(cpus), name=name), draining=draining, repairs=repairs, yielded=name
    ),
    st.sampled_from("abcdef"),
    cpu_sets,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.booleans(),
    st.integers(0, 1 << 40),
)


# -- one CPU, one machine --------------------------------------------------------------------------------------------


def test_a_cpu_of_another_machine_is_refused_by_name(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", [entry("a", 2, 3, 4), entry("b", 5)])
    message = r"^CPU 3-4 of vm-c \(nomad\) belongs to vm-a \(nomad\)$"
    with pytest.raises(LedgerConflictError, match=message):
        book.put(entry("c", 3, 4, 8))
    assert list(book.entries) == ["a", "b"]
    book.put(entry("c", 8))  # what was refused has left no claim


def test_of_several_entries_all_or_none_are_put(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", [entry("a", 1)])
    with pytest.raises(LedgerConflictError):
        book.put(entry("b", 2), entry("c", 1))
    with pytest.raises(LedgerConflictError, match=r"vm-c .* belongs to vm-b"):
        book.put(entry("b", 2), entry("c", 2))
    assert list(book.entries.values()) == [entry("a", 1)]


def test_machines_swap_cpus_in_one_call_and_what_they_left_is_free(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", [entry("a", 1, 7), entry("b", 2)])
    book.put(entry("a", 2), entry("b", 1))
    book.put(entry("c", 7))
    assert [(one.id, one.placement.cpus) for one in book.entries.values()] == [("a", (2,)), ("b", (1,)), ("c", (7,))]


steps = st.one_of(
    st.tuples(st.just("put"), st.lists(entries_of_any_kind, min_size=1, max_size=3)),
    st.tuples(st.just("drop"), st.sampled_from("abcdef")),
)


@given(st.lists(steps, max_size=30))
def test_no_sequence_of_changes_gives_a_cpu_to_two(sequence: list[tuple[str, list[Entry] | str]]) -> None:
    book, model = Book(Path("unused"), ()), dict[str, Entry]()
    for step, what in sequence:
        if isinstance(what, str):
            assert step == "drop"
            assert book.drop(what) == model.pop(what, None)
            continue
        after = {**model, **{one.id: one for one in what}}
        conflict = len(cpus_of(after.values())) != len(set(cpus_of(after.values())))
        try:
            book.put(*what)
        except LedgerConflictError:
            assert conflict
        else:
            assert not conflict
            model = after
        assert dict(book.entries) == model


# -- the file --------------------------------------------------------------------------------------------------------


@given(st.lists(entries_of_any_kind, max_size=6))
def test_what_was_saved_is_read_back_in_its_order(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ledger = ledger_in(Path(directory))
        with ledger.open() as book:
            for one in entries:
                try:
                    book.put(one)
                except LedgerConflictError:
                    continue
            expected = tuple(book.entries.values())
        assert read_entries(ledger.path) == expected
        with ledger.open() as book:
            assert tuple(book.entries.values()) == expected
            assert not book.quarantined


def test_an_exception_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    with ledger.open() as book:
        book.put(entry("a", 1))

    def change_and_fail() -> None:
        with ledger.open() as book:
            book.drop("a")
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()
    assert read_entries(ledger.path) == (entry("a", 1),)


def test_a_save_inside_stays_when_an_exception_follows(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)

    def save_and_fail() -> None:
        with ledger.open() as book:
            book.put(entry("a", 1))
            book.save()
            book.drop("a")
            raise KeyError

    with pytest.raises(KeyError):
        save_and_fail()
    assert read_entries(ledger.path) == (entry("a", 1),)


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    with ledger.open() as book:
        book.put(entry("a", 1))
    inode = ledger.path.stat().st_ino
    with ledger.open() as book:
        book.put(entry("a", 1))
        book.put(entry("b", 2))
        book.drop("b")
    assert ledger.path.stat().st_ino == inode
    with ledger.open() as book:
        book.put(entry("b", 2))
    assert ledger.path.stat().st_ino != inode


def test_two_that_change_it_at_once_lose_nothing(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)

    def add(cpus: Iterable[int]) -> None:
        for cpu in cpus:
            with ledger.open() as book:
                book.put(entry(str(cpu), cpu))

    threads = [threading.Thread(target=add, args=(range(first, 20, 2),)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cpus_of(read_entries(ledger.path))) == list(range(20))


def written(directory: Path, *entries: Entry) -> Ledger:
    ledger = ledger_in(directory)
    with ledger.open() as book:
        book.put(*entries)
    return ledger


def assert_quarantined(ledger: Ledger) -> str:
    """It opens empty, the damaged file lies beside it byte for byte, and a good one takes its place."""
    damaged = ledger.path.read_bytes()
    assert read_entries(ledger.path) == ()
    with ledger.open() as book:
        assert not book.entries
        aside = Path(book.quarantined)
        assert aside.read_bytes() == damaged
        assert aside.name.startswith("ledger.json.corrupt-")
        reason = book.reason
        book.put(entry("new", 1))
    assert read_entries(ledger.path) == (entry("new", 1),)
    return reason


def test_a_flip_of_any_bit_and_a_cut_at_any_place_are_quarantined(tmp_path: Path) -> None:
    ledger = written(tmp_path, entry("a", 1, 2, name="müller"))
    good = ledger.path.read_bytes()
    damaged = [good[:at] for at in range(len(good))]
    damaged += [
        good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)
    ]
    for data in damaged:
        ledger.path.write_bytes(data)
        assert read_entries(ledger.path) == (), data
    for data in damaged[:: len(damaged) // 40]:
        ledger.path.write_bytes(data)
        assert_quarantined(ledger)


@settings(max_examples=50)
@given(st.one_of(st.binary(max_size=64), st.just(b"[" * 100_000), st.just(b"null"), st.just(b'{"version": 1e400}')))
def test_no_content_at_all_stops_anybody(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ledger = ledger_in(Path(directory))
        ledger.path.write_bytes(data)
        assert_quarantined(ledger)


def test_a_newer_version_is_quarantined_whatever_else_it_holds(tmp_path: Path) -> None:
    ledger = written(tmp_path, entry("a", 1))
    newer = json.loads(ledger.path.read_bytes())
    newer["version"] += 1
    newer["entries"] = {"in": "another shape"}
    ledger.path.write_text(json.dumps(newer))
    assert assert_quarantined(ledger) == "version = 2, expected 1"


def test_a_file_that_gives_one_cpu_to_two_is_quarantined(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    book = Book(ledger.path, ())
    # Behind the check's back, with a good checksum.
    book._entries.update({"a": entry("a", 1), "b": entry("b", 1)})
    book.save()
    with ledger.open() as opened:
        assert not opened.entries
        assert opened.reason == "CPU 1 of vm-b (nomad) belongs to vm-a (nomad)"


def test_a_directory_in_its_place_is_quarantined(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    ledger.path.mkdir()
    assert read_entries(ledger.path) == ()
    with ledger.open() as book:
        assert Path(book.quarantined).is_dir()
        book.put(entry("a", 1))
    assert read_entries(ledger.path) == (entry("a", 1),)


def test_two_damaged_files_in_one_second_are_both_kept(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    for data in (b"x", b"y"):
        ledger.path.write_bytes(data)
        with ledger.open():
            pass
    assert sorted(one.read_bytes() for one in tmp_path.glob("ledger.json.corrupt-*")) == [b"x", b"y"]


def test_a_missing_file_is_an_empty_book(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path / "not" / "there")
    assert read_entries(ledger.path) == ()
    with ledger.open() as book:
        assert (dict(book.entries), book.quarantined, book.reason) == ({}, "", "")
    assert not ledger.path.exists()


def test_two_thousand_entries_are_read_and_saved_in_a_moment(tmp_path: Path) -> None:
    ledger = written(tmp_path, *(entry(f"id-{one}", *range(8 * one, 8 * one + 8)) for one in range(2000)))
    text = (tmp_path / "ledger.json").read_text()

    numbers = itertools.count()

    def save() -> None:
        with ledger.open() as book:
            book.put(entry("one more", 90_000 + next(numbers)))

    # Against what the format itself costs, so that neither the machine nor its load counts.
    assert cpu_s(save) < 5 * cpu_s(lambda: json.dumps(json.loads(text)))


def cpu_s(work: Callable[[], object]) -> float:
    """The least of three goes."""
    took = []
    for _ in range(3):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return min(took)


# -- after a crash ---------------------------------------------------------------------------------------------------


def test_what_is_gone_or_of_an_earlier_boot_comes_free(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", [entry("a", 1), entry("b", 2, 3), entry("c", 4, boot_id="boot-0"), entry("d")])
    said = reconcile(book, boot_id=BOOT, lives=lambda one: one.id in "ac", all_known=[entry("b", 2, 3)])
    assert list(book.entries) == ["a"]
    assert said == [
        "vm-b (nomad) is gone, free again: CPU 2-3",
        "vm-c (nomad) is of an earlier boot, free again: CPU 4",
        "vm-d (nomad) is gone",
    ]


def test_a_lost_ledger_is_rebuilt_from_what_lives(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", ())
    machines = [entry("a", 1), entry("b", 2), entry("c"), entry("d", 3, boot_id="boot-0")]
    said = reconcile(book, boot_id=BOOT, lives=lambda one: one.id != "b", all_known=machines)
    assert list(book.entries.values()) == [entry("a", 1), entry("c")]
    assert said == [
        "vm-a (nomad) lives and was missing, entered again with CPU 1",
        "vm-c (nomad) lives and was missing",
    ]


def test_what_the_book_says_of_a_living_machine_stands(tmp_path: Path) -> None:
    moved = replace(entry("a", 5), yielded="moved")
    book = Book(tmp_path / "l", [moved])
    assert reconcile(book, boot_id=BOOT, lives=lambda _: True, all_known=[entry("a", 1)]) == []
    assert list(book.entries.values()) == [moved]


def test_who_lives_gets_the_cpu_of_who_does_not(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", [entry("dead", 1, 2)])
    reconcile(book, boot_id=BOOT, lives=lambda one: one.id == "a", all_known=[entry("a", 2)])
    assert list(book.entries.values()) == [entry("a", 2)]


def test_the_later_of_two_that_claim_a_cpu_keeps_its_entry_without_cores(tmp_path: Path) -> None:
    book = Book(tmp_path / "l", ())
    both = [replace(entry("a", 2, 3), level="node"), entry("b", 1, 2)]
    started_at = {"a": 20.0, "b": 10.0}
    said = reconcile(
        book, boot_id=BOOT, lives=lambda _: True, all_known=both, started_at=lambda one: started_at[one.id]
    )
    why = "CPU 2 of vm-a (nomad) belongs to vm-b (nomad)"
    assert list(book.entries.values()) == [
        entry("b", 1, 2),
        replace(entry("a", 2, 3), placement=Placement(nodes=(0,)), yielded=why),
    ]
    assert said[-1] == f"vm-a (nomad) lives and was missing, entered again without cores: {why}"


def test_the_order_in_which_machines_are_found_does_not_matter(tmp_path: Path) -> None:
    machines = [entry("a", 1, 2), entry("b", 2, 3), entry("c", 3, 4), entry("d", 4)]
    started_at = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0}
    outcomes = set()
    for order in itertools.permutations(machines):
        book = Book(tmp_path / "l", [entry("e", 9)])
        reconcile(book, boot_id=BOOT, lives=lambda _: True, all_known=order, started_at=lambda one: started_at[one.id])
        outcomes.add(tuple(book.entries.values()))
    assert [{one.id: one.placement.cpus for one in outcome} for outcome in outcomes] == [
        {"e": (9,), "b": (2, 3), "c": (), "d": (4,), "a": ()}
    ]


@given(st.data())
def test_whatever_is_found_no_cpu_has_two_owners_and_no_living_machine_is_lost(data: st.DataObject) -> None:
    book = Book(Path("unused"), ())
    for one in data.draw(st.lists(entries_of_any_kind, max_size=4)):
        try:
            book.put(one)
        except LedgerConflictError:
            continue
    before = dict(book.entries)
    found = data.draw(st.lists(entries_of_any_kind, max_size=8))
    living = data.draw(st.sets(st.sampled_from("abcdef")))
    reconcile(book, boot_id=BOOT, lives=lambda one: one.id in living, all_known=found)
    owned = cpus_of(book.entries.values())
    assert len(owned) == len(set(owned))
    assert set(book.entries) == living & (set(before) | {one.id for one in found})
    assert all(book.entries[id_] == one for id_, one in before.items() if id_ in living)


def test_a_file_that_cannot_be_read_right_now_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = written(tmp_path, entry("a", 0))
    good = ledger.path.read_bytes()

    def refuse(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(HostError, match="too many open files"), ledger.open():
            pass
    assert ledger.path.read_bytes() == good
    assert list(ledger.path.parent.glob("*.corrupt-*")) == []
