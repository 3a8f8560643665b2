"""What a VMM or a helper may never ask of the kernel, whatever its own filter says: none of it is a VMM's business.

Most of all: to look into or steer other processes of its user, to make namespaces, in which it would have privileges
of a kind, and to connect to what listens on the host. Standard library only.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from vmlib.mounts import expect, libc

_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000

_DENIED = {
    # other processes
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440, "kcmp": 312,
    "pidfd_getfd": 438, "migrate_pages": 256, "move_pages": 279, "perf_event_open": 298,
    # namespaces, mounts, files by handle
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467, "quotactl": 179, "quotactl_fd": 443, "open_by_handle_at": 304, "fanotify_init": 300,
    # the kernel and the machine
    "bpf": 321, "add_key": 248, "request_key": 249, "keyctl": 250, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "swapon": 167, "swapoff": 168,
    "acct": 163, "iopl": 172, "ioperm": 173, "syslog": 103, "settimeofday": 164, "clock_settime": 227,
    "sethostname": 170, "setdomainname": 171, "personality": 135, "vhangup": 153, "lookup_dcookie": 212,
    "nfsservctl": 180,
}  # fmt: skip
# Of itself only: the first argument is 0, or its own pid.
_ITS_OWN = {
    "prlimit64": 302, "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314,
}  # fmt: skip
_CLONE = 56
_CLONE3 = 435  # takes its flags from memory, where no filter looks; without it libraries use clone
_NEW_NAMESPACES = 0x7E020000

_SOCKET = 41
_AF_UNIX, _AF_INET = 1, 2
_SOCK_DGRAM = 2  # for questions about a link, which Cloud Hypervisor has
_KIND_OF_SOCKET = 0xF

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000  # with an errno

_SYS_SECCOMP = 317
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4  # a filter shall not slow the whole process down, as older kernels have it

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_VERSION = 1
_MAKE_NODES = 1 << 6 | 1 << 11
_NETWORK_ABI = 4  # Linux 6.7
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ABI = 6  # Linux 6.12
_SCOPE_SOCKETS_AND_SIGNALS = 3


def program(pid: int, *, routes: bool) -> bytes:
    """The filter of a process with that id on x86-64. One that `routes` opens connections, for its guest."""
    return b"".join(struct.pack("<HBBI", *line) for line in _lines(pid, routes=routes))


def _lines(pid: int, *, routes: bool) -> Iterator[tuple[int, int, int, int]]:
    """Code, how many lines to skip when it holds and when not, and a value."""
    refuse = _RETURN, 0, 0, _REFUSE | errno.EPERM
    allow = _RETURN, 0, 0, _ALLOW
    yield _LOAD, 0, 0, _ARCH_AT
    yield _EQUAL, 1, 0, _ARCH_X86_64
    yield refuse
    yield _LOAD, 0, 0, _NUMBER_AT
    yield _AT_LEAST, 0, 1, _X32_BIT
    yield refuse
    yield _EQUAL, 0, 1, _CLONE3
    yield _RETURN, 0, 0, _REFUSE | errno.ENOSYS
    yield _EQUAL, 0, 4, _CLONE
    yield _LOAD, 0, 0, _FIRST_ARGUMENT_AT
    yield _ANY_BIT, 0, 1, _NEW_NAMESPACES
    yield refuse
    yield allow
    if not routes:
        yield _EQUAL, 0, 8, _SOCKET
        yield _LOAD, 0, 0, _FIRST_ARGUMENT_AT
        yield _EQUAL, 4, 0, _AF_UNIX
        yield _EQUAL, 0, 4, _AF_INET
        yield _LOAD, 0, 0, _SECOND_ARGUMENT_AT
        yield _AND, 0, 0, _KIND_OF_SOCKET
        yield _EQUAL, 0, 1, _SOCK_DGRAM
        yield allow
        yield refuse
    for number in _DENIED.values():
        yield _EQUAL, 0, 1, number
        yield refuse
    for number in _ITS_OWN.values():
        yield _EQUAL, 0, 5, number
        yield _LOAD, 0, 0, _FIRST_ARGUMENT_AT
        yield _EQUAL, 1, 0, 0
        yield _EQUAL, 0, 1, pid
        yield allow
        yield refuse
    yield allow


def install(*, routes: bool) -> None:
    """Filter this process from now on, over an exec, too. It must have given up new privileges. Raises OSError."""
    _leave_others_alone(routes=routes)
    if os.uname().machine != "x86_64":
        return
    code = program(os.getpid(), routes=routes)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))

    wanted = Program(len(code) // 8, code)
    expect(int(libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.byref(wanted))), "seccomp")


def _leave_others_alone(*, routes: bool) -> None:
    """Where the kernel has Landlock: no way to trace others, from 6.7 on no TCP by io_uring, where no filter looks,
    and from 6.12 on no way to signal others either.
    """
    abi = int(libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))
    if abi < 1:
        return
    if abi >= _SCOPE_ABI:
        rules = struct.pack("<QQQ", 0, 0 if routes else _BIND_AND_CONNECT_TCP, _SCOPE_SOCKETS_AND_SIGNALS)
    elif abi >= _NETWORK_ABI:
        rules = struct.pack("<QQ", _MAKE_NODES, 0 if routes else _BIND_AND_CONNECT_TCP)
    else:
        rules = struct.pack("<Q", _MAKE_NODES)  # an empty set is refused
    fd = expect(int(libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)), "landlock")
    try:
        expect(int(libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, fd, 0)), "landlock")
    finally:
        os.close(fd)
