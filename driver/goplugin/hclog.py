"""Log lines for the host: one JSON object a line on stderr, in the form of HashiCorp's hclog.

The host trusts them: a message or timestamp that is no string makes it panic, and what it does not understand it shows
at debug level as it came. So lines are built here from checked parts, and writing them never raises and never blocks.
"""

import collections
import contextlib
import json
import logging
import math
import os
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

# The host reads lines into a buffer of 64 KiB and splits what is longer.
MAX_LINE_BYTES = 64 * 1024 - 1
_BACKLOG_BYTES = 1024 * 1024
_LONG_TEXT_BYTES, _SHORT_TEXT_BYTES, _MAX_PAIRS = 24 * 1024, 256, 32

_PLAIN = logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys() | {"message", "asctime", "taskName"}

log = logging.getLogger(__name__)


def level_name(level: int) -> str:
    """hclog's word for a level of logging. It knows neither `warning` nor `critical`."""
    for lowest, name in ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info")):
        if level >= lowest:
            return name
    return "debug" if level >= logging.DEBUG else "trace"


def render(record: logging.LogRecord) -> bytes:
    """One line, newline included, whatever is in the record. Everything in `extra` becomes a key of its own."""
    parts: dict[str, Any] = {
        "@level": level_name(record.levelno),
        "@message": _message(record),
        "@timestamp": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "@module": _text(record.name),
    }
    for key, value in record.__dict__.items():
        if key not in _PLAIN and not str(key).startswith("@"):
            parts[key] = _value(value)
    if record.exc_info and record.exc_info[0] is not None:
        parts["traceback"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    elif record.stack_info:
        parts["traceback"] = _text(record.stack_info)
    line = _encode(parts)
    return line if len(line) <= MAX_LINE_BYTES else _encode(_shortened(parts))


def _message(record: logging.LogRecord) -> str:
    try:
        return _text(record.getMessage())
    except Exception:  # noqa: BLE001  arguments that do not fit their format are still worth a line
        return f"{_text(record.msg)} {_text(record.args)}" if record.args else _text(record.msg)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  somebody's __str__; the line goes out without it
        return f"<{type(value).__name__} that cannot be shown>"


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _text(value)


def _encode(parts: dict[str, Any]) -> bytes:
    return json.dumps(parts, separators=(",", ":")).encode() + b"\n"


def _shortened(parts: dict[str, Any]) -> dict[str, Any]:
    """As much as fits into a line with certainty: the beginning of each text, and not too many of them."""
    shortened: dict[str, Any] = {}
    for key, value in list(parts.items())[:_MAX_PAIRS]:
        long = key in ("@message", "traceback")
        shortened[_start(key, 64)] = _start(str(value), _LONG_TEXT_BYTES if long else _SHORT_TEXT_BYTES)
    if "traceback" in parts:
        # Its end says what happened.
        shortened["traceback"] = _start(parts["traceback"][::-1], _LONG_TEXT_BYTES)[::-1]
    return shortened


def _start(text: str, max_bytes: int) -> str:
    """The longest beginning of `text` whose JSON form has at most `max_bytes`."""
    low, high = 0, min(len(text), max_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        if len(json.dumps(text[:middle])) <= max_bytes:
            low = middle
        else:
            high = middle - 1
    return text[:low]


class Handler(logging.Handler):
    """Writes to a descriptor from a thread of its own, so that a reader who stopped reading stops nobody.

    What does not fit into the backlog meanwhile is dropped and counted. The descriptor is borrowed.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._lost = 0
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_for_ever, name="log-writer", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = render(record)
        except Exception as exc:  # noqa: BLE001  a log line is no reason to fail
            line = _encode({"@level": "error", "@message": f"log line of {record.name} lost: {type(exc).__name__}"})
        with self._changed:
            if self._bytes + len(line) > _BACKLOG_BYTES:
                self._lost += 1
                return
            self._append(line)

    def flush(self, timeout_s: float = 0.0) -> None:
        """Wait at most `timeout_s` until all is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, timeout_s)

    def _append(self, line: bytes) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        self._changed.notify_all()

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            # A reader that is gone stays gone, but somebody may look with a debugger: go on as if it were read.
            with contextlib.suppress(OSError):
                _write_all(self._fd, line)
            with self._changed:
                self._bytes -= len(line)
                if self._lost and not self._lines:
                    message = f"{self._lost} log lines lost: the reader is too slow"
                    self._append(_encode({"@level": "warn", "@message": message, "@module": __name__}))
                    self._lost = 0
                self._changed.notify_all()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def install(fd: int, level: int = logging.DEBUG) -> Handler:
    """Send everything that is said in this process to `fd`: logging, warnings, and tracebacks that nobody caught."""
    handler = Handler(fd)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # They tell their own inner life at debug level.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(level, logging.INFO))
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], exc: BaseException | None, trace: TracebackType | None) -> None:
        log.critical("%s: %s", kind.__name__, exc, exc_info=exc.with_traceback(trace) if exc is not None else None)
        handler.flush(timeout_s=0.5)

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        log.error(
            "%s in %r: %s", what.err_msg or "exception ignored", what.object, what.exc_value, exc_info=what.exc_value
        )

    sys.excepthook = uncaught
    threading.excepthook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = unraisable
    return handler
