"""Keeps machines on their cores: wakes when somebody writes a cpuset file, and looks every few seconds anyway."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from vmlib.cores.service import Notice
from vmlib.errors import HostError
from vmlib.inotify import CLOSE_WRITE, CREATE, DELETE, MODIFY, Inotify

log = logging.getLogger(__name__)

_SLOW_LOOK_S = 4.0
_SETTLE_S = 0.05  # one change of the scheduler's is several writes
_LONGEST_SETTLE_S = 2.0
_EVENTS = MODIFY | CLOSE_WRITE | CREATE | DELETE


class CoresWatch:
    """Runs `look` at once, after `wake`, after a write to one of `paths`, and every few seconds."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Iterable[Notice]]],
        tell: Callable[[Notice], None],
        paths: Callable[[], Awaitable[Iterable[Path]]],
    ) -> None:
        self._look = look
        self._tell = tell
        self._paths = paths
        self._due = asyncio.Event()
        self._complaint = ""
        self._inotify: Inotify | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs a running loop. Does nothing the second time."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="cores watch")

    def wake(self) -> None:
        """Look soon: a machine has come, gone or rebooted."""
        self._due.set()

    async def _watch(self) -> None:
        try:
            self._inotify = Inotify()
            asyncio.get_running_loop().add_reader(self._inotify.fd, self._on_write)
        except OSError as exc:
            log.warning("cpuset files are not watched, only looked at every %g s: %s", _SLOW_LOOK_S, exc)
        settle_s = _SETTLE_S
        while True:
            self._due.clear()
            await self._follow()
            try:
                for notice in await self._look():
                    self._tell(notice)
            except Exception:  # the top of a background task: a bad look must not end the watch
                log.exception("look at the cores failed")
            self._on_write()
            # A repair writes, too. One that fails would be tried again at once, and for ever.
            settle_s = min(settle_s * 2, _LONGEST_SETTLE_S) if self._due.is_set() else _SETTLE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SLOW_LOOK_S):
                    await self._due.wait()
                await asyncio.sleep(settle_s)

    def _on_write(self) -> None:
        if self._inotify is not None and self._inotify.read():  # what it was does not matter: a look sees everything
            self._due.set()

    async def _follow(self) -> None:
        """Watch what is there now; a directory that was made anew has lost its watch. The slow look does without."""
        if self._inotify is None:
            return
        complaint = ""
        try:
            for path in await self._paths():
                self._inotify.watch(path, _EVENTS)
        except (OSError, HostError) as exc:
            complaint = f"{exc}"
        if complaint and complaint != self._complaint:
            log.warning("cpuset files are not all watched, only looked at every %g s: %s", _SLOW_LOOK_S, complaint)
        self._complaint = complaint
