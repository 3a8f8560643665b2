"""Nomad's restart policy, durations, and what a task's end means for the command's exit code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.devhost.events import ExitResult, killing, restarting, terminated
from driver.devhost.goduration import format_duration, parse_duration
from driver.devhost.restarts import BATCH_POLICY, Ending, RestartPolicy, Restarts, Verdict

FAILED = Ending(kind="exited", successful=False)
DONE = Ending(kind="exited", successful=True)
NOT_STARTED = Ending(kind="start failed", recoverable=True)
NEVER = Ending(kind="start failed", recoverable=False)
KILLED = Ending(kind="killed")

POLICY = RestartPolicy(attempts=2, interval_s=600, delay_s=15)
WITHIN = "Restart within policy"


def verdicts(policy: RestartPolicy, endings: list[tuple[float, Ending]], *, batch: bool = True) -> list[Verdict]:
    """Ask after each ending, at its time on a clock that begins at 0."""
    memory = Restarts(policy=policy, batch=batch, since=0)
    found = []
    for now, ending in endings:
        memory, verdict = memory.after(ending, now=now, luck=0)
        found.append(verdict)
    return found


def test_fails_when_the_attempts_are_used_up() -> None:
    assert verdicts(POLICY, [(1, FAILED), (2, NOT_STARTED), (3, FAILED)]) == [
        Verdict(action="restart", reason=WITHIN, delay_s=15),
        Verdict(action="restart", reason=WITHIN, delay_s=15),
        Verdict(action="give up", reason='Exceeded allowed attempts 2 in interval 10m0s and mode is "fail"'),
    ]


def test_mode_delay_waits_for_the_next_interval() -> None:
    policy = RestartPolicy(attempts=1, interval_s=600, delay_s=0, mode="delay")
    assert verdicts(policy, [(1, FAILED), (100, FAILED), (601, FAILED)]) == [
        Verdict(action="restart", reason=WITHIN, delay_s=0),
        Verdict(action="restart", reason="Exceeded allowed attempts, applying a delay", delay_s=500),
        Verdict(action="restart", reason=WITHIN, delay_s=0),
    ]


def test_a_new_interval_forgets_the_old_attempts() -> None:
    found = verdicts(POLICY, [(1, FAILED), (2, FAILED), (601, FAILED), (602, FAILED), (603, FAILED)])
    assert [verdict.action for verdict in found] == ["restart", "restart", "restart", "restart", "give up"]


@pytest.mark.parametrize(
    ("batch", "ending", "wanted"),
    [
        (True, DONE, Verdict(action="complete", reason="Restart unnecessary as task terminated successfully")),
        (False, DONE, Verdict(action="restart", reason=WITHIN, delay_s=15)),
        (True, NEVER, Verdict(action="give up", reason="Error was unrecoverable")),
        (False, KILLED, Verdict(action="killed")),
    ],
)
def test_what_ended_how(batch: bool, ending: Ending, wanted: Verdict) -> None:
    assert verdicts(POLICY, [(1, ending)], batch=batch) == [wanted]


@pytest.mark.parametrize(
    ("batch", "ending", "action"),
    [(True, DONE, "complete"), (False, DONE, "give up"), (True, FAILED, "give up"), (True, NOT_STARTED, "give up")],
)
def test_no_attempts_means_no_restart(batch: bool, ending: Ending, action: str) -> None:
    policy = RestartPolicy(attempts=0, interval_s=600, delay_s=15)
    assert verdicts(policy, [(1, ending)], batch=batch) == [Verdict(action=action, reason="Policy allows no restarts")]  # type: ignore[arg-type]


@given(luck=st.floats(0, 1))
def test_the_delay_is_stretched_by_a_quarter_at_most(luck: float) -> None:
    _, verdict = Restarts(policy=BATCH_POLICY, batch=True, since=0).after(FAILED, now=1, luck=luck)
    assert 15 <= verdict.delay_s <= 18.75


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (ExitResult(), 0),
        (ExitResult(exit_code=7), 7),
        (ExitResult(signal=11), 139),
        (ExitResult(exit_code=137, signal=9, message="killed"), 137),
        (ExitResult(message="rpc error"), 1),
        (ExitResult(exit_code=1, message="guest panic"), 1),
        (ExitResult(exit_code=512), 1),
        (ExitResult(exit_code=-1), 1),
    ],
)
def test_exit_code_of_the_command(result: ExitResult, code: int) -> None:
    assert result.shell_code == code


def test_words_are_nomads() -> None:
    shown = [
        terminated(ExitResult(exit_code=3, message='guest "panic"')),
        terminated(ExitResult(signal=11)),
        killing(30),
        restarting("", 15.5),
        restarting("Exceeded allowed attempts, applying a delay", 90),
    ]
    assert [f"{event.type}: {event.message}" for event in shown] == [
        'Terminated: Exit Code: 3, Exit Message: "guest \\"panic\\""',
        "Terminated: Exit Code: 0, Signal: 11",
        "Killing: Sent interrupt. Waiting 30s before force killing",
        "Restarting: Task restarting in 15.5s",
        "Restarting: Exceeded allowed attempts, applying a delay - Task restarting in 1m30s",
    ]


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("30s", 30, "30s"),
        ("1h30m", 5400, "1h30m0s"),
        ("90s", 90, "1m30s"),
        ("1.5s", 1.5, "1.5s"),
        ("250ms", 0.25, "250ms"),
        ("10us", 0.00001, "10µs"),
        ("0", 0, "0s"),
        ("24h", 86400, "24h0m0s"),
        ("-5s", -5, "-5s"),
    ],
)
def test_durations_as_go_writes_them(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == shown


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "1d", "5m3", "--1s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time like 30s"):
        parse_duration(text)
