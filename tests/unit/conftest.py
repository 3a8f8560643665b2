"""Unit tests touch no host state: starting a process or opening netlink fails the test that does it."""

import socket
import sys
from collections.abc import Iterator

import pytest

_STARTS_A_PROCESS = frozenset(
    {"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.spawn", "pty.spawn"}
)


class _Guard:
    """An audit hook cannot be removed and sees every way there is; it forbids only while a unit test runs."""

    running = False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.running:
            return
        # Failed is no Exception: code under test that catches everything does not swallow it.
        if event in _STARTS_A_PROCESS:
            pytest.fail(f"a unit test may not start a process: {event} {args[0]!r}" if args else event)
        if event == "socket.__new__" and args[1] == socket.AF_NETLINK:
            pytest.fail("a unit test may not open netlink")


_guard = _Guard()
sys.addaudithook(_guard)


@pytest.fixture(autouse=True)
def _no_host_state() -> Iterator[None]:
    _guard.running = True
    yield
    _guard.running = False


@pytest.fixture(autouse=True)
def _no_fake_hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that has it enabled changes no verdict."""
    monkeypatch.delenv("CHV_ENABLE_FAKE", raising=False)
