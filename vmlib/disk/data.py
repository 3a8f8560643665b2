"""The further disks of a machine, each as an open file."""

import os
from pathlib import Path

from vmlib.disk.copy import told
from vmlib.disk.grow import make_empty, open_grown
from vmlib.disk.image import check_source, in_words, whole_sectors
from vmlib.disk.intake import Intake
from vmlib.disk.persistent import Holder, PersistentDisks
from vmlib.disk.root import open_copy
from vmlib.errors import SpecError
from vmlib.remote import local_source, open_source
from vmlib.resources import DiskAttachment, OpenFile
from vmlib.spec import DiskSpec


def prepare_disk(
    disk: DiskSpec, index: int, into: Path, *, persistent: PersistentDisks, holder: Holder, intake: Intake
) -> tuple[DiskAttachment, str]:
    """Make disk number `index` of a machine in the directory `into`, or open what an earlier start made there.

    Returns it, whose descriptor is the caller's, and what to tell of it ("" = nothing). A persistent disk is the
    holder's until it is released. Raises SpecError, NoCapacityError, HostError.
    """
    what = f"disk[{index}]"
    max_virtual_bytes = intake.max_virtual_bytes
    if disk.size_bytes is not None and whole_sectors(disk.size_bytes) > max_virtual_bytes:
        raise SpecError(f"{what}.size = {in_words(disk.size_bytes)}: expected at most {in_words(max_virtual_bytes)}")
    told_of = ""
    if disk.persistent is not None:
        assert disk.size_bytes is not None
        taken = persistent.take(
            disk.persistent,
            format=disk.format,
            size_bytes=disk.size_bytes,
            max_virtual_bytes=max_virtual_bytes,
            holder=holder,
            what=what,
        )
        file = taken.file
        if taken.created:
            told_of = f"disk created: persistent disk {disk.name!r} is new and empty, {in_words(disk.size_bytes)}"
    elif disk.readonly:
        file = _open_readonly(disk, what, _base_in(into, disk), intake)
    else:
        file = _open_own(disk, what, _own_in(into, disk), intake)
    attachment = DiskAttachment(
        name=f"data{index}",
        file=file,
        format=disk.format,
        readonly=disk.readonly,
        serial=disk.serial,
        rate_bytes=disk.rate_bytes,
    )
    return attachment, told_of


def wants_source(disk: DiskSpec, into: Path) -> bool:
    """Whether the next start needs the file that the job names, and it has to be brought."""
    if disk.readonly:
        return not _base_in(into, disk).exists()
    return disk.source is not None and not _own_in(into, disk).exists()


def _own_in(into: Path, disk: DiskSpec) -> Path:
    return into / f"data-{disk.name}.{disk.format}"


def _base_in(into: Path, disk: DiskSpec) -> Path:
    """This machine's name for an image in the cache."""
    return into / f"data-{disk.name}.base.{disk.format}"


def _open_readonly(disk: DiskSpec, what: str, base: Path, intake: Intake) -> OpenFile:
    assert disk.source is not None
    key = f"{what}.source"
    if disk.cached or disk.packed:
        if not base.exists():
            intake.bring(disk.source, disk.format, disk.packed, base, key=key)
        source, path = local_source(os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)), base
    else:
        source, path = open_source(disk.source, key=key, hold="shared"), disk.source.root / disk.source.relative
    limit = intake.max_virtual_bytes
    try:
        check_source(source, declared=disk.format, key=key, path=disk.source, max_virtual_bytes=limit)
    except BaseException:
        source.close()
        raise
    return OpenFile(fd=source.fd, path=path, remote=source.remote)


def _open_own(disk: DiskSpec, what: str, path: Path, intake: Intake) -> OpenFile:
    with told(f"{what} {path}"):
        if disk.source is not None:
            fd = open_copy(
                disk.source,
                path,
                format_=disk.format,
                packed=disk.packed,
                size_bytes=disk.size_bytes,
                key=f"{what}.source",
                size_key=f"{what}.size",
                intake=intake,
            )
        else:
            assert disk.size_bytes is not None
            if not path.exists():
                make_empty(path, disk.format, disk.size_bytes)
            fd = open_grown(
                path,
                disk.format,
                disk.size_bytes,
                what=what,
                size_key=f"{what}.size",
                max_virtual_bytes=intake.max_virtual_bytes,
            )
    return OpenFile(fd=fd, path=path)
