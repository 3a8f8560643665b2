"""Places where a test makes this process die, to prove that somebody else can clean up.

`CHV_FAILPOINT=NAME:MARKER` kills the process with SIGKILL at the place NAME if the file MARKER can be removed, so that
the process that takes over lives. Without the variable a place costs one comparison.
"""

import os
import signal

LINKS = ("link.noted", "link.made", "link.marked", "link.up", "link.opened")

# Every place there is, so that a test can enumerate them. `child.*` stand right behind the start of a child;
# `child.vmm` and `child.helper` are the keeper's.
PLACES = (
    "child.keeper",
    "child.vmm",
    "child.helper",
    "child.adopt",
    "child.tool",
    "child.far",
    "start.journal",
    "start.run_dir",
    "start.hooks",
    "start.mounted",
    "start.devices",
    *LINKS,
    "start.files",
    "start.ledger",
    "start.cgroups",
    "start.spawned",
    "start.verified",
    "start.pinned",
    "start.booted",
    "start.recorded",
    "start.committed",
)

_wanted, _, _marker = os.environ.get("CHV_FAILPOINT", "").partition(":")


def hit(place: str) -> None:
    """Die here if a test asked for it."""
    if place != _wanted:
        return
    assert place in PLACES, place
    try:
        os.unlink(_marker)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
