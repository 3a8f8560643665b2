"""Files on a server that may stop answering: every touch of them is made by a child, which can be killed at any moment.

Once the server is silent, open, stat, read and close of such a file wait for ever, and whoever waits cannot be stopped
by anything but SIGKILL. So no other process of ours ever does one of them.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmlib.process import TOOL_ENVIRONMENT, spawn

log = logging.getLogger(__name__)

ANSWER_MAX_BYTES = 1 << 17
_CHILD = Path(__file__).resolve().with_name("far_child.py")
_BEGUN_S = 20.0  # for an interpreter to start on a host with much to do
_KILLED_S = 1.0


class FarError(Exception):
    """What the child met. `step` says at what it was then, `code` is the errno."""

    def __init__(self, step: str, code: int, words: str) -> None:
        super().__init__(words)
        self.step = step
        self.code = code


class SilentError(Exception):
    """The server did not answer within the time that it had."""

    def __init__(self, after_s: float) -> None:
        super().__init__(f"no answer within {after_s:g} s")
        self.after_s = after_s


def call(
    op: str, details: Mapping[str, Any], *, timeout_s: float, fds: Sequence[int] = ()
) -> tuple[dict[str, Any], list[int]]:
    """Have a child do one thing; returns its answer and the descriptors that came with it, which are the caller's.

    The child has `timeout_s` to show that it gets on: a long copy says so now and then. Raises SilentError when it does
    not, FarError for what the kernel refuses.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with its:
            child = spawn(
                [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid())],
                kind="far",
                env=TOOL_ENVIRONMENT,
                stdin=its.fileno(),
            )
        try:
            socket.send_fds(ours, [json.dumps({"op": op, **details}).encode()], list(fds))
            return _answer(ours, timeout_s)
        except ConnectionError as exc:
            raise FarError("child", 0, "the child that was to do it has ended") from exc
        finally:
            _end(child)


def _answer(sock: socket.socket, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
    patience_s = _BEGUN_S
    while True:
        sock.settimeout(patience_s)
        try:
            data, fds, _, _ = socket.recv_fds(sock, ANSWER_MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as exc:
            raise SilentError(patience_s) from exc
        patience_s = timeout_s
        if not data:
            raise FarError("child", 0, "the child that was to do it has ended")
        answer: dict[str, Any] = json.loads(data)
        if "failed" in answer:
            raise FarError(answer["failed"], answer["code"], answer["words"])
        if "busy" not in answer:
            return answer, fds


def _end(child: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILLED_S
    while child.poll() is None:
        if time.monotonic() > deadline:
            # In the kernel's hands until the mount is forced. Nobody waits for it but this thread, which costs little.
            log.warning("a child that waits for a file server survives SIGKILL pid=%d", child.pid)
            threading.Thread(target=child.wait, name="far-reaper", daemon=True).start()
            return
        time.sleep(0.002)


def close(fd: int) -> None:
    """Close our copy of a file's descriptor without waiting: the last one to be closed speaks with the server."""
    threading.Thread(target=os.close, args=(fd,), name="far-close", daemon=True).start()
