"""Lines out of bytes, however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.lines import LineBuffer, LineTooLongError

MAX = 16


def feed_in_pieces(buffer: LineBuffer, data: bytes, cuts: list[int]) -> list[bytes]:
    lines: list[bytes] = []
    at = 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        lines += buffer.feed(data[at:cut])
        at = cut
    return lines + buffer.feed(data[at:])


lines_of_any_length = st.lists(st.binary(max_size=40).map(lambda line: line.translate(None, b"\r\n")), max_size=12)
anywhere = st.lists(st.integers(0, 400), max_size=20)


@given(lines=st.lists(st.binary(max_size=MAX).map(lambda line: line.translate(None, b"\r\n"))), cuts=anywhere)
def test_gives_back_every_line_wherever_the_bytes_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    assert feed_in_pieces(LineBuffer(MAX), data, cuts) == lines


def test_cr_lf_is_one_line_break() -> None:
    assert LineBuffer(MAX).feed(b"one\r\ntwo\n\r\n") == [b"one", b"two", b""]


@pytest.mark.parametrize("pieces", [[b"x" * 17], [b"x" * 17 + b"\n"], [b"x" * 9, b"x" * 8]])
def test_a_line_over_the_bound_is_refused(pieces: list[bytes]) -> None:
    buffer = LineBuffer(MAX)
    for piece in pieces[:-1]:
        buffer.feed(piece)
    with pytest.raises(LineTooLongError, match="more than 16 bytes"):
        buffer.feed(pieces[-1])


def test_a_line_of_exactly_the_bound_is_taken() -> None:
    assert LineBuffer(MAX).feed(b"x" * MAX + b"\n") == [b"x" * MAX]


@given(lines=lines_of_any_length, cuts=anywhere)
def test_skipping_leaves_out_the_long_lines_and_no_other(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    buffer = LineBuffer(MAX, skip_long=True)
    assert feed_in_pieces(buffer, data, cuts) == [line for line in lines if len(line) <= MAX]


def test_skipping_keeps_no_more_than_the_bound() -> None:
    buffer = LineBuffer(MAX, skip_long=True)
    for _ in range(100):
        assert buffer.feed(b"x" * 1000) == []
    assert len(buffer._rest) <= MAX
    assert buffer.feed(b"exit 3\nexit 4\n") == [b"exit 4"]  # `exit 3` was the end of a long line
