"""A command in the guest, with pipes or a terminal, under a session's credit. Runs in guests as old as Python 3.6."""

import fcntl
import os
import pwd
import select
import signal
import struct
import subprocess
import termios
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from vmlib.guest.wire import MAX_PAYLOAD, STDIN, WINDOW

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_READ = MAX_PAYLOAD - 1
_TERM_GRACE_S = 5.0  # a cancelled command has that to end by itself
# What a command has left behind may hold its output open for ever, or write for ever. Its own is in the pipe by then.
_QUIET_S = 0.5
_AFTER_END = 1 << 20  # bytes; no pipe holds more

Write = Callable[[int, int, bytes], None]  # stream, channel, data; none is the channel's end


class RefusedError(Exception):
    """A command that cannot be run: `code` as a shell would give it, and a sentence."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def account(user: str) -> Tuple[str, int, int, str, str]:
    """Name, uid, gid, home and shell of a user by name or number; "" is root. Raises RefusedError."""
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user or "root")
    except (KeyError, OverflowError, ValueError):  # the last: a NUL byte, a number too long
        if user:
            raise RefusedError(126, "user {!r}: the guest has none of that name".format(user[:64]))
        return "root", 0, 0, "/root", "/bin/sh"
    return found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, found.pw_shell or "/bin/sh"


class Run:
    """One command. Whoever owns it calls the `on_…` methods when descriptors are ready, and `tend` now and then."""

    def __init__(self, stream: int, wanted: Dict[str, Any], environment: Dict[str, str], write: Write) -> None:
        """Start it. Raises RefusedError."""
        self.stream = stream
        self.credit = WINDOW  # bytes that we may still write
        self.consumed = 0  # bytes of stdin that the command has taken since this was last told
        self.outputs: Dict[int, int] = {}
        self.stdin = -1
        self.deadline: Optional[float] = None
        self._late = False
        self._write = write
        self._typed = bytearray()
        self._stdin_ends = False
        self._kill_at: Optional[float] = None
        self._quiet_since: Optional[float] = None
        self._left = _AFTER_END  # bytes that are still read once the command has ended
        self._tty = bool(wanted.get("tty"))
        argv = wanted.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv) or not argv[0]:
            raise RefusedError(126, "no command")
        self._start(argv, wanted, environment)

    def _start(self, argv: List[str], wanted: Dict[str, Any], environment: Dict[str, str]) -> None:
        name, uid, gid, home, shell = account(str(wanted.get("user") or ""))
        env = {"PATH": SEARCH_PATH, "HOME": home, "USER": name, "LOGNAME": name, "SHELL": shell}
        if self._tty:
            env["TERM"] = "xterm-256color"
        env.update(environment)
        cwd = str(wanted.get("cwd") or "") or (home if os.path.isdir(home) else "/")
        is_root = os.geteuid() == 0

        def become() -> None:
            # Between fork and exec; one thread only, so this is safe here.
            if self._tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            _be_ordinary_prey()
            _heed_signals()
            if is_root:
                os.initgroups(name, gid)
                os.setgid(gid)
                os.setuid(uid)
            os.umask(0o022)

        ours: List[int] = []
        theirs: List[int] = []
        try:
            if self._tty:
                _open_terminal(ours, theirs, uid)
                self.resize(wanted, ours[0])
            else:
                _open_pipes(ours, theirs)
            for fd in ours:
                os.set_blocking(fd, False)
            self.process = subprocess.Popen(
                [_encoded(word) for word in argv],
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                cwd=_encoded(cwd),
                env={_encoded(key): _encoded(value) for key, value in env.items()},
                start_new_session=True,
                preexec_fn=become,
                close_fds=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            for fd in ours:
                os.close(fd)
            raise _refusal(argv[0], cwd, exc)
        finally:
            for fd in set(theirs):
                os.close(fd)
        self.stdin = ours[0]
        self.outputs = {fd: channel for channel, fd in enumerate(ours) if channel != STDIN}

    @property
    def wants_to_read(self) -> bool:
        return self.credit > 0

    @property
    def wants_to_write(self) -> bool:
        return self.stdin >= 0 and bool(self._typed)

    # -- what the host says --------------------------------------------------------------------------------------

    def take(self, channel: int, data: bytes) -> bool:
        """Input for the command. False when there is more of it than the host has credit for."""
        if channel != STDIN:
            return True
        if self.stdin < 0:
            self.consumed += len(data)  # nobody reads any more
        elif data:
            self._typed += data
        else:
            self._stdin_ends = True
            if self._tty:
                self._typed += b"\x04"  # what a person would type, and the host has not
                self.consumed -= 1
        if len(self._typed) > WINDOW + 1:
            return False
        self.on_writable()
        return True

    def resize(self, wanted: Dict[str, Any], fd: int = -1) -> None:
        """The terminal's size, unless it is no size, or there is no terminal."""
        rows, cols = wanted.get("rows"), wanted.get("cols")
        if not self._tty or not isinstance(rows, int) or not isinstance(cols, int):
            return
        target = fd if fd >= 0 else self.stdin
        if target >= 0 and 0 < rows < 65536 and 0 < cols < 65536:
            fcntl.ioctl(target, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def cancel(self) -> None:
        """End the command: politely, and by force a little later. Its output is of no interest any more."""
        if self._kill_at is None and self.process.returncode is None:
            self._signal(signal.SIGHUP if self._tty else signal.SIGTERM)
            self._kill_at = time.monotonic() + _TERM_GRACE_S
        for fd in list(self.outputs):
            self._drop_output(fd)
        self._close_stdin()

    # -- what the descriptors say --------------------------------------------------------------------------------

    def on_readable(self, fd: int) -> None:
        """Pass on what the command has said, within the host's credit."""
        channel = self.outputs.get(fd)
        if channel is None or self.credit <= 0:
            return
        try:
            data = os.read(fd, min(_READ, self.credit))
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        self._quiet_since = None
        self._write(self.stream, channel, data)
        if not data:
            self._drop_output(fd)
            return
        self.credit -= len(data)
        if self.process.returncode is not None:
            self._left -= len(data)

    def on_writable(self) -> None:
        """Give the command what was typed, as far as it takes it."""
        while self._typed and self.stdin >= 0:
            try:
                count = os.write(self.stdin, self._typed)
            except BlockingIOError:
                return
            except OSError:  # EPIPE: it reads no more; EIO: the terminal is gone
                count = len(self._typed)
                self._close_stdin()
            self.consumed += count
            del self._typed[:count]
        if self._stdin_ends and not self._tty:
            self._close_stdin()

    def tend(self, now: float) -> "Optional[Dict[str, Any]]":
        """See to deadlines. How it ended, once it has and all that it said was passed on; None before."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline, self._late = None, True
            self.cancel()
        if self._kill_at is not None:
            if now < self._kill_at and not self._leader_has_ended():
                return None
            self._signal(signal.SIGKILL)
        code = self.process.poll()
        if code is None or (self.outputs and self._may_say_more(now)):
            return None
        for fd, channel in list(self.outputs.items()):
            self._drop_output(fd)
            self._write(self.stream, channel, b"")
        self._close_stdin()
        if self._late:
            return {"code": 1, "error": "it was ended, because it took too long"}
        return {"code": code, "signal": 0} if code >= 0 else {"code": 128 - code, "signal": -code}

    # -- small steps ---------------------------------------------------------------------------------------------

    def _may_say_more(self, now: float) -> bool:
        """True while a command that has ended may have something in its pipes, or children that finish its work."""
        if self._left <= 0:
            return False
        if select.select(list(self.outputs), [], [], 0)[0]:
            self._quiet_since = None  # what is missing is credit, at most
        elif self._quiet_since is None:
            self._quiet_since = now
        return self._quiet_since is None or now - self._quiet_since < _QUIET_S

    def _leader_has_ended(self) -> bool:
        """True once it waits to be reaped, or was: until that no other process group has its number."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> None:
        """To the whole process group, which is there as long as its leader was not reaped."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, number)
            except OSError:
                pass

    def _drop_output(self, fd: int) -> None:
        del self.outputs[fd]
        os.close(fd)

    def _close_stdin(self) -> None:
        fd, self.stdin = self.stdin, -1
        if fd >= 0:
            os.close(fd)


def _open_terminal(ours: List[int], theirs: List[int], uid: int) -> None:
    """Both lists hold what is open, also when this raises OSError."""
    master, slave = os.openpty()
    ours.append(master)
    theirs += [slave] * 3
    ours.append(os.dup(master))
    os.fchown(slave, uid, -1)


def _open_pipes(ours: List[int], theirs: List[int]) -> None:
    for is_input in (True, False, False):
        reads, writes = os.pipe()
        ours.append(writes if is_input else reads)
        theirs.append(reads if is_input else writes)


def _heed_signals() -> None:
    """Whoever started the agent may have had it ignore some, as nohup does; a command ignores none."""
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _be_ordinary_prey() -> None:
    """For the kernel, when it is out of memory: the agent itself is not."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass


def _encoded(text: str) -> bytes:
    """Whatever the guest's locale is, of which a service may have none."""
    return text.encode("utf-8", "surrogateescape")


def _refusal(command: str, cwd: str, exc: Exception) -> RefusedError:
    name = command[:128]
    if isinstance(exc, FileNotFoundError):
        if not os.path.isdir(_encoded(cwd)):
            return RefusedError(126, "{}: no such directory in the guest".format(cwd[:128]))
        return RefusedError(127, "{}: not found in the guest".format(name))
    if isinstance(exc, OSError):
        return RefusedError(126, "{}: {}".format(name, (exc.strerror or str(exc)).lower()))
    return RefusedError(126, "{}: {}".format(name, exc))
