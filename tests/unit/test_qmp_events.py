"""QEMU's events in our words, and nothing that a VMM says can hurt its keeper."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.qmp_events import MonitorEvent, QmpMonitor
from vmlib.lines import LineTooLongError


def line(event: str, **data: object) -> bytes:
    message = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": event, **({"data": data} if data else {})}
    return json.dumps(message).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        (
            line("SHUTDOWN", guest=True, reason="guest-shutdown"),
            MonitorEvent("shutdown", reason="guest-shutdown", by_guest=True),
        ),
        (
            line("RESET", guest=False, reason="host-qmp-system-reset"),
            MonitorEvent("reset", reason="host-qmp-system-reset"),
        ),
        (line("GUEST_PANICKED", action="poweroff"), MonitorEvent("panic")),
        (line("POWERDOWN"), MonitorEvent("power button")),
        (line("STOP"), MonitorEvent("paused")),
        (line("RESUME"), MonitorEvent("resumed")),
        (line("NETDEV_STREAM_CONNECTED", **{"netdev-id": "net0"}), MonitorEvent("router")),
    ],
)
def test_an_event_is_told_in_our_words(sent: bytes, heard: MonitorEvent) -> None:
    assert QmpMonitor().feed(sent) == [heard]


def test_greeting_answers_and_other_events_are_passed_over() -> None:
    said = b'{"QMP": {"version": {}}}\r\n{"return": {}}\r\n{"error": {"class": "x"}, "id": 1}\r\n' + line("RTC_CHANGE")
    assert QmpMonitor().feed(said) == []


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_events_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = line("STOP") + line("RESUME")
    monitor = QmpMonitor()
    events, at = [], 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        events += monitor.feed(data[at:cut])
        at = cut
    events += monitor.feed(data[at:])
    assert [event.kind for event in events] == ["paused", "resumed"]


@pytest.mark.parametrize(
    "message", [[], 1, None, "STOP", {"event": []}, {"event": {}}, {"event": 3}, {"event": "stop"}, {"data": {}}]
)
def test_json_of_another_shape_is_passed_over(message: object) -> None:
    assert QmpMonitor().feed(json.dumps(message).encode() + b"\n") == []


@pytest.mark.parametrize("data", [[], 1, "x", None, {"reason": [], "guest": 3}])
def test_an_event_with_odd_data_is_still_that_event(data: object) -> None:
    (event,) = QmpMonitor().feed(json.dumps({"event": "SHUTDOWN", "data": data}).encode() + b"\n")
    assert event.kind == "shutdown"


@pytest.mark.parametrize("junk", [b"hello\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n"])
def test_junk_is_a_value_error_and_nothing_worse(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        QmpMonitor().feed(junk)


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(LineTooLongError):
        QmpMonitor().feed(b"x" * (1 << 20) + b"x")
