"""Who uses a network namespace, told by /proc."""

import contextlib
import os
from pathlib import Path

_PROC = Path("/proc")


def processes_in(netns: str, proc: Path = _PROC) -> tuple[str, ...]:
    """`nginx (pid 12)` for each process in a network namespace; none where the namespace is ours, or is gone."""
    if not netns:
        return ()
    try:
        wanted = os.stat(netns)
        ours = os.stat(proc / "self/ns/net")
    except OSError:  # whoever plugs a link into it says so
        return ()
    if os.path.samestat(wanted, ours):
        return ()
    found = []
    for entry in sorted(int(name) for name in os.listdir(proc) if name.isdecimal()):
        with contextlib.suppress(OSError):  # it has ended
            if os.path.samestat(os.stat(proc / str(entry) / "ns/net"), wanted):
                found.append(f"{(proc / str(entry) / 'comm').read_text().strip()} (pid {entry})")
    return tuple(found)
