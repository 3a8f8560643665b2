"""Disks of ours: made empty, opened for writing, grown, never shrunk."""

import os
from collections.abc import Sequence
from pathlib import Path

from vmlib.disk.copy import made_beside
from vmlib.disk.image import check_image, in_words, whole_sectors
from vmlib.errors import SpecError
from vmlib.process import run_tool
from vmlib.spec import DiskFormat

_TOOL_TIMEOUT_S = 60.0  # creating and growing touch metadata only


def make_empty(path: Path, format_: DiskFormat, size_bytes: int, *, qemu_img: str = "qemu-img") -> None:
    """A new disk without content, of which the host's disk holds next to nothing yet. Raises OSError, HostError."""
    with made_beside(path) as (fd, beside):
        if format_ == "raw":
            os.ftruncate(fd, whole_sectors(size_bytes))
        else:
            size = str(whole_sectors(size_bytes))
            run_tool([qemu_img, "create", "-q", "-f", "qcow2", str(beside), size], timeout_s=_TOOL_TIMEOUT_S)


def open_grown(
    path: Path,
    format_: DiskFormat,
    size_bytes: int,
    *,
    what: str,
    size_key: str = "",
    max_virtual_bytes: int,
    qemu_img: str = "qemu-img",
) -> int:
    """Open a disk of ours for writing, after it was made at least `size_bytes` large; the caller owns the descriptor.

    `what` is the disk in words. With a `size_key` a disk that is larger already is refused (SpecError), because the
    job then says something else than what is so.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = whole_sectors(size_bytes)
        if format_ == "raw":
            # No look at the content: it is the guest's, and it is never opened as anything but raw.
            now = os.fstat(fd).st_size
        else:
            # A VMM has had this file open for writing, so its header is checked again before a tool reads it.
            now = check_image(
                fd, declared="qcow2", key=what, path=path, max_virtual_bytes=max_virtual_bytes
            ).virtual_size_bytes
        if size_key and now > size:
            raise SpecError(
                f"{size_key} = {in_words(size)}: smaller than the disk, which has {in_words(now)}; a disk grows and"
                " never shrinks"
            )
        if now < size and format_ == "raw":
            os.ftruncate(fd, size)
        elif now < size:
            grow_qcow2(path, size, qemu_img)
    except BaseException:
        os.close(fd)
        raise
    return fd


def grow_qcow2(path: Path, size_bytes: int, qemu_img: str = "qemu-img", *, pass_fds: Sequence[int] = ()) -> None:
    argv = [qemu_img, "resize", "-q", "-f", "qcow2", str(path), str(size_bytes)]
    run_tool(argv, timeout_s=_TOOL_TIMEOUT_S, pass_fds=pass_fds)
