"""What a plugin process does before anything else: bring its three standard streams out of everybody's reach.

A child that inherits the plugin's stdout or stderr keeps the host from noticing the plugin's death, and then every task
of the plugin is lost. So the two pipes move to high descriptors that close at exec, and 0, 1 and 2 lead nowhere.
"""

import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from dataclasses import dataclass

from driver.goplugin import hclog

_HIGH = 200  # away from the low numbers that careless code closes or hands on


@dataclass(frozen=True, slots=True)
class Streams:
    """What leads to the host, at descriptors that only we know. None where the process was started without."""

    handshake_fd: int | None  # the real stdout
    log: hclog.Handler | None  # writes to the real stderr


def prepare(log_level: int = logging.DEBUG) -> Streams:
    """Call once, first, and before anything imports grpc.

    Afterwards nothing that prints reaches the host, but logging, warnings and tracebacks do. No child inherits anything
    by accident. ^C at the host's terminal, which goes to the whole process group, does not end us: the host says when.
    """
    if "grpc" in sys.modules:
        raise RuntimeError("grpc was imported before its fork handlers could be turned off")
    # Its fork handlers stop all of its threads at every child that is started, and nothing here forks.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # Handlers, not SIG_IGN: that would be inherited by every child.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    _allow_many_files()
    handshake_fd, log_fd = _move(1), _move(2)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd, inheritable=True)
    if null > 2:
        os.close(null)
    _close_rest_at_exec()
    return Streams(handshake_fd, hclog.install(log_fd, log_level) if log_fd is not None else None)


def _allow_many_files() -> None:
    """A thousand is the usual limit; a plugin holds some descriptors for each of its tasks."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _move(fd: int) -> int | None:
    # The limit on descriptors may be lower than the number that we want.
    for lowest in (_HIGH, 3):
        with contextlib.suppress(OSError):
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    return None


def _close_rest_at_exec() -> None:
    """Whatever the host's own parent left open is nobody's business below us."""
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2:
            with contextlib.suppress(OSError):  # the descriptor of this very listing
                os.set_inheritable(fd, False)
