"""The processes beside a VMM (virtiofsd, swtpm, passt): started before it, started again when they end, ended after it.

They share the VMM's memory cgroup: what a virtiofsd writes into the guest's RAM before the VMM has touched it is
charged to virtiofsd's own group, and what a guest makes it hold (open files, page cache) must have a limit as well.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

from vmlib import process
from vmlib.keeper.channel import listen_for_vmm
from vmlib.keeper.fds import open_process
from vmlib.keeper.loop import Loop
from vmlib.keeper.plan import HelperPlan
from vmlib.keeper.spawn import SpawnError, spawn_helper
from vmlib.kinds import EventKind
from vmlib.paths import RunPaths

# A helper ends a moment before its VMM does: at once would be too soon to know.
_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 60.0
_LONG_LIFE_S = 60.0  # whoever lived that long is no sign of a loop
_END_S = 0.5
_READY_S = 5.0  # of one that tells when it serves: it takes milliseconds, unless the host is very busy


def next_delay_s(delay_s: float, lived_s: float) -> float:
    """How long to wait with the next start of a helper that lived `lived_s` after a wait of `delay_s`."""
    return _FIRST_DELAY_S if lived_s >= _LONG_LIFE_S else min(_MAX_DELAY_S, max(_FIRST_DELAY_S, delay_s * 2))


class Helper:
    """One of them, as it is right now."""

    def __init__(self, plan: HelperPlan) -> None:
        self.plan = plan
        self.child: subprocess.Popen[bytes] | None = None  # None: of a keeper before us
        self.who: process.Identity | None = None
        self.fd = -1  # of the process; -1 while there is none
        self.listener: socket.socket | None = None  # where a VMM waits that connects while there is none
        self.started_at = time.monotonic()
        self.delay_s = 0.0
        self.ended_well = False  # the last time, as far as one can know


class Helpers:
    """All helpers of one machine. `tell` takes an event, `lost` the sentence about one that ended before `settle`."""

    def __init__(
        self,
        plans: Sequence[HelperPlan],
        run: RunPaths,
        loop: Loop,
        *,
        tell: Callable[[EventKind, str], None],
        lost: Callable[[str], None],
        last_words: Callable[[], str],
        vmm_connects: bool = False,
    ) -> None:
        """With `vmm_connects` the VMM finds them by itself, and each ends well whenever its VMM lets go of it."""
        self._all = [Helper(plan) for plan in plans]
        self._run = run
        self._loop = loop
        self._tell = tell
        self._lost = lost
        self._last_words = last_words
        self._vmm_connects = vmm_connects
        self._ending = False
        self._hurry = False
        self._settled = False

    def start(self) -> dict[str, socket.socket]:
        """Start all, and return a socket that leads to each that does not call the VMM itself; the caller closes them.

        Raises SpawnError.
        """
        sockets: dict[str, socket.socket] = {}
        try:
            for helper in self._all:
                self._start(helper)
                if helper.plan.calls or self._vmm_connects:
                    continue
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                sockets[helper.plan.name] = sock
                self._connect(sock, helper)
        except BaseException:
            for sock in sockets.values():
                sock.close()
            self.end()
            raise
        return sockets

    def _connect(self, sock: socket.socket, helper: Helper) -> None:
        try:
            sock.connect(str(self._run.helper_socket(helper.plan.name)))
        except OSError as exc:
            # Nobody has the other end any more: it has ended, or is about to.
            ended = select.select([helper.fd], [], [], _END_S)[0]
            how = self._forget(helper) if ended else f"takes no connection: {(exc.strerror or str(exc)).lower()}"
            raise SpawnError(f"{helper.plan.what} {how}") from exc

    def adopt(self) -> None:
        """Take those over that the keeper before us started; one that ended meanwhile is started again."""
        self._settled = True
        for helper in self._all:
            helper.who = process.load_identity(self._run.helper(helper.plan.name))
            fd = None if helper.who is None else open_process(helper.who)
            if fd is None:
                self._start_later(helper, "ended while there was no keeper")
            else:
                self._watch(helper, fd)

    def settle(self) -> None:
        """The machine is there, with all its threads in their places, and is kept: they are started again from now."""
        self._settled = True
        for helper in self._all:
            _take_seat(helper)

    def hurry(self, *, on: bool) -> None:
        """The VMM waits for them: whoever has ended, or ends now, is started again at once."""
        self._hurry = on
        for helper in self._all:
            if on and helper.fd < 0:
                self._start_again(helper, "ended")

    def let_go(self) -> None:
        """The VMM is on its way to its end, and they with it."""
        self._ending = True

    def pids(self) -> dict[str, int]:
        """Those that live, by name."""
        return {one.plan.name: one.who.pid for one in self._all if one.who is not None and one.fd >= 0}

    def end(self) -> None:
        """End all, and come back when they are gone. The VMM is by now, so most have ended already."""
        self._ending = True
        deadline = time.monotonic() + _END_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            living = [one for one in self._all if one.fd >= 0]
            for one in living:
                _signal(one, number)
            for one in living:
                left = max(0.0, deadline - time.monotonic()) if number == signal.SIGTERM else None
                if select.select([one.fd], [], [], left)[0]:
                    self._forget(one)

    def _start(self, helper: Helper) -> None:
        try:
            if self._vmm_connects and helper.listener is None:
                helper.listener = listen_for_vmm(self._run.vmm_helper_socket(helper.plan.name))
            helper.child, ready = spawn_helper(helper.plan, self._run, listener=helper.listener)
        except (SpawnError, OSError) as exc:
            reason = f"{exc.filename}: {(exc.strerror or str(exc)).lower()}" if isinstance(exc, OSError) else str(exc)
            raise SpawnError(f"{helper.plan.what}: {reason}") from exc
        helper.who = process.load_identity(self._run.helper(helper.plan.name))
        helper.started_at = time.monotonic()
        self._watch(helper, os.pidfd_open(helper.child.pid))
        if ready >= 0:
            self._wait_ready(helper, ready)

    def _wait_ready(self, helper: Helper, ready: int) -> None:
        try:
            select.select([ready], [], [], _READY_S)
            if os.read(ready, 64):
                return
        except BlockingIOError:
            _signal(helper, signal.SIGKILL)
        finally:
            os.close(ready)
        # It has closed it unsaid, so it is at its end.
        select.select([helper.fd], [], [])
        raise SpawnError(f"{helper.plan.what} {self._forget(helper)}")

    def _watch(self, helper: Helper, fd: int) -> None:
        helper.fd = fd
        self._loop.on_read(fd, lambda: self._on_end(helper))

    def _forget(self, helper: Helper) -> str:
        """Take leave of one that has ended; returns how it did, in words."""
        self._loop.forget(helper.fd)
        os.close(helper.fd)
        helper.fd = -1
        helper.ended_well = self._hurry
        if helper.child is None:
            return "ended, nobody knows how"
        # Not reaped yet, so this is its process group and no other.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(helper.child.pid, signal.SIGKILL)
        status = helper.child.wait()
        helper.ended_well = status == 0
        if status < 0:
            return f"was killed by signal {-status}"
        words = self._last_words() if status else ""
        return f"ended with status {status}" + (f": {words}" if words else "")

    def _on_end(self, helper: Helper) -> None:
        how = self._forget(helper)
        if self._ending:
            return
        if self._settled and self._hurry:
            helper.delay_s = 0.0
            self._start_again(helper, how)
        elif self._settled:
            self._start_later(helper, how)
        else:
            self._lost(f"{helper.plan.what} {how}")

    def _start_later(self, helper: Helper, how: str) -> None:
        helper.delay_s = next_delay_s(helper.delay_s, time.monotonic() - helper.started_at)
        self._loop.after(helper.delay_s, lambda: self._start_again(helper, how))

    def _start_again(self, helper: Helper, how: str) -> None:
        if self._ending or helper.fd >= 0:
            return
        first = helper.delay_s <= _FIRST_DELAY_S  # Nomad keeps ten events: one for a whole row of ends
        try:
            self._start(helper)
        except (SpawnError, OSError) as exc:
            helper.started_at = time.monotonic()
            if first:
                self._tell("helper lost", f"helper lost: {helper.plan.what} {how}, {exc}; {helper.plan.loss}")
            self._start_later(helper, how)
            return
        if first and not (self._vmm_connects and helper.ended_well):
            self._tell("helper restarted", f"helper restarted: {helper.plan.what} {how}; {helper.plan.loss}")


def _signal(helper: Helper, number: int) -> None:
    """To the whole group of one that is our child, since virtiofsd is two processes."""
    if helper.child is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(helper.child.pid, number)
    elif helper.who is not None:
        process.send_signal(helper.who, number)


def _take_seat(helper: Helper) -> None:
    """Away from the vCPUs' places. Whoever runs already is moved with its child; the group takes whole processes."""
    if helper.fd < 0 or helper.who is None or not helper.plan.seat:
        return
    for pid in (helper.who.pid, *_children(helper.who.pid)):
        # It may have ended, and a machine that floats has no such group.
        with contextlib.suppress(OSError), open(f"{helper.plan.seat}/cgroup.procs", "r+") as file:
            file.write(str(pid))


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []
