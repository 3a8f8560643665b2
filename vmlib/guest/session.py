"""The host's end of the guest agent's channel, without I/O: bytes that came in, events out, bytes to send.

A session begins with our HELLO and the agent's answer to it, and holds streams, each for one thing that the agent does
for us. Whoever is in the guest may be hostile: it can end its own streams and sessions and nothing else, what is kept
of it is bounded, and who says more than there is to say is not read for a while (`rest_s`). Nothing here raises for
what was received.
"""

import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmlib.guest.report import Report, number_within, plain
from vmlib.guest.wire import (
    CANCEL,
    CREDIT,
    DATA,
    EXITED,
    HELLO,
    MAX_PAYLOAD,
    MAX_STREAMS,
    NOTE,
    OPEN,
    PING,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    VERSION,
    WINDOW,
    Decoder,
    Frame,
    credit_of,
    encode,
    encode_credit,
    encode_data,
    encode_json,
    json_of,
)

PING_S = 10.0
SILENCE_S = 30.0  # after as much the agent, or the guest, is taken to be gone

_CREDIT_STEP = WINDOW // 4  # bytes that are taken before the agent hears of it
_BROKEN = 126  # as a shell says that a command could not be run

# What a guest may say that is no output of a command: so much a second, and so much more at once. A line costs what it
# weighs and a little, so that many short ones are not cheaper to send than to take. Output, which credit holds up as
# well, costs nothing but that, and less: some commands say a letter at a time.
_CALM, _BURST = 1 << 18, 1 << 20
_LINE_COST, _OUTPUT_COST = 256, 64
_GREETING_COST = _CALM // 2  # each may be the end of a session and the start of the next: work, and lines in logs
_LONGEST_REST_S = 8.0  # the keeper drops whoever does not read for ten


@dataclass(frozen=True, slots=True)
class Ready:
    """A session has begun: streams can be opened."""

    report: Report


@dataclass(frozen=True, slots=True)
class Noted:
    """The guest's facts or numbers are others now."""

    report: Report


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is over, and with it all its streams."""

    why: str


@dataclass(frozen=True, slots=True)
class Said:
    """Output of a stream; no more bytes are the channel's end."""

    stream: int
    channel: int  # STDOUT, STDERR
    data: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """More can be sent on a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A stream's end: an exit code as a shell has it, with the signal that was behind it, or why nothing was run."""

    stream: int
    code: int
    signal: int = 0
    error: str = ""


Event = Ready | Noted | Lost | Said | Room | Exited


@dataclass(slots=True)
class _Stream:
    allowed: int = WINDOW  # bytes that the agent may still send
    taken: int = 0  # bytes that it sent and has no credit for again yet
    credit: int = WINDOW  # bytes that we may still send
    ended: set[int] = field(default_factory=set)  # channels


def _new_name() -> str:
    return secrets.token_hex(8)


class Session:
    """One connection's worth of sessions, one after the other. `now` is on any clock that never goes back."""

    def __init__(self, now: float, new_name: Callable[[], str] = _new_name) -> None:
        self.report: Report | None = None  # None while there is no session
        self._new_name = new_name
        self._decoder = Decoder()
        self._out: list[bytes] = []
        self._streams: dict[int, _Stream] = {}
        self._number = 0
        # An agent that starts late finds all that we have said to its forerunners, and answers that first.
        self._asked: deque[str] = deque(maxlen=8)
        self._heard_at = now
        self._ping_at = now
        self._gave_up = False
        self._patience = float(_BURST)
        self._patience_at = now

    # -- what happens --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Say HELLO; to be called once, when there is a connection."""
        name = self._new_name()
        self._asked.append(name)
        self._gave_up = False
        self._out.append(encode_json(HELLO, 0, {"version": VERSION, "session": name}))

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take what was read."""
        events: list[Event] = []
        cost = len(data) + _LINE_COST * data.count(b"\n")
        for one in self._decoder.feed(data):
            if isinstance(one, Frame):
                cost -= self._take(one, now, events)
        patience = min(_BURST, self._patience + (now - self._patience_at) * _CALM) - max(0, cost)
        self._patience = max(patience, -_LONGEST_REST_S * _CALM)
        self._patience_at = now
        return events

    def tick(self, now: float) -> list[Event]:
        """See to what is due; to be called at `due()` and whenever something was read."""
        events: list[Event] = []
        if self.report is None:
            return events
        if now - self._heard_at >= SILENCE_S:
            self._over(f"the guest agent has said nothing for {SILENCE_S:.0f} s", events)
            self._gave_up = True
        elif now >= self._ping_at:
            self._ping_at = now + PING_S
            self._out.append(encode(PING))
        return events

    def due(self) -> float | None:
        """When `tick` has something to do; None while that depends on the guest alone."""
        return None if self.report is None else min(self._ping_at, self._heard_at + SILENCE_S)

    @property
    def rest_s(self) -> float:
        """For how long nothing should be read now."""
        return max(0.0, -self._patience / _CALM)

    def outgoing(self) -> bytes:
        """What is to be written, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # -- what we want --------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        """True when no more streams can be opened."""
        return len(self._streams) >= MAX_STREAMS

    def open(self, wanted: Mapping[str, Any]) -> int:
        """A new stream's number; needs a session that is not full. Raises ValueError for what no frame can hold."""
        assert self.report is not None
        assert not self.is_full()
        payload = json.dumps(wanted, separators=(",", ":")).encode()
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"{len(payload)} bytes of arguments, at most {MAX_PAYLOAD}")
        self._number = self._number % 0xFFFFFFFF + 1
        self._streams[self._number] = _Stream()
        self._out.append(encode(OPEN, self._number, payload))
        return self._number

    def send(self, number: int, data: bytes) -> int:
        """Input for a stream, as far as there is credit: so many bytes of it. `Room` says when there is more."""
        stream = self._streams.get(number)
        if stream is None:
            return len(data)  # nobody reads it any more
        count = min(len(data), stream.credit)
        if count:
            stream.credit -= count
            self._out.append(encode_data(number, STDIN, data[:count]))
        return count

    def end_input(self, number: int) -> None:
        if number in self._streams:
            self._out.append(encode_data(number, STDIN, b""))

    def took(self, number: int, count: int) -> None:
        """So many bytes of a stream's output are out of our hands: the agent may send as many more."""
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.taken += count
        if stream.taken >= _CREDIT_STEP:
            stream.allowed += stream.taken
            self._out.append(encode_credit(number, stream.taken))
            stream.taken = 0

    def resize(self, number: int, rows: int, cols: int) -> None:
        if number in self._streams:
            self._out.append(encode_json(RESIZE, number, {"rows": rows, "cols": cols}))

    def cancel(self, number: int) -> None:
        """End what runs on a stream, and hear no more of it."""
        if self._streams.pop(number, None) is not None:
            self._out.append(encode(CANCEL, number))

    # -- what the guest says -------------------------------------------------------------------------------------

    def _take(self, frame: Frame, now: float, events: list[Event]) -> int:
        """How much of its weight a frame was worth; less than nothing for one that costs more than it weighs."""
        self._heard_at = now
        if frame.kind == HELLO:
            self._greeted(json_of(frame), now, events)
            return -_GREETING_COST
        if self.report is None:
            if self._gave_up:  # a guest that was away, paused for one, believes in the old session
                self.begin()
        elif frame.kind == NOTE:
            self.report = self.report.updated(json_of(frame))
            events.append(Noted(self.report))
        elif frame.kind == DATA:
            return self._output(frame, events)
        elif frame.kind == CREDIT:
            self._credited(frame, events)
        elif frame.kind == EXITED and self._streams.pop(frame.stream, None) is not None:
            events.append(_exited(frame.stream, json_of(frame)))
        return 0

    def _greeted(self, said: dict[str, Any], now: float, events: list[Event]) -> None:
        name = said.get("session")
        if not isinstance(name, str) or name not in self._asked:
            self._over("the guest agent began anew", events)
            self.begin()
        elif name != self._asked[-1]:
            pass  # to an earlier HELLO; the answer to the last one is to come
        elif said.get("version") != VERSION:
            self._over(f"the guest agent is of another version, {plain(str(said.get('version')), 20)}", events)
        elif self.report is None:
            self.report = Report().updated(said)
            self._ping_at = now + PING_S
            events.append(Ready(self.report))

    def _output(self, frame: Frame, events: list[Event]) -> int:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return 0  # of one that we have cancelled
        channel, data = frame.payload[:1], frame.payload[1:]
        if channel not in (bytes([STDOUT]), bytes([STDERR])) or channel[0] in stream.ended:
            self._break(frame.stream, "sent output where there is none", events)
            return 0
        if len(data) > stream.allowed:
            self._break(frame.stream, "sent more than it may", events)
            return 0
        stream.allowed -= len(data)
        if not data:
            stream.ended.add(channel[0])
        events.append(Said(frame.stream, channel[0], data))
        return _LINE_COST - _OUTPUT_COST + 2 * len(data)  # escaped it weighs up to twice as much

    def _credited(self, frame: Frame, events: list[Event]) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None or stream.credit == WINDOW:
            return
        # Credit for what was never sent is worth nothing.
        stream.credit = min(WINDOW, stream.credit + credit_of(frame))
        events.append(Room(frame.stream))

    def _break(self, number: int, how: str, events: list[Event]) -> None:
        self.cancel(number)
        events.append(Exited(number, _BROKEN, error=f"the guest agent {how}"))

    def _over(self, why: str, events: list[Event]) -> None:
        self._streams.clear()
        if self.report is not None:
            self.report = None
            events.append(Lost(why))


def _exited(number: int, said: dict[str, Any]) -> Exited:
    if "error" in said:
        code = number_within(said.get("code"), 1, 255, _BROKEN)
        return Exited(number, code, error=plain(said["error"]) or "the guest agent gave no reason")
    code = number_within(said.get("code"), 0, 255, -1)
    if code < 0:
        return Exited(number, _BROKEN, error="the guest agent told no exit code")
    return Exited(number, code, number_within(said.get("signal"), 0, 64, 0))
