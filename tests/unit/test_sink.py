"""A log stream never blocks its writer, and what it had to drop is counted where it is missing."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlib.keeper import sink as sink_module
from vmlib.keeper.sink import KEEP_BYTES, Sink

_NOTE = re.compile(rb"\nchv: lost ([0-9]+) bytes\n")
_ALPHABET = bytes(range(ord("a"), ord("z") + 1))  # no line break: a note of a loss cannot be mistaken


def stream(size: int, start: int = 0) -> bytes:
    """Bytes that tell where they are from: a piece in the wrong place does not match."""
    return bytes(_ALPHABET[(n * n + n // 26) % 26] for n in range(start, start + size))


class Reader:
    """Reads a FIFO as far as it likes."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = b""

    def read(self, size: int) -> int:
        try:
            piece = os.read(self.fd, size)
        except BlockingIOError:
            return 0
        self.data += piece
        return len(piece)


class Pair:
    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.reader = Reader(path)
        self.sink = Sink(path)

    def read_all(self) -> bytes:
        self.sink.pump()
        while self.reader.read(1 << 16):
            self.sink.pump()
        return self.reader.data

    def close(self) -> None:
        os.close(self.reader.fd)
        os.close(self.sink.fd)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    both = Pair(tmp_path / "fifo")
    yield both
    both.close()


def account(seen: bytes, written: bytes) -> int:
    """Check that every piece stands where it belongs; return how many bytes were told as lost."""
    pieces = _NOTE.split(seen)
    position = lost = 0
    for index, piece in enumerate(pieces):
        if index % 2:
            lost += int(piece)
            position += int(piece)
        else:
            assert piece == written[position : position + len(piece)], f"wrong bytes at {position}"
            position += len(piece)
    assert position == len(written)
    return lost


def test_what_is_read_at_once_is_passed_on_unchanged(pair: Pair) -> None:
    pair.sink.write(b"one\n")
    pair.sink.write(b"")
    pair.sink.write(b"two\n")
    assert pair.read_all() == b"one\ntwo\n"
    assert pair.sink.lost_total == 0


def test_a_stopped_reader_costs_nothing_up_to_the_bound(pair: Pair) -> None:
    written = stream(KEEP_BYTES)
    for at in range(0, KEEP_BYTES, 1 << 14):
        pair.sink.write(written[at : at + (1 << 14)])
    assert pair.sink.lost_total == 0
    assert pair.read_all() == written


def test_a_loss_is_told_even_when_nothing_comes_after_it(pair: Pair) -> None:
    size = 3 * KEEP_BYTES
    written = stream(size)
    for at in range(0, size, 1 << 16):
        pair.sink.write(written[at : at + (1 << 16)])
    lost = account(pair.read_all(), written)
    assert lost == pair.sink.lost_total > KEEP_BYTES
    assert pair.reader.data.endswith(b" bytes\n")


def test_memory_is_bounded_whatever_comes(pair: Pair) -> None:
    for _ in range(64):
        pair.sink.write(b"x" * (1 << 16))
    kept = pair.sink._queued
    assert kept <= KEEP_BYTES + 64
    assert kept == sum(len(chunk) for chunk in pair.sink._queue)


def test_a_reader_that_comes_back_gets_what_was_kept_then_the_note_then_the_rest(pair: Pair) -> None:
    before, gap, after = stream(KEEP_BYTES), stream(5000, KEEP_BYTES), b"after\n"
    pair.sink.write(before)
    room = KEEP_BYTES - pair.sink._queued  # what the pipe itself took
    pair.sink.write(stream(room, 0) if room else b"")
    pair.sink.write(gap)
    assert pair.sink.lost_bytes == len(gap)
    pair.read_all()
    pair.sink.write(after)
    seen = pair.read_all()
    assert seen.endswith(b"\nchv: lost 5000 bytes\nafter\n")
    assert seen.startswith(before)


def test_it_goes_on_after_the_reader_was_replaced(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "fifo")
    try:
        pair.sink.write(b"one\n")
        os.close(pair.reader.fd)
        pair.sink.write(b"two\n")
        pair.reader = Reader(tmp_path / "fifo")
        pair.sink.write(b"three\n")
        assert pair.read_all() == b"one\ntwo\nthree\n"
    finally:
        pair.close()


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(1, 6000)),
            st.tuples(st.just("read"), st.integers(1, 9000)),
            st.tuples(st.just("pump"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_bytes_written_are_bytes_read_and_losses_told_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    pair = Pair(tmp_path_factory.mktemp("sink") / "fifo")
    written = b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink_module, "KEEP_BYTES", 8192)  # small, so that few steps reach it
        try:
            # The pipe is the kernel's and of 64 KiB: fill it, so that every step meets the bound.
            written += stream(1 << 16)
            os.write(pair.sink.fd, written)
            for step, size in steps:
                if step == "write":
                    data = stream(size, len(written))
                    written += data
                    pair.sink.write(data)
                elif step == "read":
                    pair.reader.read(size)
                else:
                    pair.sink.pump()
                assert pair.sink._queued <= 8192 + 64
            assert account(pair.read_all(), written) == pair.sink.lost_total
            assert not pair.sink.waiting
        finally:
            pair.close()


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to a FIFO", "missing"])
def test_only_a_fifo_and_dev_null_are_logs_because_others_may_write_where_it_lies(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "target", tmp_path / "log"
    match kind:
        case "file":
            path.write_text("precious\n")
        case "link to a file":
            path.symlink_to(target)
        case "link to a FIFO":
            os.mkfifo(target)
            path.symlink_to(target)
    with pytest.raises(OSError, match="log"):
        Sink(path)
    assert kind == "link to a FIFO" or not target.exists()
    assert kind != "file" or path.read_text() == "precious\n"


def test_dev_null_takes_everything() -> None:
    sink = Sink(Path("/dev/null"))
    sink.write(b"x" * (2 * KEEP_BYTES // 3))
    assert not sink.waiting
    assert sink.lost_total == 0
    os.close(sink.fd)


def test_a_log_that_cannot_be_written_any_more_costs_nothing_else(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    sink = Sink(tmp_path / "log")
    os.close(sink.fd)
    sink.write(b"nowhere to go\n")
    assert not sink.waiting
    assert sink.lost_total == len(b"nowhere to go\n")
