"""Being told of changes to files: inotify(7) through libc, without blocking, for an event loop's reader."""

import contextlib
import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MODIFY: Final = 0x0002
ATTRIB: Final = 0x0004
CLOSE_WRITE: Final = 0x0008
MOVED_FROM: Final = 0x0040
MOVED_TO: Final = 0x0080
CREATE: Final = 0x0100
DELETE: Final = 0x0200
DELETE_SELF: Final = 0x0400
Q_OVERFLOW: Final = 0x4000  # comes by itself: events were lost, look at everything
IGNORED: Final = 0x8000  # comes by itself: what was watched is gone
ISDIR: Final = 0x4000_0000  # comes with others: it is about a directory

_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name with its padding
_BUFFER_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a watched file, or to `name` in a watched directory."""

    path: Path | None  # as it was given to `watch`; None when events were lost
    name: str
    mask: int


class Inotify:
    """One queue of events. `fd` becomes readable when there are some."""

    def __init__(self) -> None:
        self._paths: dict[int, Path] = {}
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def watch(self, path: Path, mask: int) -> int | None:
        """Watch a file or directory, or change the mask of one that is watched; None when there is no such path."""
        try:
            watch = _checked(_libc.inotify_add_watch(self.fd, os.fsencode(path), mask), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._paths[watch] = path
        return watch

    def unwatch(self, watch: int) -> None:
        """Stop; one that ended by itself is no mistake."""
        self._paths.pop(watch, None)
        try:
            _checked(_libc.inotify_rm_watch(self.fd, watch), f"watch {watch}")
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise

    def read(self) -> list[Event]:
        """Everything that happened since the last call; never waits."""
        events: list[Event] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, _BUFFER_BYTES):
                self._parse(data, events)
        return events

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _parse(self, data: bytes, events: list[Event]) -> None:
        at = 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            name = os.fsdecode(data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0"))
            at += _HEAD.size + length
            if mask & Q_OVERFLOW:
                events.append(Event(None, "", mask))
            elif watch in self._paths:  # else of one that was taken back meanwhile
                events.append(Event(self._paths[watch], name, mask))
            if mask & IGNORED:
                self._paths.pop(watch, None)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
