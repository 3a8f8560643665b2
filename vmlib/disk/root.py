"""The root disk of a machine: an overlay or a copy, made from an image once and kept over the machine's restarts, or
the image itself.

Nothing we make names another file in its header. The VMM is given the image below an overlay as a block node of its
own, so a header that a guest has got hold of leads nowhere, not even when a tool of ours opens the file as root.
"""

import json
import os
from pathlib import Path

from vmlib.aside import set_aside
from vmlib.disk.copy import clone_or_copy, made_beside, told
from vmlib.disk.grow import grow_qcow2, make_empty, open_grown
from vmlib.disk.image import ImageInfo, check_image, check_source, in_words, whole_sectors
from vmlib.disk.intake import Intake
from vmlib.disk.overlay import forget_backing
from vmlib.errors import SpecError
from vmlib.files import make_directory, parse_json, read_own, write_atomic
from vmlib.hold import hold_image
from vmlib.remote import Source, local_source, open_source
from vmlib.resources import DiskAttachment, OpenFile
from vmlib.spec import DiskFormat, FileRef, Packing, RootDisk

_WRITE_BITS = 0o222
_IDENTITY = {"inode", "size_bytes", "mtime_ns"}


def prepare_root(root: RootDisk, into: Path, *, intake: Intake, qemu_img: str = "qemu-img") -> DiskAttachment:
    """Make the root disk in the directory `into`, or open the one that an earlier start of the same machine made there.

    The caller owns the descriptors, and sees to it that nobody else is at work on this machine: no other call and no
    VMM of an earlier start. Raises SpecError, NoCapacityError when the host's disk is full, HostError.
    """
    with told(f"disk directory {into}"):
        make_directory(into)
    match root.mode:
        case "direct":
            return _prepare_direct(root, intake.max_virtual_bytes, qemu_img)
        case "copy":
            return _prepare_copy(root, _copy_in(into, root), intake, qemu_img)
        case "overlay":
            return _prepare_overlay(root, _overlay_in(into), intake, qemu_img)


def wants_image(root: RootDisk, into: Path) -> bool:
    """Whether the next start needs the image that the job names; otherwise an earlier one has left all it needs."""
    match root.mode:
        case "direct":
            return False  # as it is
        case "copy":
            return not _copy_in(into, root).exists()
        case "overlay":
            return not (_overlay_in(into).exists() and _base_in(into, root).exists())


def _copy_in(into: Path, root: RootDisk) -> Path:
    return into / f"root-copy.{root.format}"


def _overlay_in(into: Path) -> Path:
    return into / "root-overlay.qcow2"


def _base_in(into: Path, root: RootDisk) -> Path:
    """This machine's name for an image in the cache."""
    return into / f"root-base.{root.format}"


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


def _prepare_overlay(root: RootDisk, path: Path, intake: Intake, qemu_img: str) -> DiskAttachment:
    max_virtual_bytes = intake.max_virtual_bytes
    image, image_path, identity = _open_below(root, path, intake)
    try:
        info = check_source(
            image, declared=root.format, key="image", path=root.image, max_virtual_bytes=max_virtual_bytes
        )
        size = wanted_size_bytes(info, root.size_bytes, max_virtual_bytes=max_virtual_bytes)
        with told(f"root disk {path}"):
            if path.exists() and _is_over_another(root, path, identity):
                set_aside(path, f"{_note_of(path)}, which says what it is over, is not readable")
            if path.exists():
                _stand_alone(path)
            else:
                # The note first: an overlay without it could not be told from one over another image.
                write_atomic(_note_of(path), json.dumps(identity).encode())
                make_empty(path, "qcow2", size, qemu_img=qemu_img)
            fd = open_grown(
                path, "qcow2", size, what="root disk", max_virtual_bytes=max_virtual_bytes, qemu_img=qemu_img
            )
    except BaseException:
        image.close()
        raise
    return DiskAttachment(
        name="root",
        file=OpenFile(fd=fd, path=path),
        format="qcow2",
        backing=OpenFile(fd=image.fd, path=image_path, remote=image.remote),
        backing_format=root.format,
    )


def _open_below(root: RootDisk, overlay: Path, intake: Intake) -> tuple[Source, Path, dict[str, int | str]]:
    """The image below an overlay, its name, and what tells it from another one."""
    if not (root.cached or root.packed):
        image = open_source(root.image, key="image", hold="shared")
        return image, root.image.root / root.image.relative, _identity(image)
    base = _base_in(overlay.parent, root)
    if wants_image(root, overlay.parent):
        name = intake.bring(root.image, root.format, root.packed, base, key="image")
    else:
        # Nobody writes to it, so the machine stands on its own feet, whatever has become of the job's file.
        name = str(_noted(overlay).get("cached", ""))
    return local_source(os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)), base, {"cached": name}


def _prepare_copy(root: RootDisk, path: Path, intake: Intake, qemu_img: str) -> DiskAttachment:
    with told(f"root disk {path}"):
        fd = open_copy(
            root.image,
            path,
            format_=root.format,
            packed=root.packed,
            size_bytes=root.size_bytes,
            key="image",
            size_key="root_size",
            intake=intake,
            qemu_img=qemu_img,
        )
    return DiskAttachment(name="root", file=OpenFile(fd=fd, path=path), format=root.format)


def _prepare_direct(root: RootDisk, max_virtual_bytes: int, qemu_img: str) -> DiskAttachment:
    what = f"image = {str(root.image)!r}"
    image = open_source(root.image, key="image", write=True, hold="alone")
    try:
        # We may write to everything. Whether jobs may is for the file's owner to say.
        if not image.mode & _WRITE_BITS:
            raise SpecError(f"{what}: nobody may write to it (mode {image.mode & 0o777:04o})")
        info = check_source(
            image, declared=root.format, key="image", path=root.image, max_virtual_bytes=max_virtual_bytes
        )
        size = wanted_size_bytes(info, root.size_bytes, max_virtual_bytes=max_virtual_bytes)
        if size > info.virtual_size_bytes:
            with told(what):
                if root.format == "raw":
                    image.resize(size, root.image, key="image")
                elif image.remote:
                    raise SpecError(
                        f"root_size = {in_words(size)}: a qcow2 image on a file server is not grown where it lies,"
                        f" expected at most its own {in_words(info.virtual_size_bytes)}"
                    )
                else:
                    grow_qcow2(Path(f"/proc/self/fd/{image.fd}"), size, qemu_img, pass_fds=(image.fd,))
    except BaseException:
        image.close()
        raise
    file = OpenFile(fd=image.fd, path=root.image.root / root.image.relative, remote=image.remote)
    return DiskAttachment(name="root", file=file, format=root.format)


def open_copy(
    source: FileRef,
    path: Path,
    *,
    format_: DiskFormat,
    packed: Packing,
    size_bytes: int | None,
    key: str,
    size_key: str,
    intake: Intake,
    qemu_img: str = "qemu-img",
) -> int:
    """Open the copy of an image at `path` for writing, and make it first when there is none.

    A copy that is there already stands for itself: its image may have changed or gone since. The caller owns the
    descriptor. Raises SpecError, HostError, OSError; nothing partial stays.
    """
    max_virtual_bytes = intake.max_virtual_bytes
    if not path.exists():
        image_fd = intake.open(source, format_, packed, path.with_suffix(".unpacked"), key=key)
        try:
            if not packed:
                hold_image(image_fd, alone=False, what=f"{key} = {str(source)!r}")
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


def _stand_alone(overlay: Path) -> None:
    fd = os.open(overlay, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        forget_backing(fd)
    finally:
        os.close(fd)


def _note_of(path: Path) -> Path:
    return path.with_suffix(".image.json")


def _identity(image: Source) -> dict[str, int | str]:
    """What changes with the content of a file. No device number: it may differ after a reboot of the host."""
    return {"inode": image.inode, "size_bytes": image.size_bytes, "mtime_ns": image.mtime_ns}


def _noted(path: Path) -> dict[str, object]:
    """Nothing when there is no note; one that is damaged is set aside."""
    note = _note_of(path)
    try:
        noted = parse_json(read_own(note))
        if not isinstance(noted, dict) or not ("cached" in noted or noted.keys() >= _IDENTITY):
            raise ValueError("says nothing of an image")
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        set_aside(note, str(exc))
        return {}
    return noted


def _is_over_another(root: RootDisk, path: Path, identity: dict[str, int | str]) -> bool:
    """True when nobody can say any more what an overlay is over. Raises SpecError when it is over another image."""
    noted = _noted(path)
    if not noted and "cached" not in identity:
        return True
    if not noted:  # over this machine's own name for its image, which nobody writes to
        write_atomic(_note_of(path), json.dumps(identity).encode())
    elif noted != identity:
        raise SpecError(
            f"image = {str(root.image)!r}: changed since this machine's root disk was made over it,"
            " expected the same file",
            hint='an image that changes while the machine exists needs root_mode = "copy"',
        )
    return False
