"""Runs an operator's hooks, each call in a process of its own, and lets none of them take longer than its time.

A process and not a thread: one that hangs on a dead server can be killed, or at least left alone, and what it breaks is
not the plugin. What a hook calls is in `vmlib.hooks`; the process's own side is `vmlib.hook_child`.
"""

import contextlib
import functools
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Self

from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.hook_wire import pack, unpack
from vmlib.hooks import MAX_DISKS, Prepared, split
from vmlib.process import TOOL_ENVIRONMENT, spawn
from vmlib.resources import DiskAttachment, OpenFile
from vmlib.spec import MachineSpec

log = logging.getLogger(__name__)

PREFLIGHT_S = 60.0
POSTFLIGHT_S = 15.0

_CHILD = Path(__file__).with_name("hook_child.py")
_ENDS_S = 2.0  # for a process that has given its answer
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_WORDS_BYTES = 4096  # of what it says beside, kept for the log
_CHUNK_BYTES = 65536
_ERRORS = {"SpecError": SpecError, "HostError": HostError, "NoCapacityError": NoCapacityError}

# Whose machine it is, what the scheduler counts for it, and what was decided before.
_NOT_A_HOOKS = frozenset(
    (
        *("id", "name", "owner", "labels", "alive_while", "stdout", "stderr"),
        *("vcpus", "memory_mib", "memory_max_mib", "hugepages", "cores"),
    )
)

Note = Callable[[str, Mapping[str, str]], None]  # the hook, as the operator selects it, and its state


def run_preflights(
    hooks: tuple[str, ...],
    spec: MachineSpec,
    note: Note,
    ours: ExitStack,
    *,
    max_virtual_bytes: int,
) -> tuple[MachineSpec, tuple[DiskAttachment, ...]]:
    """The preflight of each hook, in order: the machine as they want it, and the disks that they give it.

    `note` is called with a hook's state, and has to write it down before it returns. `ours` closes the disks.
    Raises SpecError, HostError, NoCapacityError, each naming the hook.
    """
    given: list[DiskAttachment] = []
    for hook in hooks:
        request = {
            "do": "preflight",
            "hook": hook,
            "sys_path": _sys_path(),
            "machine": spec.name,
            "machine_id": spec.id,
            "labels": spec.labels,
            "spec": spec,
            "max_virtual_bytes": max_virtual_bytes,
        }
        with _Child(hook, PREFLIGHT_S) as child:
            prepared, fds = child.talk(request, functools.partial(note, hook))
            for fd in fds:
                ours.callback(os.close, fd)
        if not isinstance(prepared, Prepared) or len(fds) != len(prepared.disks):
            raise HostError(f"hook {hook!r}: gave no answer that makes sense")
        given += [
            DiskAttachment(
                name=disk.name,
                file=OpenFile(fd=fd, path=disk.path),
                format=disk.format,
                readonly=disk.readonly,
                serial=disk.serial,
            )
            for disk, fd in zip(prepared.disks, fds, strict=True)
        ]
        if prepared.spec is not None:
            _expect_ours_unchanged(hook, spec, prepared.spec)
            spec = prepared.spec
    return spec, tuple(given)


def run_postflight(hook: str, state: Mapping[str, str], *, machine: str, machine_id: str) -> None:
    """Have a hook take back what it noted. Raises HostError, naming the hook, when that did not work."""
    request = {
        "do": "postflight",
        "hook": hook,
        "sys_path": _sys_path(),
        "machine": machine,
        "machine_id": machine_id,
        "labels": {},
        "state": dict(state),
    }
    with _Child(hook, POSTFLIGHT_S) as child:
        child.talk(request, None)


def _sys_path() -> list[str]:
    """Where this process finds packages; the child is isolated and finds the same."""
    return [path for path in sys.path if path]


def _expect_ours_unchanged(hook: str, before: MachineSpec, after: MachineSpec) -> None:
    for one in fields(MachineSpec):
        if one.name in _NOT_A_HOOKS and getattr(before, one.name) != getattr(after, one.name):
            raise HostError(f"hook {hook!r}: changed {one.name} of the machine, which is not a hook's to change")


class _Child:
    """One call of one hook; the process is gone, or given up, when the block ends."""

    def __init__(self, hook: str, timeout_s: float) -> None:
        self._hook = hook
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._answered = False
        self._words = b""

    def __enter__(self) -> Self:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = spawn(
                [sys.executable, "-I", "-S", str(_CHILD)],
                kind="tool",
                env=TOOL_ENVIRONMENT,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._sock.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(timeout=_ENDS_S if self._answered else 0.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            # One that the kernel holds (a dead server) stays behind; whoever starts the next process collects it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_ENDS_S)
        self._listen()
        self._sock.close()
        self._output.close()
        for line in self._words.decode(errors="replace").splitlines():
            log.info("hook %s: %s", split(self._hook)[0], line)

    def talk(
        self, request: Mapping[str, object], note: Callable[[Mapping[str, str]], None] | None
    ) -> tuple[object, list[int]]:
        """Ask and wait for the answer, which may come with open files. Notes are taken meanwhile."""
        fds: list[int] = []
        try:
            answer = self._talk(pack(request), note, fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return answer, fds

    def _talk(self, unsent: bytes, note: Callable[[Mapping[str, str]], None] | None, fds: list[int]) -> object:
        unread = b""
        while True:
            self._wait(writing=bool(unsent))
            self._listen()
            if unsent:
                with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    unsent = unsent[self._sock.send(unsent[:_CHUNK_BYTES]) :]
            try:
                data, more, _, _ = socket.recv_fds(self._sock, _CHUNK_BYTES, MAX_DISKS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data, more = b"", []
            fds += more
            if not data:
                self._listen()
                raise HostError(f"hook {self._hook!r}: its process ended without an answer{self._last_words()}")
            unread += data
            if len(unread) > _MAX_MESSAGE_BYTES:
                raise HostError(f"hook {self._hook!r}: its answer is larger than {_MAX_MESSAGE_BYTES} bytes")
            *lines, unread = unread.split(b"\n")
            for line in lines:
                match unpack(line):
                    case {"note": dict(state)} if note is not None:
                        note(state)
                        unsent += pack("noted")
                    case {"done": answer}:
                        self._answered = True
                        return answer
                    case {"refused": {"kind": str(kind), "message": str(message), "hint": str(hint)}}:
                        self._answered = True
                        raise _ERRORS.get(kind, HostError)(f"hook {self._hook!r}: {message}", hint=hint)
                    case _:
                        raise HostError(f"hook {self._hook!r}: gave no answer that makes sense")

    def _wait(self, *, writing: bool) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if writing else 0))
        poll.register(self._output, select.POLLIN)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise NoCapacityError(
                f"hook {self._hook!r}: no end after {self._timeout_s:g} s{self._last_words()}",
                hint="it was killed; see what its volume system waits for",
            )
        if any(fd == self._output.fileno() and not event & select.POLLIN for fd, event in poll.poll(left * 1000)):
            time.sleep(0.01)  # its output is closed and would wake us for ever

    def _listen(self) -> None:
        """Take what it prints, so that it never waits for us."""
        with contextlib.suppress(OSError):
            while data := os.read(self._output.fileno(), _CHUNK_BYTES):
                self._words = (self._words + data)[-_MAX_WORDS_BYTES:]

    def _last_words(self) -> str:
        lines = self._words.decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f" ({said[-1][:200]})" if said else ""
