"""The lifetime of what is made on the host for one machine: undo steps, on disk before the thing exists.

A later process can read them and take everything back, because an undo is data: an action's name and its arguments.
"""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.aside import set_aside
from vmlib.files import parse_json, read_own, sync_directory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Undo:
    """How to take one thing back: plain data, so that a later process can do it too."""

    action: str  # "cgroup.remove", "machine.end", "files.remove_tree"
    args: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Undo steps of one machine, in a file with one JSON object a line.

    Every action must succeed when the thing is already gone, and take back only what we made.
    """

    def __init__(self, path: Path, actions: Mapping[str, Callable[..., None]]) -> None:
        self._path = path
        self._actions = actions

    def note(self, action: str, **args: str) -> None:
        """Record how to take back what is about to be made."""
        self.note_all(action, [args])

    def note_all(self, action: str, several: Iterable[Mapping[str, str]]) -> None:
        """The same for things of one kind, in one go."""
        assert action in self._actions, action
        line = "".join(json.dumps({"action": action, "args": dict(args)}) + "\n" for args in several)
        new = not self._path.exists()
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, line.encode()) != len(line):
                # A disk that is nearly full takes a part of it without a word.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            if new:
                sync_directory(self._path.parent)
        except OSError as exc:
            exc.filename = str(self._path)
            raise
        finally:
            os.close(fd)

    def pending(self) -> list[Undo]:
        """What is still to be taken back, oldest first. A last line that was cut by a crash does not count."""
        return self._read()[0]

    def _read(self) -> tuple[list[Undo], str]:
        """What can be read, and what is wrong with the rest in words: nothing when a crash cut the last line short."""
        try:
            lines = read_own(self._path).split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return [], ""
        except ValueError as exc:
            return [], str(exc)
        undos, wrong = [], ""
        for number, line in enumerate(lines, start=1):
            try:
                undos.append(_undo(line))
            except ValueError as exc:
                # In the last one the process died, so before it made what the line is about.
                if number < len(lines):
                    wrong = wrong or f"line {number}: {exc}"
        return undos, wrong

    def unwind(self) -> list[Exception]:
        """Undo everything, newest first. One failure does not stop the rest; the journal is kept until all worked."""
        failures: list[Exception] = []
        undos, wrong = self._read()
        for undo in reversed(undos):
            try:
                self._actions[undo.action](**undo.args)
            except Exception as exc:  # noqa: BLE001  one failed undo must not stop the rest
                log.warning("undo failed action=%s args=%s: %s", undo.action, dict(undo.args), exc)
                failures.append(exc)
        if not failures and wrong:
            set_aside(self._path, wrong)
        elif not failures:
            self._path.unlink(missing_ok=True)
        return failures

    @contextmanager
    def rollback_on_error(self) -> Iterator[None]:
        """Take everything back when the block raises; keep it when the block ends well."""
        try:
            yield
        except BaseException:
            self.unwind()
            raise


def _undo(line: bytes) -> Undo:
    """Raises ValueError for what is none."""
    match parse_json(line):
        case {"action": str(action), "args": dict(args)} if all(isinstance(value, str) for value in args.values()):
            return Undo(action, args)
    raise ValueError("no undo")
