"""Cloud Hypervisor's event monitor: events come whole however they are cut, and nothing in it can hurt a keeper."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.cloud_events import CloudEvent, EventDecoder

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
events = st.builds(CloudEvent, words, words, st.dictionaries(words, words, max_size=3))


def written(event: CloudEvent) -> bytes:
    """As the VMM does: pretty-printed, an empty line after it."""
    said = {
        "timestamp": {"secs": 2, "nanos": 499290303},
        "source": event.source,
        "event": event.event,
        "properties": dict(event.properties) or None,
    }
    return json.dumps(said, indent=2).encode() + b"\n\n"


def fed(data: bytes, cuts: list[int]) -> list[CloudEvent]:
    decoder, found, at = EventDecoder(), [], 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        found += decoder.feed(data[at:cut])
        at = cut
    return found


@given(said=st.lists(events, max_size=5), cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_events_come_whole_however_they_are_cut(said: list[CloudEvent], cuts: list[int]) -> None:
    assert fed(b"".join(map(written, said)), cuts) == said


def test_what_a_real_one_wrote() -> None:
    said = (
        b'{\n  "timestamp": {\n    "secs": 3,\n    "nanos": 310107393\n  },\n  "source": "vm",\n'
        b'  "event": "shutdown",\n  "properties": null\n}\n\n'
        b'{\n  "timestamp": {\n    "secs": 4,\n    "nanos": 1\n  },\n  "source": "guest",\n'
        b'  "event": "panic",\n  "properties": {\n    "event": "panic"\n  }\n}\n\n'
    )
    assert fed(said, []) == [CloudEvent("vm", "shutdown"), CloudEvent("guest", "panic", {"event": "panic"})]


@given(
    junk=st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"")),
    event=events,
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_junk_costs_no_event_after_the_next_empty_line(junk: bytes, event: CloudEvent, cuts: list[int]) -> None:
    assert fed(junk + b"\n\n" + written(event), cuts)[-1] == event


@given(event=events, cut=st.integers(1, 60))
def test_half_an_event_before_it_does_not_swallow_the_next(event: CloudEvent, cut: int) -> None:
    """A pipe that is full takes the first part of a write; what comes later begins anew."""
    half = written(CloudEvent("vm", "paused"))[:cut].rstrip(b"\n")
    assert fed(half + written(event), [])[-1:] == [event]


@given(said=st.lists(events, min_size=1, max_size=5))
def test_events_without_a_line_between_them_are_told_apart(said: list[CloudEvent]) -> None:
    assert fed(b"".join(written(event).rstrip() for event in said) + b"\n\n", []) == said


@pytest.mark.parametrize("junk", [b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b"{}", b"3", b"null", b'{"source": 1}'])
def test_junk_is_passed_over(junk: bytes) -> None:
    decoder = EventDecoder()
    assert decoder.feed(junk + b"\n\n") == []
    assert decoder.feed(written(CloudEvent("vm", "booted"))) == [CloudEvent("vm", "booted")]


@given(pieces=st.lists(st.integers(1, 50_000), min_size=1, max_size=20))
def test_input_without_end_is_not_kept(pieces: list[int]) -> None:
    decoder = EventDecoder()
    for size in pieces:
        assert decoder.feed(b"x" * size) == []
        assert len(decoder._rest) <= 1 << 16
    assert decoder.feed(b"\n\n" + written(CloudEvent("vm", "booted")))[-1:] == [CloudEvent("vm", "booted")]


@pytest.mark.parametrize("properties", [[], 3, "x", {"a": 1, "b": None}])
def test_odd_properties_cost_no_event(properties: object) -> None:
    said = json.dumps({"source": "vm", "event": "booted", "properties": properties}).encode() + b"\n\n"
    (event,) = EventDecoder().feed(said)
    assert (event.source, event.event) == ("vm", "booted")
