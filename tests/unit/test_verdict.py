"""How a machine ended: a table of what was seen and what its owner is told."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.verdict import Evidence, Verdict, judge

FORCED = "forced off: the guest did not power off within 5 s, SIGKILL to the VMM"
PANIC = "Kernel panic - not syncing: sysrq triggered crash"
OOM = "out of memory on the host: the kernel killed the VMM, which had reached its limit of 356 MiB"
KILLED_FOR_MEMORY = Verdict(137, 9, OOM, oom_killed=True)
UNKNOWN = "the machine ended while nobody watched, cause unknown"

CASES = {
    "guest power-off": (Evidence(shutdown="guest-shutdown"), 0, "", Verdict(0)),
    "guest reboot that shall end it": (Evidence(shutdown="guest-reset"), 0, "", Verdict(0)),
    "nothing but a good end": (Evidence(), 0, "", Verdict(0)),
    "exit 0": (Evidence(exit_requested=0, shutdown="guest-shutdown"), 0, "", Verdict(0)),
    "exit N": (Evidence(exit_requested=7, shutdown="guest-shutdown"), 0, "", Verdict(7)),
    "exit N, ended by us": (Evidence(exit_requested=7, shutdown="host-signal"), 0, "", Verdict(7)),
    "exit N, killed by us": (Evidence(exit_requested=7), -9, "", Verdict(7)),
    "panic": (
        Evidence(panic=True, panic_lines=PANIC, shutdown="guest-panic"),
        1,
        "",
        Verdict(1, message=f"guest panic: {PANIC}"),
    ),
    "panic without words": (Evidence(panic=True), 1, "", Verdict(1, message="guest panic")),
    "panic of a guest that hung": (Evidence(panic=True, panic_lines="x"), -9, "", Verdict(1, message="guest panic: x")),
    "SIGKILL": (Evidence(), -9, "", Verdict(137, 9, "the VMM was killed by SIGKILL")),
    "SIGSEGV": (Evidence(), -11, "", Verdict(139, 11, "the VMM was killed by SIGSEGV")),
    "a signal without a name": (Evidence(), -35, "", Verdict(163, 35, "the VMM was killed by signal 35")),
    "SIGTERM from a stranger": (
        Evidence(shutdown="host-signal"),
        0,
        "",
        Verdict(143, 15, "the VMM was told to end by a signal from outside"),
    ),
    "quit from a stranger": (
        Evidence(shutdown="host-qmp-quit"),
        0,
        "",
        Verdict(1, message="the VMM was told to quit from outside"),
    ),
    "forced by quit": (Evidence(forced=FORCED, shutdown="host-qmp-quit"), 0, "", Verdict(137, message=FORCED)),
    "forced by SIGKILL": (Evidence(forced=FORCED), -9, "", Verdict(137, message=FORCED)),
    "failure of the VMM's own": (
        Evidence(),
        1,
        "warning: x\nqemu: no such device\n",
        Verdict(1, message="the VMM ended with status 1: qemu: no such device"),
    ),
    "failure without words": (Evidence(), 3, " \n", Verdict(3, message="the VMM ended with status 3")),
    "error in the VMM": (
        Evidence(shutdown="host-error"),
        0,
        "",
        Verdict(1, message="the VMM shut down after an error of its own"),
    ),
    "adopted, power-off seen": (Evidence(shutdown="guest-shutdown"), None, "", Verdict(0)),
    "adopted, exit N seen": (Evidence(exit_requested=5), None, "", Verdict(5)),
    "adopted, panic seen": (Evidence(panic=True, panic_lines="x"), None, "", Verdict(1, message="guest panic: x")),
    "adopted, shut down for a panic": (Evidence(shutdown="guest-panic"), None, "", Verdict(1, message="guest panic")),
    "adopted, forced": (Evidence(forced=FORCED), None, "", Verdict(137, message=FORCED)),
    "adopted, nothing seen": (Evidence(), None, "", Verdict(1, message=UNKNOWN)),
    "adopted, a reason that nobody knows": (Evidence(shutdown="new-reason"), None, "", Verdict(1, message=UNKNOWN)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_owner_is_told(name: str) -> None:
    seen, status, stderr, expected = CASES[name]
    assert judge(seen, status=status, stderr_tail=stderr) == expected


evidence = st.builds(
    Evidence,
    exit_requested=st.none() | st.integers(0, 255),
    shutdown=st.none() | st.text(max_size=20),
    panic=st.booleans(),
    panic_lines=st.text(max_size=20),
    forced=st.text(max_size=20),
)


OOM_CASES = {
    "killed by the kernel": (Evidence(), -9, KILLED_FOR_MEMORY),
    "killed on its way out": (Evidence(shutdown="guest-shutdown"), -9, KILLED_FOR_MEMORY),
    "adopted, or without a keeper": (Evidence(), None, KILLED_FOR_MEMORY),
    # Something in its group was killed, and the VMM itself came to another end.
    "a good end": (Evidence(shutdown="guest-shutdown"), 0, Verdict(0)),
    "adopted, power-off seen": (Evidence(shutdown="guest-shutdown"), None, Verdict(0)),
    "another signal": (Evidence(), -11, Verdict(139, 11, "the VMM was killed by SIGSEGV")),
    "a failure of the VMM's own": (Evidence(), 1, Verdict(1, message="the VMM ended with status 1")),
    # What we did, and what the guest had said before, counts more.
    "forced": (Evidence(forced=FORCED), -9, Verdict(137, message=FORCED)),
    "exit N": (Evidence(exit_requested=7), -9, Verdict(7)),
    "panic": (Evidence(panic=True, panic_lines="x"), -9, Verdict(1, message="guest panic: x")),
}


@pytest.mark.parametrize("name", OOM_CASES)
def test_a_kill_for_memory_is_reported_as_one_and_only_that(name: str) -> None:
    seen, status, expected = OOM_CASES[name]
    assert judge(seen, status=status, oom=OOM) == expected


@given(
    seen=evidence,
    status=st.none() | st.integers(-64, 255),
    stderr=st.text(max_size=40),
    oom=st.sampled_from(["", OOM]),
)
def test_every_end_has_a_verdict_and_a_failure_has_words(
    seen: Evidence, status: int | None, stderr: str, oom: str
) -> None:
    verdict = judge(seen, status=status, stderr_tail=stderr, oom=oom)
    assert not verdict.oom_killed or verdict.message == oom != ""
    assert 0 <= verdict.exit_code <= 255
    assert verdict.message or verdict.exit_code == (seen.exit_requested or 0)
    if verdict.signal:
        assert verdict.exit_code == 128 + verdict.signal


@given(seen=evidence)
def test_what_a_keeper_saves_the_next_one_knows(seen: Evidence) -> None:
    assert Evidence.load(seen.dump()) == seen


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b'{"later": 1}', b"\xff"])
def test_what_cannot_be_read_is_no_evidence(data: bytes) -> None:
    assert Evidence.load(data) == Evidence()


def test_every_signal_of_this_system_has_a_verdict() -> None:
    for number in range(1, int(signal.SIGRTMAX) + 1):
        assert judge(Evidence(), status=-number).exit_code == 128 + number
