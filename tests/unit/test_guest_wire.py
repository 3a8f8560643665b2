"""The guest agent's framing: any split of any bytes, damage, floods."""

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.guest import wire
from vmlib.guest.wire import Decoder, Frame

_KINDS = st.sampled_from([wire.HELLO, wire.OPEN, wire.DATA, wire.CREDIT, wire.EXITED, wire.NOTE, wire.PING])
_FRAMES = st.builds(Frame, _KINDS, st.integers(0, 2**32 - 1), st.binary(max_size=300))
_TEXT = st.binary(min_size=1, max_size=40).filter(lambda line: b"\n" not in line and line[:1] != b"\x01")


def written(things: list[Frame | bytes]) -> bytes:
    return b"".join(wire.encode(*one) if isinstance(one, Frame) else one + b"\n" for one in things)


@given(things=st.lists(st.one_of(_FRAMES, _TEXT)), cuts=st.lists(st.integers(0, 4000)))
def test_frames_and_lines_survive_any_split(things: list[Frame | bytes], cuts: list[int]) -> None:
    data = written(things)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    decoder = Decoder()
    found = [one for start, end in pairwise(edges) for one in decoder.feed(data[start:end])]
    assert found == things
    assert decoder.dropped == 0


@given(st.lists(st.binary(max_size=500)))
def test_garbage_raises_nothing_and_leaves_the_next_frame_whole(chunks: list[bytes]) -> None:
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    assert decoder.feed(b"\n" + wire.encode(wire.PING, 7, b"x"))[-1] == Frame(wire.PING, 7, b"x")


@given(frame=_FRAMES, at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_a_frame(frame: Frame, at: int, bit: int) -> None:
    line = bytearray(wire.encode(*frame))
    line[at % len(line)] ^= 1 << bit
    found = [one for one in Decoder().feed(bytes(line) + b"\n") if isinstance(one, Frame)]
    assert found == []


@given(frame=_FRAMES, at=st.integers(0, 10_000))
def test_half_a_frame_is_lost_and_nothing_after_it(frame: Frame, at: int) -> None:
    line = wire.encode(*frame)
    decoder = Decoder()
    found = decoder.feed(line[: 1 + at % (len(line) - 2)] + b"\n" + wire.encode(wire.PONG))
    assert found[-1] == Frame(wire.PONG, 0, b"")
    assert [one for one in found[:-1] if isinstance(one, Frame)] == []


@pytest.mark.parametrize(
    "payload", [b"\n" * wire.MAX_PAYLOAD, b"\x1b" * wire.MAX_PAYLOAD, os.urandom(wire.MAX_PAYLOAD)]
)
def test_the_largest_payload_fits_into_a_line_whatever_it_holds(payload: bytes) -> None:
    line = wire.encode(wire.DATA, 1, payload)
    assert len(line) <= wire.MAX_LINE
    assert Decoder().feed(line) == [Frame(wire.DATA, 1, payload)]


def test_a_flood_without_a_line_break_costs_bounded_memory() -> None:
    decoder = Decoder()
    for _ in range(1000):
        assert decoder.feed(b"\x01" + b"x" * 4096) == []
    held = decoder._held + sum(map(len, decoder._parts))
    assert held <= 2 * wire.MAX_LINE
    assert decoder.feed(b"\nexit 7\n") == [b"exit 7"]
    assert decoder.dropped == 1


def test_a_line_that_comes_byte_by_byte_costs_no_object_for_each() -> None:
    decoder = Decoder()
    for _ in range(10_000):
        decoder.feed(b"x")
    assert len(decoder._parts) < 100
    assert decoder.feed(b"\n") == [b"x" * 10_000]


def test_long_data_comes_in_frames_that_fit() -> None:
    data = os.urandom(3 * wire.MAX_PAYLOAD)
    frames = Decoder().feed(wire.encode_data(5, wire.STDERR, data))
    assert all(isinstance(one, Frame) and one.payload[0] == wire.STDERR for one in frames)
    assert b"".join(one.payload[1:] for one in frames if isinstance(one, Frame)) == data


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 20_000])
def test_what_is_no_object_is_an_empty_one(payload: bytes) -> None:
    assert wire.json_of(Frame(wire.NOTE, 0, payload)) == {}


def test_a_credit_that_is_none_counts_nothing() -> None:
    assert wire.credit_of(Frame(wire.CREDIT, 1, b"\0")) == 0
    (frame,) = Decoder().feed(wire.encode_credit(1, 4096))
    assert isinstance(frame, Frame)
    assert wire.credit_of(frame) == 4096
