"""The lifetime of what is made on the host for one machine: undo steps, on disk before the thing exists.

A later process can read them and take everything back, because an undo is data: an action's name and its arguments.
"""

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
        assert action in self._actions, action
        line = json.dumps({"action": action, "args": args}) + "\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, line.encode()) != len(line):
                # A disk that is nearly full takes a part of it without a word.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        except OSError as exc:
            exc.filename = str(self._path)
            raise
        finally:
            os.close(fd)

    def pending(self) -> list[Undo]:
        """What is still to be taken back, oldest first. A last line that was cut by a crash does not count."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        undos = []
        for line in lines:
            try:
                data = json.loads(line)
            except ValueError:
                # The process died in the middle of this line, so before it made what the line is about.
                log.warning("journal line cut short path=%s", self._path)
                continue
            undos.append(Undo(data["action"], data["args"]))
        return undos

    def unwind(self) -> list[Exception]:
        """Undo everything, newest first. One failure does not stop the rest; the journal is kept until all worked."""
        failures: list[Exception] = []
        for undo in reversed(self.pending()):
            try:
                self._actions[undo.action](**undo.args)
            except Exception as exc:  # noqa: BLE001  one failed undo must not stop the rest
                log.warning("undo failed action=%s args=%s: %s", undo.action, dict(undo.args), exc)
                failures.append(exc)
        if not failures:
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
