"""The keeper itself: one loop over console, VMM stderr, VMM events, guest channel, clients and the VMM's end.

Everything is non-blocking and in one thread, so that the order of what happened is never in doubt. What depends on the
VMM's language is its dialect's.
"""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vmlib import process
from vmlib.files import write_atomic
from vmlib.keeper import oom
from vmlib.keeper.clients import Clients
from vmlib.keeper.control import Client
from vmlib.keeper.dialect import Dialect
from vmlib.keeper.fds import leave_for, open_process, read
from vmlib.keeper.helpers import Helpers
from vmlib.keeper.loop import Loop
from vmlib.keeper.plan import KeeperPlan
from vmlib.keeper.sink import Sink
from vmlib.keeper.spawn import SpawnError, listen, make_fifos, open_fifo, spawn_vmm
from vmlib.keeper.verdict import Evidence, Verdict, judge
from vmlib.keeper.watchers import Watchers
from vmlib.kinds import EventKind
from vmlib.paths import RunPaths

_TAIL = 4096  # of console and stderr, for messages
_LAST_LINES, _LAST_WORDS = 3, 300  # and characters of them, of a guest that panicked
_FLUSH_S = 1.0  # at the end, for a reader that is alive but slow
_EXIT_GRACE_S = 10.0  # a guest that said `exit N` powers itself off within this
_LADDER_S = 8.0  # the owner's own steps after a stop's time-out take five
_TERM_GRACE_S = 2.0  # between SIGTERM and SIGKILL


class Keeper:
    """Keeps one machine until its VMM has ended and the exit record is written."""

    def __init__(self, plan: KeeperPlan, lease: socket.socket) -> None:
        self.plan = plan
        self.run_paths = RunPaths(plan.run)
        me = process.identify(os.getpid())
        assert me is not None
        process.save_identity(self.run_paths.keeper, me)
        leave_for(plan.keeper_cgroups)

        self.loop = Loop()
        self.dialect = self._speak(plan.dialect)
        self.clients = Clients(self.loop, answer=self._answer)
        self.watchers = Watchers(self.loop, self.dialect.typing)
        self.lease: Client | None = self.clients.add(lease)
        self.committed = False
        self.evidence = Evidence(dialect=plan.dialect)
        self.paused = False
        self.guest_ran = False
        self.button_was_pressed = False
        self.child: subprocess.Popen[bytes] | None = None
        self.vmm: process.Identity | None = None
        self.console_tail = bytearray()
        self.stderr_tail = bytearray()
        self.helper_tail = bytearray()
        self.stdout = self._open_sink(plan.stdout)
        self.stderr = self._open_sink(plan.stderr)
        self.helpers = Helpers(
            plan.helpers,
            self.run_paths,
            self.loop,
            tell=self._event,
            lost=self._on_helper_lost,
            last_words=self._last_helper_words,
            vmm_connects=plan.dialect == "cloud-hypervisor",
        )
        self.helper_lost = ""  # one that ended before the machine was committed, in words

    # -- coming to life ------------------------------------------------------------------------------------------

    def start(self) -> process.Identity:
        """Start the VMM, with its guest held. Raises SpawnError."""
        make_fifos(self.run_paths, helpers=bool(self.plan.helpers))
        self.dialect.make()
        self._open_streams()
        write_atomic(self.run_paths.plan, self.plan.dump())
        log_fds = [sink.fd for sink in (self.stdout, self.stderr) if sink.pollable]
        with contextlib.ExitStack() as ours:
            sockets = {
                name: ours.enter_context(listen(self.plan.run / file)) for name, file in self.plan.listeners.items()
            }
            for name, sock in self.helpers.start().items():
                sockets[name] = ours.enter_context(sock)
            inherited = self.dialect.inherited()
            for fd in inherited.values():
                ours.callback(os.close, fd)
            try:
                self.child = spawn_vmm(self.plan, log_fds=log_fds, sockets=sockets, inherited=inherited)
            except BaseException:
                self.helpers.end()
                raise
        self.vmm = process.load_identity(self.run_paths.vmm)
        if self.vmm is None:
            raise SpawnError(f"the VMM's launcher ended with status {self.child.wait()}")
        self._watch_vmm(os.pidfd_open(self.vmm.pid))
        return self.vmm

    def adopt(self) -> bool:
        """Take over the VMM of a keeper that is gone. False when the VMM is gone as well: its end is recorded."""
        with contextlib.suppress(FileNotFoundError):
            self.evidence = Evidence.load(self.run_paths.state.read_bytes(), dialect=self.plan.dialect)
        self.committed = self.guest_ran = True
        self.vmm = process.load_identity(self.run_paths.vmm)
        self._open_streams()
        vmm_fd = None if self.vmm is None else open_process(self.vmm)
        self.helpers.adopt()
        if vmm_fd is None:
            self._finish(None)
            return False
        self._watch_vmm(vmm_fd, adopted=True)
        self._arm_stop()
        if self.evidence.exit_requested is not None:
            self.loop.after(_EXIT_GRACE_S, self.end_vmm)
        self._event(
            "keeper replaced",
            "keeper replaced: the one before was gone; console bytes that it had read but not passed on are lost",
        )
        return True

    def _speak(self, dialect: str) -> Dialect:
        # Imported here, since each keeper needs one of them, and there is a keeper for each machine.
        if dialect == "cloud-hypervisor":
            from vmlib.keeper.cloud import CloudHypervisor

            return CloudHypervisor(self)
        from vmlib.keeper.qmp import Qmp

        return Qmp(self)

    def _open_sink(self, path: str) -> Sink:
        """A machine that runs already is kept even if its log is gone; a new one is not started without."""
        try:
            return Sink(Path(path))
        except OSError:
            if not self.run_paths.plan.exists():
                raise
            return Sink(Path(os.devnull))

    def _open_streams(self) -> None:
        self.dialect.open()
        if self.plan.helpers:
            self.helper_fd = open_fifo(self.run_paths.helper_words)
            self.loop.on_read(self.helper_fd, self._on_helper_words)
        self.clients.listen(self.run_paths.control)

    def _watch_vmm(self, vmm_fd: int, *, adopted: bool = False) -> None:
        self.vmm_fd = vmm_fd
        self.loop.on_read(self.vmm_fd, lambda: None)  # looked at on every turn of the loop
        self.dialect.connect(adopted=adopted)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Keep the machine until it has ended."""
        while not self._vmm_ended():
            self._arm_writers()
            self.loop.turn()
            self.clients.drop_closed()
            if not self.committed and self.lease is not None and self.lease.closed:
                # Whoever started this machine died, or gave up, before it was theirs to keep.
                self.kill_vmm()
                self.helpers.end()
                return
        self._finish(self._wait_status())

    def _arm_writers(self) -> None:
        """Ask for writability exactly where something waits."""
        for sink in (self.stdout, self.stderr):
            if sink.pollable:
                self.loop.want_write(sink.fd, sink.pump if sink.waiting else None)
        self.dialect.arm_writers()
        self.clients.arm_writers()
        self.watchers.arm()

    # -- what the dialect understood -----------------------------------------------------------------------------

    def console_said(self, data: bytes) -> None:
        self.stdout.write(data)
        self.console_tail = (self.console_tail + data)[-_TAIL:]
        self.watchers.show(data)

    def vmm_said(self, data: bytes) -> None:
        self.stderr.write(data)
        self.stderr_tail = (self.stderr_tail + data)[-_TAIL:]

    def guest_said(self, line: bytes) -> None:
        said = re.fullmatch(rb"exit ([0-9]{1,3})", line.strip())
        if said is None or int(said[1]) > 255 or self.evidence.exit_requested is not None:
            return
        self.evidence.exit_requested = int(said[1])
        self.save_state()
        self.loop.after(_EXIT_GRACE_S, self.end_vmm)

    def guest_runs(self) -> None:
        if self.guest_ran:
            self._event("resumed", "resumed")
        self.paused, self.guest_ran = False, True

    def guest_paused(self) -> None:
        self.paused = True
        self._event("paused", "paused")

    def guest_rebooted(self, by: str) -> None:
        if self.evidence.panic:
            return  # its kernel does that after a panic, and may be faster than the VMM's end
        self._event("rebooted", f"rebooted {by}")

    def guest_panicked(self) -> bool:
        words = last_words(bytes(self.console_tail))
        self._event("panic", f"panic: {words}")
        if self.plan.on_panic == "restart":
            return False
        self.evidence.panic, self.evidence.panic_lines = True, words
        return True

    def button_pressed(self) -> None:
        if not self.button_was_pressed:  # it is pressed again and again; Nomad keeps ten events
            self._event("power button", "power button pressed")
        self.button_was_pressed = True

    # -- helpers -------------------------------------------------------------------------------------------------

    def _on_helper_words(self) -> None:
        """Kept for the message about one that fails. Not for the task's log: they complain of each VMM's end."""
        self.helper_tail = (self.helper_tail + read(self.helper_fd))[-_TAIL:]

    def _on_helper_lost(self, sentence: str) -> None:
        """A machine that lacks a helper from the beginning is none: whoever starts it is told why."""
        self.helper_lost = self.helper_lost or sentence
        self.kill_vmm()

    def _last_helper_words(self) -> str:
        self._on_helper_words()
        words = self.helper_tail.decode(errors="replace").strip().splitlines()
        return words[-1][:300] if words else ""

    # -- clients -------------------------------------------------------------------------------------------------

    def _answer(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"op": "status"}:
                return {"ok": True, **self._status()}
            case {"op": "subscribe"}:
                client.subscribed = True
            case {"op": "ack", "seq": int(seq)}:
                self.clients.acknowledge(seq)
            case {"op": "note", "kind": str(kind), "text": str(text)}:
                if request.get("forced"):
                    self.evidence.forced = text
                    self.save_state()
                self._event(cast(EventKind, kind), text)
            case {"op": "stop", "timeout_s": int() | float() as timeout_s}:
                self.evidence.stop_by = time.time() + timeout_s + _LADDER_S
                self.save_state()
                self._arm_stop()
            case {"op": "commit"}:
                try:
                    self.run_paths.committed.touch()
                except OSError as exc:
                    return {"ok": False, "reason": f"{exc.filename}: {(exc.strerror or str(exc)).lower()}"}
                self.committed = True
                self.helpers.settle()
            case {"op": "console", **wish}:
                return self.watchers.invite(client, wish)
            case {"op": "agent"}:
                client.taker = self.dialect.relay.take_client
            case {"console": str(path)}:
                if why_not := self.dialect.take_console(path):
                    return {"ok": False, "reason": why_not}
            case _:
                return {"ok": False, "reason": f"unknown request {str(request.get('op'))[:64]!r}"}
        return {"ok": True}

    def _status(self) -> dict[str, Any]:
        assert self.vmm is not None
        return {
            "id": self.plan.id,
            "keeper": os.getpid(),
            "vmm": self.vmm.pid,
            "paused": self.paused,
            "committed": self.committed,
            "adopted": self.child is None,
            "helpers": self.helpers.pids(),
            "lost_stdout_bytes": self.stdout.lost_total,
            "lost_stderr_bytes": self.stderr.lost_total,
        }

    def _event(self, kind: EventKind, text: str) -> None:
        """Tell whoever listens, keep it for whoever comes, and put it into the task's log."""
        self.stderr.write(f"chv: {text}\n".encode(errors="replace"))
        self.clients.tell(kind, text)

    # -- the end -------------------------------------------------------------------------------------------------

    def _vmm_ended(self) -> bool:
        return bool(select.select([self.vmm_fd], [], [], 0)[0])

    def _wait_status(self) -> int | None:
        """As Popen's returncode: negative is a signal. None when the VMM is not our child."""
        return None if self.child is None else self.child.wait()

    def _arm_stop(self) -> None:
        """Whoever asks for a stop climbs the ladder; should it die on the way, the end comes all the same."""
        if self.evidence.stop_by is not None:
            self.loop.after(max(0.0, self.evidence.stop_by - time.time()), self._overdue)

    def _overdue(self) -> None:
        self.evidence.forced = "forced off: the guest did not power off in its time, its keeper ended the VMM"
        self.save_state()
        self._event("forced off", self.evidence.forced)
        self.end_vmm()

    def end_vmm(self) -> None:
        assert self.vmm is not None
        process.send_signal(self.vmm, 15)
        self.loop.after(_TERM_GRACE_S, self.kill_vmm)

    def kill_vmm(self) -> None:
        assert self.vmm is not None
        process.send_signal(self.vmm, 9)
        if self.child is not None and not self.committed:
            self.child.wait()

    def _finish(self, status: int | None) -> None:
        """Read what is left, decide, let the logs flow out, then record the end and tell it."""
        self.dialect.drain()
        self.helpers.end()
        if self.helper_lost:
            self.stderr_tail = bytearray(self.helper_lost.encode())
        verdict = judge(
            self.evidence,
            status=status,
            stderr_tail=self.stderr_tail.decode(errors="replace"),
            oom=oom.report(self.plan.memory_group),
        )
        self._note_end(verdict)
        self._flush_sinks()
        record = self._exit_record(verdict)
        # A guest that ran has come to its end, even if it was faster than whoever started it.
        if (self.committed or self.guest_ran) and not self._recorded():
            data = json.dumps(record).encode()
            if not self._save(Path(self.plan.exit_record), data):
                self._save(self.run_paths.exit_record, data)
        words = self.stderr_tail.decode(errors="replace")
        farewell = {
            "exit": record,
            "stderr": words,
            "reason": self._reason(verdict, words),
            "complaint": self.evidence.error,
        }
        self.clients.say_farewell(farewell, self.lease)
        self.watchers.say_farewell()

    def _note_end(self, verdict: Verdict) -> None:
        if verdict.message and verdict.message != self.evidence.forced:
            self.stderr.write(f"chv: {verdict.message}\n".encode())

    def _reason(self, verdict: Verdict, words: str) -> str:
        """Why a VMM did not come up. Cloud Hypervisor's last line is the innermost cause only, or advice."""
        understood = self.plan.dialect == "cloud-hypervisor" and not self.helper_lost
        lines = [] if understood else words.strip().splitlines()
        return lines[-1] if lines else verdict.message

    def _flush_sinks(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        for sink in (self.stdout, self.stderr):
            while sink.waiting and (left := deadline - time.monotonic()) > 0:
                select.select([], [sink.fd], [], left)
                sink.pump()

    def _exit_record(self, verdict: Verdict) -> dict[str, Any]:
        return {"id": self.plan.id, "at": time.time(), **asdict(verdict)}

    def _recorded(self) -> bool:
        """True when the keeper before us came to the end of its work and only then died."""
        try:
            return bool(json.loads(Path(self.plan.exit_record).read_text())["id"] == self.plan.id)
        except (FileNotFoundError, ValueError, KeyError):
            return False

    def save_state(self) -> None:
        self._save(self.run_paths.state, self.evidence.dump())

    def _save(self, path: Path, data: bytes) -> bool:
        """A full disk must not cost the machine its keeper."""
        try:
            write_atomic(path, data)
        except OSError as exc:
            with contextlib.suppress(OSError):  # our own log may lie on the same full disk
                os.write(2, f"{path}: not written: {exc}\n".encode(errors="replace"))
            return False
        return True


def last_words(console: bytes) -> str:
    """Of a guest that panicked: the line in which Linux says why; of any other guest, the last few."""
    shown = (
        "".join(char for char in line if char.isprintable()) for line in console.decode(errors="replace").splitlines()
    )
    lines = [line.strip() for line in shown if line.strip()]
    reasons = [line[line.index("Kernel panic") :] for line in lines if "Kernel panic" in line]
    return (reasons[-1] if reasons else " / ".join(lines[-_LAST_LINES:]))[:_LAST_WORDS]


__all__ = ["Keeper", "SpawnError"]
