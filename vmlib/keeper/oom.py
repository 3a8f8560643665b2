"""Whether the host's kernel killed a VMM for want of memory, as its memory cgroup tells; and the sentence about it."""

from dataclasses import dataclass
from pathlib import Path

from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import RunPaths

_NO_LIMIT = 1 << 60  # v1 says "none" as the largest number of whole pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Oom:
    """What a group remembers of running out of memory."""

    kills: int  # processes of the group that the kernel killed for it
    at_limit: bool  # the group itself was full; otherwise one above it, or the host
    limit_bytes: int | None


def parse_v2(events: str, limit: str) -> Oom:
    """From the texts of memory.events and memory.max."""
    counts = _counts(events)
    return Oom(kills=counts.get("oom_kill", 0), at_limit=counts.get("oom", 0) > 0, limit_bytes=_limit(limit))


def parse_v1(oom_control: str, failures: str, limit: str) -> Oom:
    """From the texts of memory.oom_control, memory.failcnt and memory.limit_in_bytes."""
    return Oom(
        kills=_counts(oom_control).get("oom_kill", 0),
        at_limit=(_number(failures) or 0) > 0,
        limit_bytes=_limit(limit),
    )


def sentence(seen: Oom) -> str:
    """What the owner of the machine is told; "" when the kernel killed nobody."""
    if not seen.kills:
        return ""
    if seen.at_limit and seen.limit_bytes is not None:
        why = f"which had reached its limit of {seen.limit_bytes >> 20} MiB"
    elif seen.limit_bytes is not None:
        why = f"which was within its limit of {seen.limit_bytes >> 20} MiB"
    else:
        why = "which has no limit of its own"
    return f"out of memory on the host: the kernel killed the VMM, {why}"


def report(memory_group: str) -> str:
    """The sentence about the VMM of that group; "" when it was not killed for memory, or nobody can tell."""
    if not memory_group:
        return ""
    group = Path(memory_group)
    if (group / "memory.events").exists():
        return sentence(parse_v2(_text(group / "memory.events"), _text(group / "memory.max")))
    return sentence(
        parse_v1(
            _text(group / "memory.oom_control"),
            _text(group / "memory.failcnt"),
            _text(group / "memory.limit_in_bytes"),
        )
    )


def report_of_run(run: RunPaths) -> str:
    """The same, for whoever finds that a machine has ended and has no keeper."""
    try:
        return report(KeeperPlan.load(run.plan.read_bytes()).memory_group)
    except (OSError, ValueError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the group is gone, or of a kernel that knows less
        return ""


def _counts(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _limit(text: str) -> int | None:
    """None for "max", and for v1's way to say it."""
    number = _number(text)
    return None if number is None or number >= _NO_LIMIT else number
