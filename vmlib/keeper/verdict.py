"""How a machine ended: from what the VMM said and how its process ended to the exit that its owner sees. Pure."""

import json
import signal
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Evidence:
    """What the keeper has learned about the end. Plain data: it is saved, so that a later keeper knows it too."""

    exit_requested: int | None = None  # the guest said `exit N`
    shutdown: str | None = None  # why the VMM shut down, in QEMU's words: guest-shutdown, host-qmp-quit, …
    panic: bool = False
    panic_lines: str = ""
    forced: str = ""  # a sentence, when the owner ended the machine by force
    stop_by: float | None = None  # when a stop that was asked for is over, in seconds since the epoch
    dialect: str = "qmp"  # of the VMM; what follows is only known of Cloud Hypervisor
    phase: str = ""  # booting, running, rebooting
    anew: bool = False  # its guest panicked and shall be started anew, which has not come to pass yet
    hang: str = ""  # a sentence, when the keeper ended a VMM that hung
    seccomp: str = ""  # the system call that killed it, in words
    error: str = ""  # the last one in its log

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes, *, dialect: str = "qmp") -> "Evidence":
        """What `dump` gave; what cannot be understood is no evidence."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls(dialect=dialect)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exit of a machine. An empty `message` with `exit_code` 0 is success."""

    exit_code: int
    signal: int = 0
    message: str = ""
    oom_killed: bool = False  # by the host's kernel; a guest that kills its own processes goes on


def judge(seen: Evidence, *, status: int | None, stderr_tail: str = "", oom: str = "") -> Verdict:
    """Decide. `status` is the VMM's wait status; None when its parent was gone and nobody could read it.

    `oom` is a sentence when the VMM's cgroup says that the kernel killed it for want of memory.
    """
    if seen.forced:
        return Verdict(137, message=seen.forced)
    if seen.panic:
        return Verdict(1, message=f"guest panic: {seen.panic_lines}".rstrip(": "))
    if seen.hang:
        return Verdict(1, message=seen.hang)
    if seen.dialect == "cloud-hypervisor" and seen.shutdown == "guest-reset":
        return Verdict(0)  # its keeper ended the VMM, which would have gone on
    by_signal = -status if status is not None and status < 0 else 0
    if oom and seen.exit_requested is None and _may_be_killed(seen, status):
        return Verdict(128 + signal.SIGKILL, signal.SIGKILL, oom, oom_killed=True)
    if by_signal and seen.exit_requested is None:
        return Verdict(128 + by_signal, by_signal, _killed(seen, by_signal))
    if seen.exit_requested is not None:
        return Verdict(seen.exit_requested)
    if status:
        words = seen.error or (stderr_tail.strip().splitlines() or [""])[-1]
        return Verdict(status, message=f"the VMM ended with status {status}" + (f": {words}" if words else ""))
    return _by_shutdown_reason(seen, known=status is not None)


def _may_be_killed(seen: Evidence, status: int | None) -> bool:
    """An unknown end counts, unless the VMM was already on its way out for a reason of its own."""
    return status == -signal.SIGKILL or (status is None and seen.shutdown is None)


def _killed(seen: Evidence, number: int) -> str:
    when = {"booting": " while it booted the guest", "rebooting": " while it rebooted the guest"}.get(seen.phase, "")
    why = f": seccomp allows it no {seen.seccomp}" if seen.seccomp and number == signal.SIGSYS else ""
    return f"the VMM was killed by {_signal_name(number)}{when}{why}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _by_shutdown_reason(seen: Evidence, *, known: bool) -> Verdict:
    match seen.shutdown:
        case "guest-shutdown" | "guest-reset" | "host-qmp-system-reset":
            return Verdict(0)
        case "host-signal":
            return Verdict(128 + signal.SIGTERM, signal.SIGTERM, "the VMM was told to end by a signal from outside")
        case "host-qmp-quit" | "host-ui" | "host-api":
            return Verdict(1, message="the VMM was told to quit from outside")
        case "guest-panic":
            return Verdict(1, message="guest panic")
        case "host-error":
            return Verdict(1, message="the VMM shut down after an error of its own")
        case "vmm-error":
            return Verdict(1, message=f"the VMM gave up: {seen.error}")
        case "sudden" if known:
            return Verdict(1, message="the VMM shut down and did not say why")
        case None if known and seen.dialect == "cloud-hypervisor":
            words = f": {seen.error}" if seen.error else ""
            return Verdict(1, message=f"the VMM ended with status 0 before its guest had come to an end{words}")
        case None if known:
            return Verdict(0)
        case _:
            return Verdict(1, message="the machine ended while nobody watched, cause unknown")
