"""Reads a task's two log FIFOs as Nomad's logmon does: into files beside them, and opens again at their end.

Nothing is rotated. A reader can be held, closed and opened again, for whoever wants to see what writers do then.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from driver.devhost.alloc import AllocPaths

STREAMS = ("stdout", "stderr")
_CHUNK_BYTES = 64 * 1024

OnOutput = Callable[[str, bytes], None]


class _FifoReader:
    """One FIFO into one file."""

    def __init__(self, fifo: Path, log: Path, on_data: Callable[[bytes], None]) -> None:
        self._fifo = fifo
        self._log = log
        self._on_data = on_data
        self._fd: int | None = None
        self._held = False

    def open(self) -> None:
        """Does not wait for a writer. Until the first one comes the descriptor shows nothing, not even an end."""
        if self._fd is None:
            self._fd = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not self._held:
                self._watch()

    def close(self) -> None:
        if self._fd is not None:
            self._unwatch()
            os.close(self._fd)
            self._fd = None

    def hold(self) -> None:
        """Stay open and read nothing: what a stopped process does."""
        if not self._held:
            self._held = True
            self._unwatch()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._watch()

    def drain(self) -> None:
        """Read what is there now."""
        while self._fd is not None and self._read_once():
            pass

    def _read_once(self) -> bool:
        """False when there is no more for now."""
        assert self._fd is not None
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            # Every writer is gone. An end stays an end for this descriptor, so a new one waits for the next writer.
            self.close()
            self.open()
            return False
        with self._log.open("ab") as log:
            log.write(data)
        self._on_data(data)
        return True

    def _watch(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().add_reader(self._fd, self._read_once)

    def _unwatch(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)


class Logmon:
    """Both streams of one task. All methods belong to the loop that runs."""

    def __init__(self, paths: AllocPaths, on_output: OnOutput) -> None:
        self._readers = [
            _FifoReader(paths.fifo(stream), paths.log(stream), lambda data, stream=stream: on_output(stream, data))  # type: ignore[misc]
            for stream in STREAMS
        ]
        self._paths = paths

    def open(self) -> None:
        for stream in STREAMS:
            self._paths.log(stream).touch()
        for reader in self._readers:
            reader.open()

    def hold(self) -> None:
        for reader in self._readers:
            reader.hold()

    def release(self) -> None:
        for reader in self._readers:
            reader.release()

    def close(self) -> None:
        """As when logmon is killed: writers meet a FIFO without a reader."""
        for reader in self._readers:
            reader.close()

    async def finish(self) -> None:
        """Take what is still in the pipes, then close."""
        with contextlib.suppress(OSError):
            for reader in self._readers:
                reader.release()
                reader.drain()
        self.close()
