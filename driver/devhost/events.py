"""What happens to a task, in the words that `nomad alloc status` shows."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from driver.devhost.goduration import format_duration
from driver.devhost.restarts import WITHIN_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    type: str
    message: str
    details: Mapping[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitResult:
    """How a task ended. `message` is what went wrong beside the code; code 0 with one is still a failure."""

    exit_code: int = 0
    signal: int = 0
    oom_killed: bool = False
    message: str = ""

    @property
    def successful(self) -> bool:
        return self.exit_code == 0 and self.signal == 0 and not self.message

    @property
    def shell_code(self) -> int:
        """The exit code of the command that ran the task: a signal is 128 + n, and a failure is never 0."""
        if self.signal:
            return 128 + self.signal
        if self.exit_code:
            return self.exit_code if 0 < self.exit_code < 256 else 1
        return 0 if self.successful else 1


def terminated(result: ExitResult) -> Event:
    parts = [f"Exit Code: {result.exit_code}"]
    if result.signal:
        parts.append(f"Signal: {result.signal}")
    if result.message:
        parts.append(f"Exit Message: {json.dumps(result.message, ensure_ascii=False)}")
    details = {
        "exit_code": str(result.exit_code),
        "signal": str(result.signal),
        "exit_message": result.message,
        "oom_killed": "true" if result.oom_killed else "false",
    }
    return Event(type="Terminated", message=", ".join(parts), details=details)


def restarting(reason: str, delay_s: float) -> Event:
    later = f"Task restarting in {format_duration(delay_s)}"
    return Event(type="Restarting", message=later if reason in ("", WITHIN_POLICY) else f"{reason} - {later}")


def killing(timeout_s: float) -> Event:
    waits = f". Waiting {format_duration(timeout_s)} before force killing" if timeout_s else ""
    return Event(type="Killing", message=f"Sent interrupt{waits}")


RECEIVED = ("Received", "Task received by client")
BUILDING = ("Task Setup", "Building Task Directory")
DOWNLOADING = ("Downloading Artifacts", "Client is downloading artifacts")
STARTED = ("Started", "Task started by client")
KILLED = ("Killed", "Task successfully killed")
