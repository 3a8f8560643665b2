"""Whom a VMM runs as: one uid for each machine from the operator's range, or one user for all."""

import grp
import os
import pwd
from collections.abc import Collection
from pathlib import Path

from vmlib.errors import NoCapacityError
from vmlib.resources import Credentials


def pick_uid(allowed: range, used: Collection[int]) -> int:
    """The lowest uid that no machine holds. Raises NoCapacityError with the size of the range."""
    for uid in allowed:
        if uid not in used:
            return uid
    raise NoCapacityError(
        f"vm_uids: all {len(allowed)} uids are held by machines", hint="widen `vm_uids` in the plugin block"
    )


def for_user(name: str) -> Credentials | None:
    """The operator's user for all machines; None when the host has no such user."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = tuple(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)
    return Credentials(uid=entry.pw_uid, gid=entry.pw_gid, groups=groups)


def ours() -> Credentials:
    """As whom we run ourselves: the last resort, which health text and doctor warn about."""
    return Credentials(uid=os.getuid(), gid=os.getgid())


def with_kvm(who: Credentials, device: Path = Path("/dev/kvm")) -> Credentials:
    """The same, and a member of the group that may open /dev/kvm, unless everybody may."""
    found = device.stat()
    if found.st_mode & 0o006 == 0o006 or not found.st_gid:  # no machine is a member of root's own group
        return who
    return Credentials(uid=who.uid, gid=who.gid, groups=(*who.groups, found.st_gid))
