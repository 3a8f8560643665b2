"""The keeper's one loop: console, VMM stderr, VMM events, guest channel, clients, the VMM's end.

Everything is non-blocking and in one thread, so that the order of what happened is never in doubt.
"""

import contextlib
import json
import math
import os
import re
import select
import socket
import subprocess
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmlib import process
from vmlib.files import write_atomic
from vmlib.keeper import oom
from vmlib.keeper.control import Client
from vmlib.keeper.fds import connect, leave_for, open_process, read, receive
from vmlib.keeper.helpers import Helpers
from vmlib.keeper.loop import Loop
from vmlib.keeper.monitor import MonitorEvent, QmpMonitor
from vmlib.keeper.plan import KeeperPlan
from vmlib.keeper.sink import Sink
from vmlib.keeper.spawn import SpawnError, listen, make_fifos, open_fifo, spawn_vmm
from vmlib.keeper.verdict import Evidence, Verdict, judge
from vmlib.lines import LineBuffer
from vmlib.paths import RunPaths

_CONSOLE_INPUT = 1 << 16  # typed and not yet taken by the guest
_TAIL = 4096  # of console and stderr, for messages
_CHANNEL_LINE = 4096  # longer lines of a guest are passed over
_EVENTS_KEPT = 64  # for a plugin that is away
_FLUSH_S = 1.0  # at the end, for a reader that is alive but slow
_EXIT_GRACE_S = 10.0  # a guest that said `exit N` powers itself off within this
_LADDER_S = 8.0  # the owner's own steps after a stop's time-out take five
_PANIC_GRACE_S = 2.0  # the VMM ends by itself at a panic within this
_TERM_GRACE_S = 2.0  # between SIGTERM and SIGKILL
_ONE_REBOOT_S = 1.0
_MAX_CLIENTS = 64


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
        self.clients: list[Client] = []
        self.lease: Client | None = self._add_client(lease)
        self.committed = False
        self.evidence = Evidence()
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self.seq = 0
        self.paused = False
        self.guest_ran = False
        self.button_pressed = False
        self.rebooted_at = -math.inf
        self.child: subprocess.Popen[bytes] | None = None
        self.vmm: process.Identity | None = None
        self.console_tail = bytearray()
        self.stderr_tail = bytearray()
        self.helper_tail = bytearray()
        self.console_input = bytearray()
        self.monitor = QmpMonitor()
        self.monitor_sock: socket.socket | None = None
        self.channel_sock: socket.socket | None = None
        self.channel_lines = LineBuffer(_CHANNEL_LINE, skip_long=True)
        self.stdout = self._open_sink(plan.stdout)
        self.stderr = self._open_sink(plan.stderr)
        self.helpers = Helpers(
            plan.helpers,
            self.run_paths,
            self.loop,
            tell=self._event,
            lost=self._on_helper_lost,
            last_words=self._last_helper_words,
        )
        self.helper_lost = ""  # one that ended before the machine was committed, in words

    # -- coming to life ------------------------------------------------------------------------------------------

    def start(self) -> process.Identity:
        """Start the VMM, with its guest held. Raises SpawnError."""
        make_fifos(self.run_paths, helpers=bool(self.plan.helpers))
        self._open_streams()
        write_atomic(self.run_paths.plan, self.plan.dump())
        log_fds = [sink.fd for sink in (self.stdout, self.stderr) if sink.pollable]
        with contextlib.ExitStack() as ours:
            sockets = {
                name: ours.enter_context(listen(self.plan.run / file)) for name, file in self.plan.listeners.items()
            }
            for name, sock in self.helpers.start().items():
                sockets[name] = ours.enter_context(sock)
            try:
                self.child = spawn_vmm(self.plan, log_fds=log_fds, sockets=sockets)
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
            self.evidence = Evidence.load(self.run_paths.state.read_bytes())
        self.committed = self.guest_ran = True
        self.vmm = process.load_identity(self.run_paths.vmm)
        self._open_streams()
        vmm_fd = None if self.vmm is None else open_process(self.vmm)
        self.helpers.adopt()
        if vmm_fd is None:
            self._finish(None)
            return False
        self._watch_vmm(vmm_fd)
        self._arm_stop()
        if self.evidence.exit_requested is not None:
            self.loop.after(_EXIT_GRACE_S, self._end_vmm)
        if self.evidence.panic:
            self.loop.after(_PANIC_GRACE_S, self._kill_vmm)
        self._event(
            "keeper replaced",
            "keeper replaced: the one before was gone; console bytes that it had read but not passed on are lost",
        )
        return True

    def _open_sink(self, path: str) -> Sink:
        """A machine that runs already is kept even if its log is gone; a new one is not started without."""
        try:
            return Sink(Path(path))
        except OSError:
            if not self.run_paths.plan.exists():
                raise
            return Sink(Path(os.devnull))

    def _open_streams(self) -> None:
        self.console_out_fd = open_fifo(self.run_paths.console_out)
        self.console_in_fd = open_fifo(self.run_paths.console_in)
        self.stderr_fd = open_fifo(self.run_paths.stderr)
        self.loop.on_read(self.console_out_fd, self._on_console)
        self.loop.on_read(self.stderr_fd, self._on_stderr)
        if self.plan.helpers:
            self.helper_fd = open_fifo(self.run_paths.helper_words)
            self.loop.on_read(self.helper_fd, self._on_helper_words)
        self.run_paths.control.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.listener.bind(str(self.run_paths.control))
        self.run_paths.control.chmod(0o600)
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.loop.on_read(self.listener.fileno(), self._on_connect)

    def _watch_vmm(self, vmm_fd: int) -> None:
        """Listen to a VMM. One that is ending already does not take connections; its process then says the rest."""
        self.vmm_fd = vmm_fd
        self.loop.on_read(self.vmm_fd, lambda: None)  # looked at on every turn of the loop
        with contextlib.suppress(OSError):
            self.monitor_sock = connect(self.plan.run / self.plan.listeners[self.plan.monitor])
            self.loop.on_read(self.monitor_sock.fileno(), self._on_monitor)
            self.monitor_sock.send(self.monitor.greeting)
        with contextlib.suppress(OSError):
            self.channel_sock = connect(self.plan.run / self.plan.listeners[self.plan.channel])
            self.loop.on_read(self.channel_sock.fileno(), self._on_channel)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Keep the machine until it has ended."""
        while not self._vmm_ended():
            self._arm_writers()
            self.loop.turn()
            self._drop_closed_clients()
            if not self.committed and self.lease is None:
                # Whoever started this machine died, or gave up, before it was theirs to keep.
                self._kill_vmm()
                self.helpers.end()
                return
        self._finish(self._wait_status())

    def _arm_writers(self) -> None:
        """Ask for writability exactly where something waits."""
        for sink in (self.stdout, self.stderr):
            if sink.pollable:
                self.loop.want_write(sink.fd, sink.pump if sink.waiting else None)
        self.loop.want_write(self.console_in_fd, self._pump_console_input if self.console_input else None)
        for client in self.clients:
            if not client.closed:
                self.loop.want_write(client.fd, client.pump if client.waiting else None)

    # -- what comes in -------------------------------------------------------------------------------------------

    def _on_console(self) -> None:
        data = read(self.console_out_fd)
        self.stdout.write(data)
        self.console_tail = (self.console_tail + data)[-_TAIL:]
        for client in self.clients:
            if client.attached:
                client.send_raw(data)

    def _on_stderr(self) -> None:
        data = read(self.stderr_fd)
        self.stderr.write(data)
        self.stderr_tail = (self.stderr_tail + data)[-_TAIL:]

    def _on_helper_words(self) -> None:
        """Kept for the message about one that fails. Not for the task's log: they complain of each VMM's end."""
        self.helper_tail = (self.helper_tail + read(self.helper_fd))[-_TAIL:]

    def _on_helper_lost(self, sentence: str) -> None:
        """A machine that lacks a helper from the beginning is none: whoever starts it is told why."""
        self.helper_lost = self.helper_lost or sentence
        self._kill_vmm()

    def _last_helper_words(self) -> str:
        self._on_helper_words()
        words = self.helper_tail.decode(errors="replace").strip().splitlines()
        return words[-1][:300] if words else ""

    def _on_monitor(self) -> None:
        assert self.monitor_sock is not None
        data = receive(self.monitor_sock)
        if data is None:
            self.loop.forget(self.monitor_sock.fileno())
            self.monitor_sock.close()
            self.monitor_sock = None
            return
        try:
            events = self.monitor.feed(data)
        except ValueError:
            return  # the VMM's end shows by its process in any case
        for event in events:
            self._on_vmm_event(event)

    def _on_vmm_event(self, event: MonitorEvent) -> None:
        match event.kind:
            case "shutdown":
                self.evidence.shutdown = event.reason
                self._save_state()
            case "panic":
                self._on_panic()
            case "reset":
                self._on_reset("by the guest" if event.by_guest else "from outside")
            case "router" if self.monitor_sock is not None:
                # A router that was started anew knows of no guest until that has sent something, which may be never.
                with contextlib.suppress(OSError):
                    self.monitor_sock.send(self.monitor.announce())
            case "power button":
                if not self.button_pressed:  # it is pressed again and again; Nomad keeps ten events
                    self._event("power button", "power button pressed")
                self.button_pressed = True
            case "paused" if self.evidence.panic or self.evidence.shutdown:
                pass  # the VMM stops the guest on its way to the end
            case "paused":
                self.paused = True
                self._event("paused", "paused")
            case "resumed":
                if self.guest_ran:
                    self._event("resumed", "resumed")
                self.paused, self.guest_ran = False, True

    def _on_reset(self, by: str) -> None:
        """One reboot is several resets: the firmware makes more of its own in the first moments."""
        now = time.monotonic()
        if now - self.rebooted_at > _ONE_REBOOT_S:
            self.rebooted_at = now
            self._event("rebooted", f"rebooted {by}")

    def _on_panic(self) -> None:
        self._on_console()  # the last words are in the pipe already
        words = _last_words(bytes(self.console_tail))
        self._event("panic", f"panic: {words}")
        if self.plan.on_panic == "restart":
            if self.monitor_sock is not None:
                with contextlib.suppress(OSError):  # it is ending, and will be started again by somebody else
                    self.monitor_sock.send(self.monitor.reset(reboots_end=self.plan.on_reboot == "exit"))
            return
        self.evidence.panic, self.evidence.panic_lines = True, words
        self._save_state()
        self.loop.after(_PANIC_GRACE_S, self._kill_vmm)  # it ends by itself, unless it hangs

    def _on_channel(self) -> None:
        assert self.channel_sock is not None
        data = receive(self.channel_sock)
        if data is None:
            self.loop.forget(self.channel_sock.fileno())
            self.channel_sock.close()
            self.channel_sock = None
            return
        for line in self.channel_lines.feed(data):
            self._on_channel_line(line)

    def _on_channel_line(self, line: bytes) -> None:
        said = re.fullmatch(rb"exit ([0-9]{1,3})", line.strip())
        if said is None or int(said[1]) > 255 or self.evidence.exit_requested is not None:
            return
        self.evidence.exit_requested = int(said[1])
        self._save_state()
        self.loop.after(_EXIT_GRACE_S, self._end_vmm)

    # -- clients -------------------------------------------------------------------------------------------------

    def _on_connect(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            if len(self.clients) < _MAX_CLIENTS:
                self._add_client(sock)
            else:
                sock.close()

    def _add_client(self, sock: socket.socket) -> Client:
        client = Client(sock)
        self.clients.append(client)
        self.loop.on_read(client.fd, lambda: self._on_client(client))
        return client

    def _on_client(self, client: Client) -> None:
        for request in client.receive(self._type_console):
            client.send(self._answer(client, request))
            if client.subscribed and request.get("op") == "subscribe":
                for event in self.events:
                    client.send({"event": event})

    def _answer(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"op": "status"}:
                return {"ok": True, **self._status()}
            case {"op": "subscribe"}:
                client.subscribed = True
            case {"op": "ack", "seq": int(seq)}:
                while self.events and self.events[0]["seq"] <= seq:
                    self.events.popleft()
            case {"op": "note", "kind": str(kind), "text": str(text)}:
                if request.get("forced"):
                    self.evidence.forced = text
                    self._save_state()
                self._event(kind, text)
            case {"op": "stop", "timeout_s": int() | float() as timeout_s}:
                self.evidence.stop_by = time.time() + timeout_s + _LADDER_S
                self._save_state()
                self._arm_stop()
            case {"op": "commit"}:
                try:
                    self.run_paths.committed.touch()
                except OSError as exc:
                    return {"ok": False, "reason": f"{exc.filename}: {(exc.strerror or str(exc)).lower()}"}
                self.committed = True
                self.helpers.settle()
            case {"op": "console"}:
                client.attached = True
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

    def _drop_closed_clients(self) -> None:
        for client in [client for client in self.clients if client.closed]:
            self.loop.forget(client.fd)
            client.sock.close()
            self.clients.remove(client)
            if client is self.lease:
                self.lease = None

    def _type_console(self, data: bytes) -> None:
        self.console_input = (self.console_input + data)[:_CONSOLE_INPUT]
        self._pump_console_input()

    def _pump_console_input(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.console_input:
                del self.console_input[: os.write(self.console_in_fd, self.console_input)]

    def _event(self, kind: str, text: str) -> None:
        """Tell whoever listens, keep it for whoever comes, and put it into the task's log."""
        self.seq += 1
        event = {"seq": self.seq, "kind": kind, "text": text, "at": time.time()}
        self.events.append(event)
        self.stderr.write(f"chv: {text}\n".encode(errors="replace"))
        for client in self.clients:
            if client.subscribed:
                client.send({"event": event})

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
        self._save_state()
        self._event("forced off", self.evidence.forced)
        self._end_vmm()

    def _end_vmm(self) -> None:
        assert self.vmm is not None
        process.send_signal(self.vmm, 15)
        self.loop.after(_TERM_GRACE_S, self._kill_vmm)

    def _kill_vmm(self) -> None:
        assert self.vmm is not None
        process.send_signal(self.vmm, 9)
        if self.child is not None and not self.committed:
            self.child.wait()

    def _finish(self, status: int | None) -> None:
        """Read what is left, decide, let the logs flow out, then record the end and tell it."""
        self._drain()
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
        for client in self.clients:
            if client.subscribed or client is self.lease:
                client.sock.setblocking(True)
                client.sock.settimeout(_FLUSH_S)
                client.send({"exit": record, "stderr": self.stderr_tail.decode(errors="replace")})

    def _drain(self) -> None:
        for fd, take in ((self.console_out_fd, self._on_console), (self.stderr_fd, self._on_stderr)):
            while select.select([fd], [], [], 0)[0]:
                take()
        while self.monitor_sock is not None and select.select([self.monitor_sock], [], [], 0)[0]:
            self._on_monitor()
        while self.channel_sock is not None and select.select([self.channel_sock], [], [], 0)[0]:
            self._on_channel()

    def _note_end(self, verdict: Verdict) -> None:
        if verdict.message and verdict.message != self.evidence.forced:
            self.stderr.write(f"chv: {verdict.message}\n".encode())

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

    def _save_state(self) -> None:
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


def _last_words(console: bytes) -> str:
    """The line in which the kernel says why, else the last one."""
    lines = [line.strip() for line in console.decode(errors="replace").splitlines() if line.strip()]
    reasons = [line[line.index("Kernel panic") :] for line in lines if "Kernel panic" in line]
    return (reasons or lines or [""])[-1][:300]


__all__ = ["Keeper", "SpawnError"]
