"""Files of ours that cannot be used: moved aside under a name that says so, and never a reason not to start.

Only whoever holds the lock of what the file is about may do that: a reader without it may have seen an old file, and
would move the new one.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vmlib.files import sync_directory
from vmlib.paths import Layout

log = logging.getLogger(__name__)

_KEPT = 4  # of one name


def set_aside(path: Path, why: str) -> Path:
    """Where it lies now; where it cannot be moved it stays, and the next save replaces it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.corrupt-{stamp}-{os.urandom(2).hex()}")
    try:
        path.rename(aside)
        sync_directory(path.parent)
    except OSError as exc:
        log.warning("%s is damaged and cannot be set aside (%s): %s", path, (exc.strerror or str(exc)).lower(), why)
        return path
    # Named by time: the newest are what somebody may still want to see.
    others = sorted(set(path.parent.glob(f"{path.name}.corrupt-*")) - {aside})
    for old in others[: 1 - _KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    log.warning("%s was damaged and is kept as %s: %s", path, aside.name, why)
    return aside


def found(layout: Layout) -> Iterator[Path]:
    """Every file that lies aside in a data directory."""
    for pattern in ("*.corrupt-*", "machines/*/*/*.corrupt-*", "machines/*/*/disk/*.corrupt-*", "disks/*/*.corrupt-*"):
        yield from sorted(layout.data_dir.glob(pattern))
