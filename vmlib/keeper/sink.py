"""One log stream of the task: never blocks, keeps 1 MiB for a slow reader, says what it had to drop."""

import errno
import os
import stat
from collections import deque
from pathlib import Path

KEEP_BYTES = 1 << 20
_CHUNK = 1 << 16


class Sink:
    """Writes to a FIFO that somebody may read slowly, or not at all.

    The FIFO is opened for reading and writing: without a reader we get neither SIGPIPE nor an end of file, and a
    reader that comes later goes on where the last one stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Other tasks of the group may write where the FIFO lies: neither a link nor a file of theirs is opened for us.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        mode = os.fstat(self.fd).st_mode
        if not stat.S_ISFIFO(mode) and not _is_null(self.fd):
            os.close(self.fd)
            raise OSError(errno.EINVAL, "neither a FIFO nor /dev/null", str(path))
        self.pollable = stat.S_ISFIFO(mode)  # /dev/null is always writable and cannot be polled
        self.lost_bytes = 0  # dropped since the last note of a loss
        self.lost_total = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0

    @property
    def waiting(self) -> bool:
        """True while there is something to write."""
        return bool(self._queue)

    def write(self, data: bytes) -> None:
        """Queue `data` and write what goes at once. What does not fit the bound is counted and dropped."""
        if not data:
            return
        if self._queued + len(data) > KEEP_BYTES:
            self.lost_bytes += len(data)
            self.lost_total += len(data)
        else:
            self._note_loss()
            self._push(data)
        self.pump()

    def pump(self) -> None:
        """Write until the reader is full."""
        while self._queue:
            chunk = self._queue[0]
            try:
                written = os.write(self.fd, chunk)
            except BlockingIOError:
                return
            except OSError:
                # A full disk or a vanished file: the log is lost, the machine is not.
                self.lost_total += self._queued
                self._queue.clear()
                self._queued = 0
                return
            self._queued -= written
            if written == len(chunk):
                self._queue.popleft()
            else:
                self._queue[0] = chunk[written:]
            if not self._queue:
                self._note_loss()

    def _note_loss(self) -> None:
        """Put the sentence about a loss where the lost bytes would stand."""
        if self.lost_bytes and self._queued < KEEP_BYTES:
            note = f"\nchv: lost {self.lost_bytes} bytes\n".encode()
            self.lost_bytes = 0
            self._push(note)

    def _push(self, data: bytes) -> None:
        self._queued += len(data)
        # Many small writes would cost a Python object each; they are joined while they wait.
        if self._queue and len(self._queue[-1]) + len(data) <= _CHUNK and len(self._queue) > 1:
            self._queue[-1] += data
        else:
            self._queue.append(data)


def _is_null(fd: int) -> bool:
    """/dev/null stands for logs that the job has disabled."""
    return os.path.samestat(os.fstat(fd), os.stat(os.devnull))
