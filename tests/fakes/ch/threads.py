"""Threads with the names and the masks that Cloud Hypervisor's have, and loops that run in some of them."""

import contextlib
import ctypes
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def name_this(name: str) -> None:
    """Name the calling thread as the kernel shows it, cut to 15 bytes as it does."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def for_ever() -> None:
    while True:
        time.sleep(3600)


def default_signal(number: int) -> None:
    """Give a signal its ordinary meaning again, from any thread: Python's own way is for the main thread only."""
    signature = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    signature(("signal", _libc))(number, None)


class Idle:
    """Threads that only are there: `stop` ends them."""

    def __init__(self) -> None:
        self._end = threading.Event()

    def start(self, names: Iterable[str]) -> None:
        for name in names:
            _start(name, self._end.wait)

    def start_vcpus(self, count: int, affinity: dict[int, set[int]]) -> int | None:
        """A thread for each vCPU, which pins itself. Returns the vCPU that could not be, None when all are."""
        failed: list[int] = []
        ready = threading.Barrier(count + 1)

        def run(number: int) -> None:
            if number in affinity:
                try:
                    os.sched_setaffinity(0, affinity[number])
                except OSError:
                    failed.append(number)
            ready.wait()
            self._end.wait()

        for number in range(count):
            _start(f"vcpu{number}", partial(run, number))
        ready.wait()
        return min(failed, default=None)

    def stop(self) -> None:
        self._end.set()


def _start(name: str, target: Callable[[], object]) -> None:
    def run() -> None:
        name_this(name)
        target()

    threading.stack_size(1 << 18)
    threading.Thread(target=run, name=name, daemon=True).start()
    threading.stack_size(0)


class Loop:
    """Waits for descriptors, moments and calls from other threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, Callable[[], object]]] = []
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_out, selectors.EVENT_READ, lambda: os.read(self._wake_out, 4096))

    def watch(self, fd: int, readable: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, readable)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def call(self, what: Callable[[], object]) -> None:
        """From any thread: do this soon."""
        self._calls.append(what)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b".")

    def ask(self, what: Callable[[], object]) -> None:
        """From another thread: do this, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            try:
                what()
            finally:
                done.set()

        self.call(run)
        done.wait()

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """From this loop only."""
        self._timers.append((time.monotonic() + seconds, what))

    def start(self, name: str) -> None:
        _start(name, self.run)

    def run(self) -> None:
        while True:
            now = time.monotonic()
            for timer in [timer for timer in self._timers if timer[0] <= now]:
                self._timers.remove(timer)
                timer[1]()
            while self._calls:
                self._calls.popleft()()
            wait = min((at - time.monotonic() for at, _ in self._timers), default=None)
            for key, _ in self._selector.select(None if wait is None else max(0.0, wait)):
                if self._selector.get_map().get(key.fd) is key or key.fd in self._selector.get_map():
                    key.data()
