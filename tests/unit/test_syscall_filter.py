"""The filter of system calls, run as the kernel would: one instruction after the other."""

import errno
import socket
import struct

import pytest

from vmlib import syscall_filter

X86_64, I386 = 0xC000003E, 0x40000003
PID = 4711
ALLOW = 0x7FFF0000

READ, KILL, CLONE, CLONE3, EXECVE, PTRACE, UNSHARE, PRLIMIT, SOCKET = 0, 62, 56, 435, 59, 101, 272, 302, 41
A_THREAD = 0x3D0F00  # as libraries make them
NEW_USER = 0x10000000


def verdict(number: int, first: int = 0, second: int = 0, *, arch: int = X86_64, routes: bool = False) -> int:
    """0 when it is let through, else the errno that the caller gets."""
    lines = list(struct.iter_unpack("<HBBI", syscall_filter.program(PID, routes=routes)))
    data = struct.pack("<IIQ6Q", number, arch, 0, first, second, 0, 0, 0, 0)
    accumulator = at = 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += yes if accumulator == value else no
            case 0x35:
                at += yes if accumulator >= value else no
            case 0x45:
                at += yes if accumulator & value else no
            case 0x06:
                return 0 if value == ALLOW else value & 0xFFFF
            case _:
                raise AssertionError(f"no code {code:#x} in a filter")


@pytest.mark.parametrize("number", [READ, KILL, EXECVE, 9, 16, 186, 202, 317, 425, 444, 446])
def test_what_a_vmm_does_is_let_through(number: int) -> None:
    assert verdict(number) == verdict(number, PID) == verdict(number, 1) == 0


def test_it_may_have_threads_and_children_but_no_namespace() -> None:
    assert verdict(CLONE, A_THREAD) == verdict(CLONE, 17) == 0
    for new in (NEW_USER, 0x20000, 0x20000000, 0x40000000, 0x02000000, 0x04000000, 0x08000000):
        assert verdict(CLONE, new | 17) == errno.EPERM
    assert verdict(UNSHARE, NEW_USER) == errno.EPERM
    assert verdict(CLONE3) == errno.ENOSYS  # not refused: libraries then use the other one


def test_other_processes_are_none_of_its_business() -> None:
    assert verdict(PTRACE) == errno.EPERM
    assert verdict(PRLIMIT, 0) == verdict(PRLIMIT, PID) == 0
    assert verdict(PRLIMIT, PID + 1) == errno.EPERM


def test_only_a_router_connects_to_others() -> None:
    nonblocking = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    assert verdict(SOCKET, socket.AF_UNIX, socket.SOCK_STREAM | nonblocking) == 0
    assert verdict(SOCKET, socket.AF_INET, socket.SOCK_DGRAM | nonblocking) == 0
    for family, kind in (
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_RAW),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_PACKET, socket.SOCK_RAW),
        (socket.AF_NETLINK, socket.SOCK_RAW),
        (socket.AF_VSOCK, socket.SOCK_STREAM),
    ):
        assert verdict(SOCKET, family, kind | nonblocking) == errno.EPERM
        assert verdict(SOCKET, family, kind, routes=True) == 0


def test_the_other_ways_into_the_kernel_are_closed() -> None:
    assert verdict(READ, arch=I386) == errno.EPERM
    assert verdict(0x40000000 | READ) == errno.EPERM


def test_every_number_is_named_once() -> None:
    numbers = [*syscall_filter._DENIED.values(), *syscall_filter._ITS_OWN.values(), CLONE, CLONE3]
    assert len(set(numbers)) == len(numbers)
    assert all(verdict(number, PID + 1) for number in numbers[:-2])
