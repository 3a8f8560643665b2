"""The host's end of the guest agent's channel: sessions, streams with credit, deadlines, and hostile guests."""

import itertools
import json
import os
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.guest import wire
from vmlib.guest.report import MAX_TEXT, Report, plain
from vmlib.guest.session import Event, Exited, Lost, Noted, Ready, Room, Said, Session
from vmlib.guest.wire import Decoder, Frame, encode, encode_credit, encode_data, encode_json, json_of

FACTS = {
    "version": 1,
    "boot_id": "b1",
    "boot_s": 12.3,
    "python": "3.11.2",
    "addresses": ["10.0.0.5", "2001:db8::5"],
    "signals": ["SIGHUP"],
    "shares": {"/local": ""},
    "load": [0.5, 0.25, 0.0],
    "memory": {"total_bytes": 1 << 30, "available_bytes": 1 << 29},
    "uptime_s": 13.0,
}


class Talk:
    """A session whose names are 1, 2, …, and the other end of its channel, frame by frame."""

    def __init__(self) -> None:
        names = itertools.count(1)
        self.now = 100.0
        self.session = Session(self.now, lambda: str(next(names)))
        self.session.begin()

    def said(self) -> list[Frame | bytes]:
        return Decoder().feed(self.session.outgoing())

    def hear(self, *frames: bytes) -> list[Event]:
        return self.session.feed(b"".join(frames), self.now)

    def greet(self, name: str = "1", **facts: Any) -> list[Event]:
        return self.hear(encode_json(wire.HELLO, 0, {**FACTS, "session": name, **facts}))

    def after(self, seconds: float) -> list[Event]:
        self.now += seconds
        return self.session.tick(self.now)


@pytest.fixture
def talk() -> Talk:
    """With a session."""
    one = Talk()
    assert one.greet() == [Ready(Report().updated(FACTS))]
    one.said()
    return one


# ---------------------------------------------------------------------------------------------------------------------
# sessions


def test_we_greet_first_and_the_answer_begins_the_session() -> None:
    talk = Talk()
    assert talk.said() == [Frame(wire.HELLO, 0, b'{"version":1,"session":"1"}')]
    (event,) = talk.greet()
    assert isinstance(event, Ready)
    assert event.report.addresses == ("10.0.0.5", "2001:db8::5")
    assert event.report.boot_s == 12.3
    assert talk.greet() == []  # said twice is said once
    assert talk.said() == []


def test_an_agent_that_begins_anew_gets_a_new_session_and_ends_the_old_one(talk: Talk) -> None:
    number = talk.session.open({"op": "exec"})
    talk.said()
    assert talk.greet("") == [Lost("the guest agent began anew")]
    assert [json_of(frame)["session"] for frame in talk.said() if isinstance(frame, Frame)] == ["2"]
    assert talk.hear(encode_data(number, wire.STDOUT, b"late"), encode_json(wire.NOTE, 0, {"load": [1]})) == []
    assert isinstance(talk.greet("2")[0], Ready)


def test_the_answer_to_an_earlier_greeting_begins_nothing_and_no_talk_without_end() -> None:
    """QEMU keeps what we said before there was an agent: it greets, then answers both of our greetings."""
    talk = Talk()
    assert talk.greet("") == []
    assert len(talk.said()) == 2
    assert talk.greet("1") == []
    assert talk.said() == []
    assert isinstance(talk.greet("2")[0], Ready)
    assert talk.said() == []


def test_an_agent_of_another_version_is_none(talk: Talk) -> None:
    other = Talk()
    assert other.greet(version=2) == []
    assert other.session.due() is None
    (event,) = talk.greet("1", version="2\n" * 100)
    assert isinstance(event, Lost)
    assert "another version, 2 2" in event.why


def test_we_ping_and_give_up_who_is_silent(talk: Talk) -> None:
    assert talk.session.due() == talk.now + 10
    assert talk.after(9.9) == []
    assert talk.said() == []
    for _ in range(2):
        assert talk.after(10) == []
        assert talk.said() == [Frame(wire.PING, 0, b"")]
    assert talk.session.due() == 130.0
    assert talk.after(0.2) == [Lost("the guest agent has said nothing for 30 s")]
    assert talk.session.due() is None
    assert talk.after(1000) == []
    assert talk.said() == []  # nobody is there: it would only pile up


def test_a_pong_is_a_sign_of_life(talk: Talk) -> None:
    for _ in range(20):
        assert talk.after(10) == []
        assert len(talk.said()) == 1
        assert talk.hear(encode(wire.PONG)) == []


def test_a_guest_that_comes_back_from_a_long_pause_gets_a_new_session(talk: Talk) -> None:
    assert talk.after(60) != []
    talk.said()
    assert talk.hear(encode(wire.PONG), encode(wire.PONG)) == []
    assert [json_of(frame)["session"] for frame in talk.said() if isinstance(frame, Frame)] == ["2"]
    assert isinstance(talk.greet("2")[0], Ready)


# ---------------------------------------------------------------------------------------------------------------------
# streams


def test_a_command_from_its_start_to_its_end(talk: Talk) -> None:
    session = talk.session
    number = session.open({"op": "exec", "argv": ["cat"]})
    assert session.send(number, b"in") == 2
    session.resize(number, 24, 80)
    session.end_input(number)
    assert talk.said() == [
        Frame(wire.OPEN, number, b'{"op":"exec","argv":["cat"]}'),
        Frame(wire.DATA, number, b"\x00in"),
        Frame(wire.RESIZE, number, b'{"rows":24,"cols":80}'),
        Frame(wire.DATA, number, b"\x00"),
    ]
    assert talk.hear(
        encode_data(number, wire.STDOUT, b"out"),
        encode_data(number, wire.STDERR, b"err"),
        encode_data(number, wire.STDOUT, b""),
        encode_json(wire.EXITED, number, {"code": 137, "signal": 9}),
        encode_data(number, wire.STDOUT, b"after the end"),
        encode_json(wire.EXITED, number, {"code": 0}),
    ) == [
        Said(number, wire.STDOUT, b"out"),
        Said(number, wire.STDERR, b"err"),
        Said(number, wire.STDOUT, b""),
        Exited(number, 137, 9),
    ]


def test_input_goes_as_far_as_there_is_credit(talk: Talk) -> None:
    session = talk.session
    number = session.open({})
    data = os.urandom(wire.WINDOW + 1000)
    assert session.send(number, data) == wire.WINDOW
    assert session.send(number, data[wire.WINDOW :]) == 0
    assert talk.hear(encode_credit(number, 10)) == [Room(number)]
    assert session.send(number, data[wire.WINDOW :]) == 10
    sent = b"".join(one.payload[1:] for one in talk.said() if isinstance(one, Frame) and one.kind == wire.DATA)
    assert sent == data[: wire.WINDOW + 10]


def test_output_is_credited_as_it_is_taken_and_not_before(talk: Talk) -> None:
    session = talk.session
    number = session.open({})
    talk.said()
    piece = bytes(wire.WINDOW // 4)
    for _ in range(4):
        assert len(talk.hear(encode_data(number, wire.STDOUT, piece))) == 2  # a frame holds a byte less
    assert talk.said() == []
    session.took(number, len(piece) - 1)
    assert talk.said() == []
    session.took(number, 1)
    assert talk.said() == [Frame(wire.CREDIT, number, len(piece).to_bytes(4, "big"))]
    assert len(talk.hear(encode_data(number, wire.STDOUT, piece))) == 2
    assert talk.hear(encode_data(number, wire.STDOUT, b"x")) == [
        Exited(number, 126, error="the guest agent sent more than it may")
    ]
    assert talk.said() == [Frame(wire.CANCEL, number, b"")]


def test_no_more_streams_than_the_agent_takes(talk: Talk) -> None:
    numbers = [talk.session.open({}) for _ in range(wire.MAX_STREAMS)]
    assert talk.session.is_full()
    talk.session.cancel(numbers[0])
    assert not talk.session.is_full()
    with pytest.raises(ValueError, match="bytes of arguments"):
        talk.session.open({"argv": ["x" * wire.MAX_PAYLOAD]})
    assert not talk.session.is_full()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"code": 7, "signal": 0}, Exited(1, 7)),
        ({"code": 127, "error": "x: not found in the guest"}, Exited(1, 127, error="x: not found in the guest")),
        ({"code": 0, "error": "\x1b[31mred\n" * 100}, Exited(1, 126, error=plain("\x1b[31mred\n" * 100))),
        ({"code": True}, Exited(1, 126, error="the guest agent told no exit code")),
        ({"code": 256}, Exited(1, 126, error="the guest agent told no exit code")),
        ({"code": -1}, Exited(1, 126, error="the guest agent told no exit code")),
        ({"code": 1e300}, Exited(1, 126, error="the guest agent told no exit code")),
        ({}, Exited(1, 126, error="the guest agent told no exit code")),
        ({"code": 3, "signal": 1 << 70}, Exited(1, 3)),
        ({"code": 1, "error": ["x"]}, Exited(1, 1, error="the guest agent gave no reason")),
    ],
)
def test_how_a_command_ended_is_checked(talk: Talk, said: dict[str, Any], expected: Exited) -> None:
    assert talk.session.open({}) == 1
    assert talk.hear(encode_json(wire.EXITED, 1, said)) == [expected]


# ---------------------------------------------------------------------------------------------------------------------
# what the guest says of itself


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from([*FACTS, "session", "other"])


@given(st.dictionaries(KEYS, JSON))
def test_a_report_has_its_types_whatever_the_guest_says(said: dict[str, Any]) -> None:
    report = Report().updated(said).updated(json.loads(json.dumps(said)))
    assert len(report.boot_id) <= MAX_TEXT
    assert 0 <= report.boot_s <= 1e10
    assert 0 <= report.uptime_s <= 1e10
    assert all(isinstance(one, str) for one in report.addresses)
    assert set(report.signals) <= {"SIGHUP", "SIGUSR1", "SIGUSR2"}
    assert all(path.isprintable() and why.isprintable() for path, why in report.shares.items())
    assert all(0 <= one <= 1e6 for one in report.load)
    assert all(0 <= one <= 1 << 60 for one in report.memory.values())
    json.dumps(report.load, allow_nan=False)


def test_a_note_changes_what_it_names_and_nothing_else(talk: Talk) -> None:
    (event,) = talk.hear(encode_json(wire.NOTE, 0, {"addresses": ["10.0.0.6", "x", 5, "fe80::1%eth0", "1" * 99]}))
    assert isinstance(event, Noted)
    assert event.report.addresses == ("10.0.0.6",)
    assert event.report.load == (0.5, 0.25, 0.0)


def test_a_text_of_the_guest_is_one_short_printable_line() -> None:
    assert plain("a\nb\x1b[2Jc\u202e") == "a b [2Jc"
    assert plain("x" * 1000) == "x" * (MAX_TEXT - 1) + "…"
    assert plain(7) == ""


# ---------------------------------------------------------------------------------------------------------------------
# hostile guests

_ANY_KIND = st.binary(min_size=1, max_size=1)
_FRAMES = st.builds(encode, _ANY_KIND, st.integers(0, 4), st.binary(max_size=40))
_JSON_FRAMES = st.builds(
    encode_json,
    st.sampled_from([wire.HELLO, wire.NOTE, wire.EXITED, wire.OPEN]),
    st.integers(0, 4),
    st.dictionaries(KEYS | st.sampled_from(["code", "signal", "error"]), JSON, max_size=4),
)
_DATA = st.builds(encode_data, st.integers(0, 4), st.integers(0, 3), st.binary(max_size=40))
_CREDITS = st.builds(encode_credit, st.integers(0, 4), st.integers(0, 2**32 - 1))


@given(st.lists(st.one_of(_FRAMES, _JSON_FRAMES, _DATA, _CREDITS, st.binary(max_size=60)), max_size=30))
def test_whatever_comes_raises_nothing_and_breaks_no_rule(chunks: list[bytes]) -> None:
    talk = Talk()
    talk.greet()
    session = talk.session
    numbers = [session.open({}) for _ in range(3)]
    alive, said = set(numbers), dict.fromkeys(numbers, 0)
    for chunk in chunks:
        talk.now += 0.1
        events = talk.hear(chunk, b"\n")
        for event in events:
            match event:
                case Said(stream, channel, data):
                    assert stream in alive
                    assert channel in (wire.STDOUT, wire.STDERR)
                    said[stream] += len(data)
                case Exited(stream, code, number, _):
                    alive.remove(stream)
                    assert 0 <= code <= 255
                    assert 0 <= number <= 64
                case Room(stream):
                    assert stream in alive
                case Lost():
                    alive.clear()
        for stream in alive:
            assert session.send(stream, bytes(wire.WINDOW * 2)) <= wire.WINDOW
        session.outgoing()
        session.tick(talk.now)
    assert all(count <= wire.WINDOW for count in said.values())


@given(st.integers(1, 2**32 - 1), st.integers(0, 200_000))
def test_credit_never_grows_beyond_the_window(granted: int, sent: int) -> None:
    talk = Talk()
    talk.greet()
    number = talk.session.open({})
    taken = talk.session.send(number, bytes(sent))
    talk.hear(encode_credit(number, granted), encode_credit(number, granted))
    assert talk.session.send(number, bytes(1 << 20)) == min(wire.WINDOW, wire.WINDOW - taken + 2 * granted)


# To a session with one stream, 1.
FLOODS: dict[str, bytes] = {
    "bytes without an end": b"\x01" + bytes(65535),
    "garbage in lines": b"\x01x\n" * 21845,
    "empty lines": b"\n" * 65536,
    "pongs": encode(wire.PONG) * 5000,
    "greetings": encode_json(wire.HELLO, 0, {"session": ""}) * 2000,
    "our own greeting": encode_json(wire.HELLO, 0, {"session": "1", "version": 1}) * 1500,
    "notes": encode_json(wire.NOTE, 0, {"addresses": ["10.0.0.1"] * 1000}) * 5,
    "deep notes": encode(wire.NOTE, 0, b"[" * 32768) * 2,
    "long numbers": encode(wire.NOTE, 0, b'{"uptime_s":' + b"9" * 32000 + b"}") * 2,
    "ends of unknown streams": encode_json(wire.EXITED, 99, {}) * 4000,
    "data of unknown streams": encode_data(99, 1, bytes(32000)) * 2,
    "crumbs": encode_data(1, 1, b"x") * 5000,
    "credit": encode_credit(1, 0xFFFFFFFF) * 4000,
    "output without credit": encode_data(1, 1, bytes(60000)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_costs_little_memory_and_little_time(talk: Talk, name: str) -> None:
    """Ten seconds of a guest that says as much as it is listened to, and reads nothing."""
    session = talk.session
    assert session.open({}) == 1
    flood = FLOODS[name]
    session.outgoing()
    end = talk.now + 10.0
    fed, longest, written, before = 0, 0.0, 0, time.process_time()
    tracemalloc.start()
    while talk.now < end:
        started = time.process_time()
        session.feed(flood, talk.now)
        longest = max(longest, time.process_time() - started)
        fed += len(flood)
        session.tick(talk.now)
        written += len(session.outgoing())
        assert session.rest_s < 9  # the keeper has patience for ten seconds
        talk.now += max(0.02, session.rest_s)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    used = time.process_time() - before
    assert peak < 8 << 20
    assert used < 2  # most of it is the tracing's
    assert longest < 1
    assert fed < 8 << 20
    assert written < 1 << 20


def test_a_guest_that_begins_anew_all_the_time_gets_few_sessions() -> None:
    """It answers each greeting of ours, and at once greets as an agent that has just started."""
    talk, sessions, end = Talk(), 0, 160.0
    while talk.now < end:
        for frame in talk.said():
            assert isinstance(frame, Frame)
            name = json_of(frame)["session"]
            sessions += sum(isinstance(event, Ready) for event in [*talk.greet(name), *talk.greet("")])
        assert talk.session.rest_s < 9
        talk.now += max(0.001, talk.session.rest_s)
    assert 10 < sessions < 80


def test_who_never_answers_costs_nothing() -> None:
    talk = Talk()
    talk.said()
    for _ in range(100):
        assert talk.after(100) == []
    assert talk.session.due() is None
    assert talk.said() == []


def test_a_stream_that_is_broken_ends_alone(talk: Talk) -> None:
    session = talk.session
    one, other = session.open({}), session.open({})
    assert talk.hear(encode_data(one, 7, b"x"), encode_data(one, 1, b"y")) == [
        Exited(one, 126, error="the guest agent sent output where there is none")
    ]
    assert talk.hear(encode_data(other, 1, b""), encode_data(other, 2, b"z")) == [
        Said(other, 1, b""),
        Said(other, 2, b"z"),
    ]
    assert talk.hear(encode_data(other, 1, b"")) == [
        Exited(other, 126, error="the guest agent sent output where there is none")
    ]
