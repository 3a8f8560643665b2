"""The keeper's relay of the guest channel: bytes both ways, bounded, and the lines that are for the keeper."""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vmlib.guest import wire
from vmlib.keeper import calling, relay
from vmlib.keeper.calling import Caller
from vmlib.keeper.loop import Loop
from vmlib.keeper.relay import Relay


@dataclass
class Bench:
    """A relay on a loop of its own, and the other ends of its sockets."""

    stack: contextlib.ExitStack
    loop: Loop = field(default_factory=Loop)
    said: list[bytes] = field(default_factory=list)
    changes: int = 0

    def __post_init__(self) -> None:
        self.relay = Relay(self.loop, self.said.append, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self.stack.callback(theirs.close)
        theirs.setblocking(False)
        return ours, theirs

    def guest(self) -> socket.socket:
        ours, theirs = self._pair()
        self.relay.take_guest(ours)
        return theirs

    def client(self, unsent: bytes = b"") -> socket.socket:
        ours, theirs = self._pair()
        self.relay.take_client(ours, unsent)
        return theirs

    def turn(self, seconds: float = 0.05) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.loop.after(0.005, lambda: None)
            self.relay.arm()
            self.loop.turn()


def read(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(1 << 16):
            found += data
    return found


def is_closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def fill(sock: socket.socket, turn: Callable[[], None]) -> int:
    """Write until nobody takes more, for all the turns that are made in between; so many bytes."""
    total, last = 0, -1
    while total != last:
        last = total
        with contextlib.suppress(BlockingIOError):
            while True:
                total += sock.send(b"\x01" + b"x" * 4095)
        turn()
    return total


@pytest.fixture
def bench() -> Iterator[Bench]:
    with contextlib.ExitStack() as stack:
        yield Bench(stack)


def test_bytes_go_both_ways_as_they_are(bench: Bench) -> None:
    guest, client = bench.guest(), bench.client(b'{"ok": true}\n')
    there, back = wire.encode(wire.PING, 0, bytes(range(256))), wire.encode(wire.PONG, 0, bytes(range(256)))
    client.send(there)
    guest.send(back)
    bench.turn()
    assert read(guest) == b"\n" + there
    assert read(client) == b'{"ok": true}\n' + back


def test_lines_are_heard_with_a_client_and_without(bench: Bench) -> None:
    guest = bench.guest()
    guest.send(b"exit 3\nexit ")
    bench.turn()
    client = bench.client()
    guest.send(b"4\n" + wire.encode(wire.PONG, 0, b"exit 9") + b"x" * 100_000 + b"\nexit 5\n")
    bench.turn()
    assert [line for line in bench.said if line.startswith(b"exit")] == [b"exit 3", b"exit 4", b"exit 5"]
    assert read(client).endswith(b"exit 5\n")


def test_the_last_words_of_a_guest_are_heard_without_a_line_break(bench: Bench) -> None:
    guest = bench.guest()
    guest.send(b"exit 7")
    guest.close()
    bench.relay.drain()
    assert bench.said == [b"exit 7"]
    assert not bench.relay.has_guest


def test_a_newer_client_ends_the_one_before_and_begins_on_a_line_of_its_own(bench: Bench) -> None:
    guest, first = bench.guest(), bench.client()
    first.send(b"\x01half a fra")
    bench.turn()
    second = bench.client()
    second.send(wire.encode(wire.PING))
    bench.turn()
    assert is_closed(first)
    found = wire.Decoder().feed(read(guest))
    assert [one for one in found if isinstance(one, wire.Frame)] == [wire.Frame(wire.PING, 0, b"")]


def test_a_client_that_does_not_read_holds_the_guest_up_and_is_dropped_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_PATIENCE_S", 2.0)
    guest, client = bench.guest(), bench.client()
    turn = functools.partial(bench.turn, 0.02)
    began = time.monotonic()
    assert fill(guest, turn) < 4 << 20
    while bench.relay.has_client:
        turn()
    assert 1.9 < time.monotonic() - began < 20.0
    bench.turn()  # what the guest has sent is read now
    guest.setblocking(True)
    guest.settimeout(5)
    guest.send(b"\nexit 6\n")
    bench.turn()
    assert b"exit 6" in bench.said
    assert len(read(client)) < 4 << 20


def test_a_client_that_reads_again_in_time_stays_and_misses_nothing(bench: Bench) -> None:
    guest, client = bench.guest(), bench.client()
    sent = fill(guest, functools.partial(bench.turn, 0.02))
    got = 0
    while piece := read(client):
        got += len(piece)
        bench.turn(0.02)
    assert got == sent
    assert bench.relay.has_client


def test_a_client_that_is_slow_for_a_while_is_dropped_no_sooner_and_costs_one_timer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_PATIENCE_S", 1.0)
    timers: list[float] = []
    after = bench.loop.after

    def counted(delay_s: float, action: Callable[[], object]) -> None:
        if action == bench.relay._lose_patience:
            timers.append(delay_s)
        after(delay_s, action)

    monkeypatch.setattr(bench.loop, "after", counted)
    guest, client = bench.guest(), bench.client()
    fill(guest, functools.partial(bench.turn, 0.02))
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        client.recv(1 << 16)
        bench.turn(0.01)
        with contextlib.suppress(BlockingIOError):
            while True:
                guest.send(bytes(4096))
    assert bench.relay.has_client
    assert len(timers) < 8


def test_a_guest_that_does_not_read_costs_bounded_memory(bench: Bench) -> None:
    bench.guest()
    client = bench.client()
    assert fill(client, functools.partial(bench.turn, 0.02)) < 4 << 20


def test_who_comes_and_goes_is_told(bench: Bench) -> None:
    guest, client = bench.guest(), bench.client()
    assert bench.changes == 1
    guest.close()
    bench.turn()
    assert (bench.changes, bench.relay.has_guest) == (2, False)
    client.send(b"lost")
    client.close()
    bench.turn()
    assert (bench.changes, bench.relay.has_client) == (3, False)


# -- calls into the guest ---------------------------------------------------------------------------------------------


@pytest.fixture
def vsock(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "vsock"))
        listener.listen(8)
        listener.settimeout(5)
        yield listener


def call(loop: Loop, path: Path, seconds: float, uid: int | None = None) -> list[socket.socket]:
    answered: list[socket.socket] = []
    caller = Caller(loop, path, os.geteuid() if uid is None else uid, answered.append)
    caller.want(True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not answered:
        loop.after(0.005, lambda: None)
        loop.turn()
    caller.want(False)
    return answered


class Vmm:
    """Answers calls as Cloud Hypervisor does, with one of `answers` after the other."""

    def __init__(self, loop: Loop, listener: socket.socket, *answers: bytes) -> None:
        self.heard: list[bytes] = []
        self.kept: list[socket.socket] = []
        self._answers = list(answers)
        self._listener = listener
        loop.on_read(listener.fileno(), self._on_call)

    def _on_call(self) -> None:
        sock, _ = self._listener.accept()
        self.heard.append(sock.recv(100))
        answer = self._answers.pop(0) if self._answers else b""
        if answer:
            sock.send(answer)
            self.kept.append(sock)
        else:
            sock.close()


def test_it_calls_until_somebody_answers_and_takes_no_byte_of_the_guests(
    vsock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "_AGAIN_S", 0.05)
    loop = Loop()
    vmm = Vmm(loop, vsock, b"", b"", b"OK 1073741824\nhello")
    (sock,) = call(loop, Path(vsock.getsockname()), 5.0)
    assert vmm.heard == [b"CONNECT 1000\n"] * 3
    assert sock.recv(100) == b"hello"
    sock.close()


@pytest.mark.parametrize("answer", [b"NO\n", b"x" * 4096, b"O"])
def test_what_is_no_answer_leads_to_another_call(
    vsock: socket.socket, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "_AGAIN_S", 0.05)
    monkeypatch.setattr(calling, "_ANSWER_S", 0.2)
    loop = Loop()
    vmm = Vmm(loop, vsock, answer, b"OK 1\n")
    (sock,) = call(loop, Path(vsock.getsockname()), 5.0)
    assert len(vmm.heard) == 2
    sock.close()


def test_a_guest_that_hangs_up_at_once_for_ever_is_called_once_a_second(vsock: socket.socket) -> None:
    loop = Loop()
    vmm = Vmm(loop, vsock, *[b"OK 1\n"] * 1000)
    caller: Caller

    def answered(sock: socket.socket) -> None:
        sock.close()
        caller.want(True)

    caller = Caller(loop, Path(vsock.getsockname()), os.geteuid(), answered)
    caller.want(True)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        loop.after(0.005, lambda: None)
        loop.turn()
    assert 2 <= len(vmm.heard) <= 3


def test_only_a_socket_of_the_vmms_own_is_called(tmp_path: Path, vsock: socket.socket) -> None:
    loop = Loop()
    vmm = Vmm(loop, vsock, b"OK 1\n")
    (tmp_path / "link").symlink_to(tmp_path / "vsock")
    (tmp_path / "file").write_bytes(b"")
    for path, uid in ((tmp_path / "link", None), (tmp_path / "file", None), (tmp_path / "vsock", 54321)):
        assert call(loop, path, 0.3, uid) == []
    assert vmm.heard == []
