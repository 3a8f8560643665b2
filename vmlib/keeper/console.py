"""The guest's console: two FIFOs that are the VMM's standard streams, or the slave of a pty that the VMM made."""

import ctypes
import os
import re
import stat
import termios
from collections.abc import Callable

from vmlib.keeper.fds import READ_BYTES
from vmlib.keeper.loop import Loop

_INPUT = 1 << 16  # typed and not yet taken by the guest
_READS = 64  # reads in a row, so that a flood leaves time for all else
_LAST_ROUNDS = 256  # more than a pty can hold: a VMM that never stops cannot keep its keeper here
_SLAVE_MAJORS = range(136, 144)
_SYS_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


class Typing:
    """What was typed and waits for the guest. Bounded: what does not fit is lost; while it is full, nothing is read."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting = bytearray()
        self._fd = -1

    @property
    def full(self) -> bool:
        return bool(self._waiting)

    def onto(self, fd: int) -> None:
        """Where it goes from now on; -1 is nowhere."""
        self._fd = fd

    def add(self, data: bytes) -> None:
        self._waiting = (self._waiting + data)[:_INPUT]
        self._pump()

    def arm(self) -> None:
        if self._fd >= 0:
            self._loop.want_write(self._fd, self._pump if self._waiting else None)

    def _pump(self) -> None:
        try:
            while self._waiting and self._fd >= 0:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BlockingIOError:
            return
        except OSError:  # a pty without another side, which reading tells as well
            self._waiting.clear()


class PtyConsole:
    """The slave of the pty that is the guest's serial port. A guest that reboots gets a new one."""

    def __init__(self, loop: Loop, heard: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._loop = loop
        self._heard = heard
        self._lost = lost
        self._fd = -1
        self._other_fd = -1
        self.typing = Typing(loop)

    def open(self, path: str, *, uid: int, vmm_fd: int, shut_in: bool = False) -> None:
        """Take the pty at `path`, which must be one of `uid`'s own. Raises OSError, ValueError.

        The one before is read to its end first. `vmm_fd` is a pidfd of the VMM. One that is shut in has made it in
        its own root.
        """
        if re.fullmatch(r"/dev/pts/[0-9]{1,9}", path) is None:
            raise ValueError(f"{path[:64]!r} is no pty")
        where = f"/proc/{_pid_of(vmm_fd)}/root{path}" if shut_in else path
        fd = os.open(where, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            # Its name comes from the VMM: somebody else's terminal is not ours to read.
            if not stat.S_ISCHR(found.st_mode) or os.major(found.st_rdev) not in _SLAVE_MAJORS or found.st_uid != uid:
                raise ValueError(f"{path} is no pty of uid {uid}")
            _make_raw(fd)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._other_fd = fd, other_side(vmm_fd, int(path.rpartition("/")[2]))
        self.typing.onto(fd)
        self._loop.on_read(fd, self._on_readable, first=True)

    def read(self) -> bool:
        """Pass on what is there. True when there is more."""
        for _ in range(_READS):
            if self._fd < 0:
                return False
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:  # EIO: the VMM has let go of it
                data = b""
            if not data:
                self._forget()
                return False
            self._heard(data)
        return True

    def close(self) -> None:
        """Read all that is there, then let go."""
        for _ in range(_LAST_ROUNDS):
            if not self.read():
                break
        self._forget()

    def _on_readable(self) -> None:
        self.read()
        if self._fd < 0:
            self._lost()

    def _forget(self) -> None:
        if self._fd >= 0:
            self.typing.onto(-1)
            self._loop.forget(self._fd)
            for fd in (self._fd, self._other_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._other_fd = -1


def other_side(vmm_fd: int, index: int) -> int:
    """The VMM's own side of the pty with that number; -1 when it cannot be had, as without CAP_SYS_PTRACE.

    A pty forgets what was not read yet when its other side is closed for the last time: a guest's last words, if its
    VMM dies. So that is held as long as ours. Nothing is ever read from it.
    """
    try:
        pid = _pid_of(vmm_fd)
        for name in os.listdir(f"/proc/{pid}/fd"):
            if os.readlink(f"/proc/{pid}/fd/{name}").endswith("/ptmx"):
                with open(f"/proc/{pid}/fdinfo/{name}") as file:
                    if f"tty-index:\t{index}\n" in file.read():
                        return int(_libc.syscall(_SYS_PIDFD_GETFD, vmm_fd, int(name), 0))
    except (OSError, ValueError):
        pass
    return -1


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return int(next(line for line in file if line.startswith("Pid:")).split()[1])


def _make_raw(fd: int) -> None:
    """Bytes as they are, both ways, and no echo. Raises OSError."""
    try:
        mode = termios.tcgetattr(fd)
        mode[0] = mode[1] = mode[3] = 0
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8 | termios.CREAD
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    except termios.error as exc:  # which is none: a VMM that ends has closed the other side
        raise OSError(*exc.args) from exc
