"""What the VMM says besides its answers: the log and the event monitor."""

import contextlib
import json
import os
import threading
import time
from typing import Any

_LEVELS = {"ERROR": 0, "WARN": 0, "INFO": 1, "DEBUG": 2}


class Log:
    """Lines on stderr or in a file. A full stderr is waited for, as Cloud Hypervisor does."""

    def __init__(self, path: str, verbosity: int) -> None:
        self.started = time.monotonic()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) if path else 2
        self._verbosity = verbosity

    def say(self, level: str, text: str, where: str = "vmm/src/lib.rs:1") -> None:
        if _LEVELS[level] <= self._verbosity:
            since = time.monotonic() - self.started
            thread = threading.current_thread().name
            line = f"cloud-hypervisor: {since:10.6f}s: <{thread}> {level}:{where} -- {text}\r\n"
            data = line.encode(errors="replace")
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BrokenPipeError:  # a closed reader does no harm
                    return
                except BlockingIOError:
                    time.sleep(0.01)


class Events:
    """The event monitor: pretty JSON objects with an empty line after each, dropped when its reader is behind."""

    def __init__(self, path: str, fd: int | None, *, log: Log, mute: bool) -> None:
        self._log = log
        if path:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        elif fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        self._fd = None if mute else fd

    def say(self, source: str, event: str, properties: dict[str, str] | None = None) -> None:
        self._log.say("INFO", f"Event: source = {source} event = {event} ", "event_monitor/src/lib.rs:113")
        if self._fd is None:
            return
        since = time.monotonic() - self._log.started
        stamp = {"secs": int(since), "nanos": int(since % 1 * 1e9)}
        one: dict[str, Any] = {"timestamp": stamp, "source": source, "event": event, "properties": properties}
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._fd, json.dumps(one, indent=2).encode() + b"\n\n")
