"""The version of a data directory. One of a later version is a later release's: it is not read and not touched."""

from vmlib import files
from vmlib.aside import set_aside
from vmlib.errors import HostError
from vmlib.paths import Layout

VERSION = 1


class OtherVersionError(HostError):
    """The data directory is not ours to touch."""


def expect_ours(layout: Layout) -> None:
    """Raises OtherVersionError. A file that is damaged says nothing: every record has a version of its own."""
    found = _read(layout)
    if found is not None and found != VERSION:
        raise OtherVersionError(
            f"{layout.version} says {found}, expected {VERSION}",
            hint="the data directory is of another version of chv: use that, or another data_dir",
        )


def claim(layout: Layout) -> None:
    """Write down that it is ours, before the first thing is made in it. Raises OtherVersionError."""
    expect_ours(layout)
    if _read(layout) is not None:
        return
    with files.locked(layout.version_lock):
        for torn in layout.data_dir.glob(f".{layout.version.name}.*"):  # by somebody who was killed here
            torn.unlink(missing_ok=True)
        if _read(layout) is None:
            if layout.version.exists():
                set_aside(layout.version, "no number")
            files.write_atomic(layout.version, f"{VERSION}\n".encode())
    expect_ours(layout)


def _read(layout: Layout) -> int | None:
    """None when there is none, or none that can be read; cut short, a number would be another one."""
    try:
        data = files.read_own(layout.version)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return int(data) if data.endswith(b"\n") and data.strip().isdigit() and len(data) < 10 else None
