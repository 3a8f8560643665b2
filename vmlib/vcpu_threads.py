"""The threads of a VMM that name themselves after the vCPU that they run."""

import os
import re
from pathlib import Path

_NAME = re.compile(r"vcpu([0-9]{1,4})")


def by_name(pid: int) -> tuple[int, ...]:
    """Thread ids by vCPU; empty when there are none, or not yet one for each up to the last."""
    found: dict[int, int] = {}
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return ()
    for tid in tids:
        try:
            name = Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if (match := _NAME.fullmatch(name)) is not None:
            found[int(match[1])] = tid
    return tuple(found[index] for index in range(len(found))) if sorted(found) == list(range(len(found))) else ()
