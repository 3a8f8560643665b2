"""What the log of Cloud Hypervisor says about an end, and what of it is for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.cloud_log import LogReader, LogWords


def line(level: str, said: str, at_s: float = 1.0) -> bytes:
    return f"cloud-hypervisor: {at_s:10.6f}s: <vmm> {level}:vmm/src/lib.rs:2096 -- {said} \r\n".encode()


def shown(level: str, said: str) -> bytes:
    return line(level, said).rstrip() + b"\n"


def words(*lines: bytes) -> LogWords:
    reader = LogReader()
    reader.feed(b"".join(lines))
    return reader.words


STARTING = line("INFO", "v53.0-dirty starting", 0.0)
CASES = {
    "guest power-off": (
        [STARTING, line("INFO", "VM guest exit event")],
        {"tells_guest_exit": True, "guest_exit": True},
    ),
    "an old version": ([line("INFO", "v51.2 starting"), line("INFO", "VM exit event")], {"other_exit": True}),
    "told over the API": ([line("INFO", "API request event: VmmShutdown")], {"api_exit": True}),
    "button": ([line("INFO", "API request event: VmPowerButton")], {"button": True}),
    "reboot by the guest": ([line("INFO", "VM reset event")], {"reset_by_guest": True}),
    "reboot by the API after one": (
        [line("INFO", "VM reset event"), line("INFO", "API request event: VmReboot")],
        {"reset_by_guest": False},
    ),
    "an error right before the exit": (
        [line("ERROR", "VCPU generated error: x", 9.0), line("INFO", "VM exit event", 9.2)],
        {"other_exit": True, "why_exit": "VCPU generated error: x", "last_error": "VCPU generated error: x"},
    ),
    "an error long before the exit": (
        [line("ERROR", "x", 9.0), line("INFO", "VM exit event", 12.0)],
        {"other_exit": True, "last_error": "x"},
    ),
    "a panic of a thread": (
        [b"\nthread 'vcpu0' panicked at vmm/src/cpu.rs:1:\n", b"index out of bounds\n", b"note: run with `RUST_B`\n"],
        {"last_error": "index out of bounds"},
    ),
    "seccomp": (
        [
            b"\n==== Possible seccomp violation ====\n",
            b"Syscall number: 49 (arch: 0xc000003e, tid: 12, thread: http-server)\n",
            b"Try running with `strace -ff` to identify the cause and open an issue\n",
        ],
        {"seccomp": "system call 49 in thread http-server"},
    ),
    "the chain of a failure": (
        [b"Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Error rebooting\n  1: No space\n"],
        {"last_error": "Error rebooting: No space"},
    ),
    "what a guest may write": ([line("INFO", "the guest says VM guest exit event")], {}),
    "at another level": ([line("WARN", "VM guest exit event")], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_words_of_an_end_are_understood(name: str) -> None:
    lines, expected = CASES[name]
    assert words(*lines) == LogWords(**expected)  # type: ignore[arg-type]


def test_people_see_warnings_errors_and_what_has_no_level() -> None:
    seen = LogReader().feed(
        line("INFO", "a") + line("WARN", "b") + line("DEBUG", "c") + line("ERROR", "d") + b"thread panicked\n\n"
    )
    assert seen == shown("WARN", "b") + shown("ERROR", "d") + b"thread panicked\n"


@given(cuts=st.lists(st.integers(0, 500), max_size=10))
def test_lines_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = line("ERROR", "one") + line("INFO", "two") + line("WARN", "three")
    reader, seen, at = LogReader(), b"", 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        seen += reader.feed(data[at:cut])
        at = cut
    assert seen == shown("ERROR", "one") + shown("WARN", "three")


@given(pieces=st.lists(st.integers(1, 100_000), min_size=1, max_size=20))
def test_a_line_without_end_is_cut_and_costs_no_other(pieces: list[int]) -> None:
    reader = LogReader()
    for size in pieces:
        assert reader.feed(b"x" * size) == b""
        assert len(reader._rest) <= 4096
    assert len(reader.feed(b"\n")) <= 4097
    assert reader.feed(line("WARN", "b")) == shown("WARN", "b")


@given(junk=st.binary(max_size=2000))
def test_junk_is_no_worse_than_a_line(junk: bytes) -> None:
    reader = LogReader()
    reader.feed(junk)
    reader.finish()
    assert reader.feed(line("WARN", "b")) == shown("WARN", "b")


def test_the_rest_of_a_line_that_another_keeper_began_to_read_is_no_word_of_its_own() -> None:
    reader = LogReader(torn=True)
    assert reader.feed(b"dated configuration, no less\r\n" + line("WARN", "b") + b"bare\n") == (
        shown("WARN", "b") + b"bare\n"
    )
    whole = LogReader(torn=True)
    assert whole.feed(line("ERROR", "a") + b"bare\n") == shown("ERROR", "a") + b"bare\n"


def test_what_lacks_its_line_break_counts_at_the_end() -> None:
    reader = LogReader()
    assert reader.feed(b"Error: it is") == b""
    assert reader.finish() == b"Error: it is\n"
    assert reader.finish() == b""
    assert reader.words.last_error == "Error: it is"
