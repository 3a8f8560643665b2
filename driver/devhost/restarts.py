"""Nomad's restart policy: a pure value that is asked after each end of a task and says what comes next."""

from dataclasses import dataclass, replace
from typing import Literal

from driver.devhost.goduration import format_duration

NO_RESTARTS = "Policy allows no restarts"
UNRECOVERABLE = "Error was unrecoverable"
WITHIN_POLICY = "Restart within policy"
DELAYED = "Exceeded allowed attempts, applying a delay"

# The delay is stretched by up to this part of itself, so that a crowd of tasks does not come back in one moment.
JITTER = 0.25

Mode = Literal["fail", "delay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    attempts: int
    interval_s: float
    delay_s: float
    mode: Mode = "fail"


# What Nomad fills in for a job that says nothing.
SERVICE_POLICY = RestartPolicy(attempts=2, interval_s=30 * 60, delay_s=15)
BATCH_POLICY = RestartPolicy(attempts=3, interval_s=24 * 3600, delay_s=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the last start of the task ended, as far as the policy cares."""

    kind: Literal["exited", "start failed", "killed"]
    successful: bool = False  # exited: code 0, no signal, no message
    recoverable: bool = False  # start failed: a retry may help


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of the task. `reason` is Nomad's text."""

    action: Literal["restart", "give up", "complete", "killed"]
    reason: str = ""
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """The policy with its memory: how often in the interval that began at `since`."""

    policy: RestartPolicy
    batch: bool
    since: float
    count: int = 0

    def after(self, ending: Ending, *, now: float, luck: float) -> tuple["Restarts", Verdict]:
        """The verdict on this ending and the memory to go on with. `luck`, 0 to 1, chooses the jitter."""
        if ending.kind == "killed":
            return self, Verdict(action="killed")
        # A batch task that ended well is done; a service is meant to go on for ever.
        done = ending.kind == "exited" and ending.successful and self.batch
        policy = self.policy
        if policy.attempts == 0:
            return self, Verdict(action="complete" if done else "give up", reason=NO_RESTARTS)
        fresh = now > self.since + policy.interval_s
        since, count = (now, 1) if fresh else (self.since, self.count + 1)
        memory = replace(self, since=since, count=count)
        if ending.kind == "start failed" and not ending.recoverable:
            return memory, Verdict(action="give up", reason=UNRECOVERABLE)
        if done:
            return memory, Verdict(action="complete", reason="Restart unnecessary as task terminated successfully")
        if count <= policy.attempts:
            delay_s = policy.delay_s * (1 + JITTER * luck)
            return memory, Verdict(action="restart", reason=WITHIN_POLICY, delay_s=delay_s)
        if policy.mode == "delay":
            return memory, Verdict(action="restart", reason=DELAYED, delay_s=since + policy.interval_s - now)
        interval = format_duration(policy.interval_s)
        reason = f'Exceeded allowed attempts {policy.attempts} in interval {interval} and mode is "fail"'
        return memory, Verdict(action="give up", reason=reason)
