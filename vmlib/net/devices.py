"""Character devices of links: found by number in the right network namespace, opened without udev, proven by ioctl.

Everything goes through filesystems that are mounted nowhere: /sys may show another namespace, /dev/tapN may be another
machine's, and a private directory may lie where devices do not open.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from vmlib.errors import HostError

_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_SIOCGIFHWADDR = 0x8927
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # since Linux 5.2, the same on all architectures
_CLOEXEC = 1  # of fsopen and fsmount alike
_FSCONFIG_CMD_CREATE = 6

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
TUN = Path("/dev/net/tun")
VHOST = Path("/dev/vhost-net")


def open_macvtap(name: str, index: int, *, mac: str, queues: int) -> list[int]:
    """One descriptor for each queue of the macvtap with that name, index and MAC in this thread's namespace."""
    fds: list[int] = []
    with _closed_on_error(fds), _sysfs() as sysfs, _detached("tmpfs") as private:
        with open(os.open(f"class/net/{name}/tap{index}/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=sysfs)) as file:
            major, _, minor = file.read().strip().partition(":")
        os.mknod("tap", 0o600 | stat.S_IFCHR, os.makedev(int(major), int(minor)), dir_fd=private)
        for _ in range(queues):
            fds.append(os.open("tap", _OPEN, dir_fd=private))
            if queues > 1:  # otherwise the VMM may not switch a queue off
                _set_interface(fds[-1], name, _FLAGS | _IFF_MULTI_QUEUE)
            _prove(fds[-1], name, mac)
    return fds


def open_tap(name: str, *, queues: int) -> list[int]:
    """Make a tap of that name and give one descriptor for each queue; it is gone once all of them are closed.

    Raises FileExistsError when there is a link of that name.
    """
    flags = _FLAGS | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    with _closed_on_error(fds):
        for number in range(queues):
            fds.append(os.open(TUN, _OPEN))
            try:
                _set_interface(fds[-1], name, flags | (0 if number else _IFF_TUN_EXCL))
            except OSError as exc:
                if exc.errno == errno.EBUSY:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from exc
                raise
    return fds


def open_vhost(count: int) -> list[int]:
    """Descriptors of the kernel's vhost-net; none when this host has none for us."""
    fds: list[int] = []
    try:
        with _closed_on_error(fds):
            fds.extend(os.open(VHOST, _OPEN) for _ in range(count))
    except OSError:
        return []
    return fds


def aliases() -> dict[str, str]:
    """Name and alias of every link in this thread's namespace that has one; cheaper than asking netlink."""
    found = {}
    with _sysfs() as sysfs:
        directory = os.open("class/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=sysfs)
        try:
            for name in os.listdir(directory):
                with contextlib.suppress(OSError):  # gone meanwhile
                    fd = os.open(f"{name}/ifalias", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
                    with open(fd, errors="replace") as file:
                        if alias := file.read().rstrip("\n"):
                            found[name] = alias
        finally:
            os.close(directory)
    return found


def _set_interface(fd: int, name: str, flags: int) -> None:
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))


def _prove(fd: int, name: str, mac: str) -> None:
    """Raise HostError unless the descriptor is of the link with that name and MAC."""
    request = bytearray(40)
    fcntl.ioctl(fd, _TUNGETIFF, request)
    got_name = request[:16].rstrip(b"\0").decode(errors="replace")
    request = bytearray(40)
    fcntl.ioctl(fd, _SIOCGIFHWADDR, request)
    got_mac = request[18:24].hex(":")
    if (got_name, got_mac) != (name, mac):
        raise HostError(f"the device of link {name} ({mac}) is that of {got_name} ({got_mac})")


@contextlib.contextmanager
def _closed_on_error(fds: list[int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        while fds:
            os.close(fds.pop())
        raise


@contextlib.contextmanager
def _sysfs() -> Iterator[int]:
    """The sysfs of this thread's namespace; the usual one where no other is to be had."""
    with contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(_detached("sysfs"))
        except OSError:
            root = os.open("/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, root)
        yield root


@contextlib.contextmanager
def _detached(kind: str) -> Iterator[int]:
    """A fresh filesystem of that kind as a directory that nobody else can see; of sysfs, this thread's namespace."""
    context = _call("fsopen", _FSOPEN, kind.encode(), _CLOEXEC)
    try:
        _call("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        root = _call("fsmount", _FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def _call(name: str, number: int, *args: object) -> int:
    result = _libc().syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return int(result)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
