"""The root disk of a machine, made from an image once and kept over the machine's restarts: an overlay or a copy.

Nothing we make names another file in its header. The VMM is given the image below an overlay as a block node of its
own, so a header that a guest has got hold of leads nowhere, not even when a tool of ours opens the file as root.
"""

import json
import os
from pathlib import Path

from vmlib.disk.copy import clone_or_copy, made_beside, told
from vmlib.disk.grow import grow_qcow2, make_empty, open_grown
from vmlib.disk.image import ImageInfo, check_image, in_words, whole_sectors
from vmlib.errors import SpecError
from vmlib.files import open_ref, write_atomic
from vmlib.resources import DiskAttachment, OpenFile
from vmlib.spec import DiskFormat, FileRef, RootDisk


def prepare_root(root: RootDisk, into: Path, *, max_virtual_bytes: int, qemu_img: str = "qemu-img") -> DiskAttachment:
    """Make the root disk in the directory `into`, or open the one that an earlier start of the same machine made there.

    The caller owns the descriptors, and sees to it that nobody else is at work on this machine: no other call and no
    VMM of an earlier start. Raises SpecError, NoCapacityError when the host's disk is full, HostError.
    """
    with told(f"disk directory {into}"):
        into.mkdir(mode=0o700, exist_ok=True)
    if root.mode == "copy":
        return _prepare_copy(root, into / f"root-copy.{root.format}", max_virtual_bytes, qemu_img)
    return _prepare_overlay(root, into / "root-overlay.qcow2", max_virtual_bytes, qemu_img)


def wanted_size_bytes(
    info: ImageInfo, size_bytes: int | None, *, max_virtual_bytes: int, key: str = "root_size"
) -> int:
    """The size that the guest shall see. Raises SpecError when the job asks for less than the image has."""
    if size_bytes is None:
        return info.virtual_size_bytes
    if size_bytes < info.virtual_size_bytes:
        raise SpecError(
            f"{key} = {in_words(size_bytes)}: smaller than the image, which has"
            f" {in_words(info.virtual_size_bytes)}; a disk grows and never shrinks"
        )
    size = whole_sectors(size_bytes)
    if size > max_virtual_bytes:
        raise SpecError(f"{key} = {in_words(size)}: expected at most {in_words(max_virtual_bytes)}")
    return size


def _prepare_overlay(root: RootDisk, path: Path, max_virtual_bytes: int, qemu_img: str) -> DiskAttachment:
    image_fd = open_ref(root.image, key="image")
    try:
        info = check_image(
            image_fd, declared=root.format, key="image", path=root.image, max_virtual_bytes=max_virtual_bytes
        )
        size = wanted_size_bytes(info, root.size_bytes, max_virtual_bytes=max_virtual_bytes)
        with told(f"root disk {path}"):
            if path.exists():
                _expect_same_image(root, path, image_fd)
            else:
                # The note first: an overlay without it could not be told from one over another image.
                write_atomic(_note_of(path), json.dumps(_identity(image_fd)).encode())
                make_empty(path, "qcow2", size, qemu_img=qemu_img)
            fd = open_grown(
                path, "qcow2", size, what="root disk", max_virtual_bytes=max_virtual_bytes, qemu_img=qemu_img
            )
    except BaseException:
        os.close(image_fd)
        raise
    return DiskAttachment(
        name="root",
        file=OpenFile(fd=fd, path=path),
        format="qcow2",
        backing=OpenFile(fd=image_fd, path=root.image.root / root.image.relative),
        backing_format=root.format,
    )


def _prepare_copy(root: RootDisk, path: Path, max_virtual_bytes: int, qemu_img: str) -> DiskAttachment:
    with told(f"root disk {path}"):
        fd = open_copy(
            root.image,
            path,
            format_=root.format,
            size_bytes=root.size_bytes,
            key="image",
            size_key="root_size",
            max_virtual_bytes=max_virtual_bytes,
            qemu_img=qemu_img,
        )
    return DiskAttachment(name="root", file=OpenFile(fd=fd, path=path), format=root.format)


def open_copy(
    source: FileRef,
    path: Path,
    *,
    format_: DiskFormat,
    size_bytes: int | None,
    key: str,
    size_key: str,
    max_virtual_bytes: int,
    qemu_img: str = "qemu-img",
) -> int:
    """Open the copy of an image at `path` for writing, and make it first when there is none.

    A copy that is there already stands for itself: its image may have changed or gone since. The caller owns the
    descriptor. Raises SpecError, HostError, OSError; nothing partial stays.
    """
    if not path.exists():
        image_fd = open_ref(source, key=key)
        try:
            # Before the copy, because that may take long, and of the copy, because the image may change meanwhile.
            info = check_image(image_fd, declared=format_, key=key, path=source, max_virtual_bytes=max_virtual_bytes)
            wanted_size_bytes(info, size_bytes, max_virtual_bytes=max_virtual_bytes, key=size_key)
            with made_beside(path) as (fd, beside):
                clone_or_copy(image_fd, fd)
                info = check_image(fd, declared=format_, key=key, path=source, max_virtual_bytes=max_virtual_bytes)
                size = wanted_size_bytes(info, size_bytes, max_virtual_bytes=max_virtual_bytes, key=size_key)
                if format_ == "raw":
                    os.ftruncate(fd, size)
                elif size > info.virtual_size_bytes:
                    grow_qcow2(beside, size, qemu_img)
        finally:
            os.close(image_fd)
    return open_grown(path, format_, size_bytes or 0, what=key, max_virtual_bytes=max_virtual_bytes, qemu_img=qemu_img)


def _note_of(path: Path) -> Path:
    return path.with_suffix(".image.json")


def _identity(image_fd: int) -> dict[str, int]:
    """What changes with the content of a file. No device number: it may differ after a reboot of the host."""
    status = os.fstat(image_fd)
    return {"inode": status.st_ino, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _expect_same_image(root: RootDisk, path: Path, image_fd: int) -> None:
    try:
        noted = json.loads(_note_of(path).read_bytes())
    except (FileNotFoundError, ValueError):
        noted = None
    if noted != _identity(image_fd):
        raise SpecError(
            f"image = {str(root.image)!r}: changed since this machine's root disk was made over it,"
            " expected the same file",
            hint='an image that changes while the machine exists needs root_mode = "copy"',
        )
