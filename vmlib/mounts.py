"""The system calls that make mounts and namespaces, as functions that raise OSError. Standard library only."""

import ctypes
import errno
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_REC = 0x4000
MS_SLAVE = 1 << 19

ATTR_RDONLY = 1
ATTR_NOSUID = 2
ATTR_NODEV = 4
ATTR_NOEXEC = 8

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MNT_DETACH = 2

libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def expect(done: int, what: str) -> int:
    """The result of a call into libc, unless that says that it failed."""
    if done < 0:
        code = ctypes.get_errno()
        needs = " (a later kernel is needed)" if code == errno.ENOSYS else ""
        raise OSError(code, os.strerror(code) + needs, what)
    return done


def clone_tree(path: str, *, below: bool = True, fd: int | None = None) -> int:
    """A copy of what is mounted at `path`, or at the open directory `fd`: a descriptor of it, mounted nowhere yet.

    With `below`, what is mounted beneath it comes along.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if below else 0)
    where = (_AT_FDCWD, os.fsencode(path)) if fd is None else (fd, b"")
    if fd is not None:
        flags |= _AT_EMPTY_PATH
    return expect(int(libc.syscall(_SYS_OPEN_TREE, *where, ctypes.c_uint(flags))), path)


def set_attributes(tree: int, attributes: int, what: str) -> None:
    """Of a whole tree. What the host unmounts goes away there, too."""
    wanted = _MountAttr(attributes, 0, MS_SLAVE, 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE)
    size = ctypes.sizeof(wanted)
    expect(int(libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(wanted), size)), what)


def attach(tree: int, at: str) -> None:
    """Mount a copy at `at`, and close its descriptor."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    expect(int(libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(at), flags)), at)
    os.close(tree)


def mount(source: str, at: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = (None if word is None else os.fsencode(word) for word in (source, at, kind))
    data = None if options is None else options.encode()
    expect(int(libc.mount(*words, ctypes.c_ulong(flags), data)), at)


def leave_for_own(namespaces: int) -> None:
    """Enter new namespaces. Mounts in a new one do not show outside; what the host unmounts goes away there, too."""
    expect(int(libc.unshare(namespaces)), "unshare")
    if namespaces & CLONE_NEWNS:
        mount("none", "/", None, MS_REC | MS_SLAVE)


def make_root() -> None:
    """Make the current directory the root, and let go of the old one with all that is mounted there."""
    expect(int(libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b".")), "pivot_root")
    expect(int(libc.umount2(b".", _MNT_DETACH)), "umount")
    os.chdir("/")
