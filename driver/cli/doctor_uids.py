"""What `chv doctor` says of whom it runs as, and of those that machines run as. Pure, on the host's users."""

import os
import pwd
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from driver.cli.doctor_check import Check
from driver.config_plugin import PluginConfig
from driver.node import unprivileged_warning
from vmlib import credentials, probe

RECOMMENDED = range(200000, 265536)
_LAST_UID = (1 << 31) - 1  # above it old programs see negative numbers


@dataclass(frozen=True, slots=True)
class Taken:
    """Uids that are somebody's already."""

    uids: range
    whose: str
    real: bool  # of a user, and not only lent to one for containers


def privilege_checks() -> Iterator[Check]:
    """Whose process this is, and whether it may shut VMMs in."""
    if os.geteuid() == 0:
        yield Check("privileges", "ok", "runs as root")
    else:
        yield Check("privileges", "problem", f"runs as uid {os.geteuid()}", "run it and the Nomad agent as root")
    if probe.may_shut_in():
        yield Check("cage", "ok", "each VMM sees a root of its own with nothing of the host's but programs")
    else:
        lack = "VMMs see all that their user may: for a root of their own this process lacks root, or a capability"
        yield Check("cage", "warning", lack, "run Nomad as root, with CAP_SYS_ADMIN and CAP_SYS_PTRACE")


def uid_checks(config: PluginConfig) -> Iterator[Check]:
    if config.vm_uids is not None:
        yield range_check(config.vm_uids, [*_users(), *subordinate(Path("/etc"))])
    elif warning := unprivileged_warning(config):
        cure = f'set vm_uids = "{_text(free_range(RECOMMENDED, [*_users(), *subordinate(Path("/etc"))]))}"'
        yield Check("vm_uids", "warning", warning, f"{cure} in the plugin block")
    else:
        who = credentials.for_user(config.vm_user)
        if who is not None and not who.uid:
            found = f"vm_user = {config.vm_user!r} is uid 0: machines run as root"
            yield Check("vm_uids", "warning", found, f'set vm_uids = "{_text(RECOMMENDED)}" in the plugin block')
        else:
            yield Check("vm_uids", "ok", f"all machines run as {config.vm_user}")


def range_check(uids: range, taken: Iterable[Taken]) -> Check:
    """Whether the operator's range is nobody else's: a VMM may do what its uid may."""
    known = list(taken)
    theirs = [one for one in known if _overlap(uids, one.uids)]
    if not theirs:
        return Check("vm_uids", "ok", f"one uid for each machine, {_text(uids)}")
    whose = ", ".join(f"{_text(one.uids)} of {one.whose}" for one in theirs[:3])
    more = f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
    return Check(
        "vm_uids",
        "problem" if any(one.real for one in theirs) else "warning",
        f"{_text(uids)} has uids of others ({whose}{more}): a machine and they can do to each other what they like",
        f'set vm_uids = "{_text(free_range(uids, known))}" in the plugin block',
    )


def free_range(like: range, taken: Iterable[Taken]) -> range:
    """As many uids as `like`, the first ones from the recommended place on that are nobody's."""
    start = RECOMMENDED.start
    for one in sorted((one.uids for one in taken), key=lambda uids: uids.start):
        if _overlap(range(start, start + len(like)), one) and one.stop + len(like) <= _LAST_UID:
            start = one.stop
    return range(start, start + len(like))


def subordinate(etc: Path) -> Iterator[Taken]:
    """Uids and gids that users may give to containers. A machine's group has the number of its uid."""
    for name in ("subuid", "subgid"):
        try:
            lines = (etc / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            user, _, numbers = line.partition(":")
            first, _, count = numbers.partition(":")
            if first.isdecimal() and count.isdecimal() and int(count):
                yield Taken(range(int(first), int(first) + int(count)), f"{user} in {etc / name}", real=False)


def _users() -> Iterator[Taken]:
    for one in pwd.getpwall():
        yield Taken(range(one.pw_uid, one.pw_uid + 1), f"user {one.pw_name}", real=True)


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _text(uids: range) -> str:
    return str(uids.start) if len(uids) == 1 else f"{uids.start}-{uids.stop - 1}"
