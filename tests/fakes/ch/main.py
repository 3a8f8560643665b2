"""Plays `cloud-hypervisor`: options, signals, sockets, and the end of the process."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from tests.fakes.ch import behaviour as behaviours
from tests.fakes.ch import options, threads
from tests.fakes.ch.calls import Calls
from tests.fakes.ch.says import Events, Log
from tests.fakes.ch.server import Server
from tests.fakes.ch.vmm import Vmm

_BACKLOG = 16


def main(executable: Path) -> None:
    behaviour = behaviours.load(executable, os.environ)
    chosen = options.parse(sys.argv[1:], version=behaviour.build_version)
    threads.name_this("cloud-hypervisor")
    threading.current_thread().name = "main"
    os.umask(0o077)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the real one ignores it; this one has a child
    log = Log(chosen.log_file, chosen.verbosity)
    log.say("INFO", f"{behaviour.build_version} starting", "cloud-hypervisor/src/main.rs:631")
    events = Events(chosen.events_path, chosen.events_fd, log=log, mute=behaviour.word("mute") is not None)
    events.say("vmm", "starting")
    listener = _listener(chosen)
    vmm = Vmm(behaviour, log, events, no_shutdown=chosen.no_shutdown)

    def at_end() -> None:
        if chosen.api_path:
            with contextlib.suppress(OSError):
                os.unlink(chosen.api_path)
        log.say("INFO", "Cloud Hypervisor exited successfully", "cloud-hypervisor/src/main.rs:962")
        behaviours.leave(0)

    vmm.at_end = at_end
    for number in (signal.SIGTERM, signal.SIGINT):
        # A VMM thread that is stuck never sees it, which is how the real one ignores it then.
        signal.signal(number, lambda *_: vmm.loop.call(vmm.signalled))
    calls = Calls(vmm, behaviour, log, seccomp=chosen.seccomp == "true")
    if listener is not None:
        Server(vmm.loop, listener, calls.answer)
    vmm.loop.start("vmm")
    while True:
        signal.pause()


def _listener(chosen: options.Options) -> socket.socket | None:
    if chosen.api_fd is not None:
        listener = socket.socket(fileno=chosen.api_fd)
        listener.set_inheritable(False)
        return listener
    if not chosen.api_path:
        return None
    path = Path(chosen.api_path)
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
    except OSError as exc:
        sys.stderr.write(
            "Error: Cloud Hypervisor exited with the following chain of errors:\n"
            "  0: Failed to start the VMM thread\n"
            "  1: Error creation API server's socket\n"
            f"  2: {exc.strerror} (os error {exc.errno})\n"
        )
        raise SystemExit(1) from exc
    listener.listen(_BACKLOG)
    return listener
