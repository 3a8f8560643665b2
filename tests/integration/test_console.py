"""`chv console`, `chv reboot` and `chv nmi` as a person and a script use them, and what the keeper does."""

import asyncio
import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from tests.integration.machines import READY, Host, Running
from tests.integration.nodes import PATIENCE_S, Node, kinds, told, until, until_says
from vmlib import process
from vmlib.errors import HypervisorError
from vmlib.keeper.client import Console

LEAVE = b"\x1d"


class Shell:
    """`chv WORDS` at a pseudo-terminal of its own, or in pipes."""

    def __init__(self, node: Node, *words: str, terminal: bool = True) -> None:
        self.said = b""
        self.complained = b""
        ours, theirs = pty.openpty() if terminal else (-1, -1)
        self.terminal, self.slave = ours, theirs
        self.before = termios.tcgetattr(theirs) if terminal else None
        stream: Any = theirs if terminal else subprocess.PIPE
        self.process = subprocess.Popen(
            [str(node.chv), *words],
            env={**os.environ, **node.environment, "CHV_CONFIG": str(node.agent_file), "SUDO_USER": "eve"},
            stdin=stream,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )

    @property
    def _out(self) -> int:
        if self.terminal >= 0:
            return self.terminal
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def type(self, data: bytes) -> None:
        if self.terminal >= 0:
            os.write(self.terminal, data)
            return
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def pump(self, timeout_s: float = 0.05) -> bool:
        if not select.select([self._out], [], [], timeout_s)[0]:
            return False
        data = os.read(self._out, 1 << 16)
        self.said += data
        return bool(data)

    def until(self, text: str, *, count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.said.count(text.encode()) < count:
            assert time.monotonic() < deadline, f"waited for {count} x {text!r}: {self.said!r}"
            if not self.pump() and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {text!r}: {self.said!r}")

    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self) -> int:
        """Its exit code; the terminal is then what it was."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end: {self.said!r}"
            self.pump()
        while self.pump(0.0):
            pass
        if self.before is not None:
            assert termios.tcgetattr(self.slave) == self.before
        elif self.process.stderr is not None:
            self.complained = self.process.stderr.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for fd in (self.terminal, self.slave):
            if fd >= 0:
                os.close(fd)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def shell(node: Node, *words: str, terminal: bool = True) -> Iterator[Shell]:
    one = Shell(node, *words, terminal=terminal)
    try:
        yield one
    finally:
        one.close()


@contextlib.asynccontextmanager
async def running(node: Node, words: str = "", **job: Any) -> AsyncIterator[DevHost]:
    """A machine that is up, and its task's life in the background."""
    async with node.host(node.job(words, **job)) as host:
        life = asyncio.create_task(host.run(), name="life")
        try:
            await until_says(host, READY)
            yield host
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


async def act(func: Callable[[], None]) -> None:
    """What a person does, beside the host's loop."""
    await asyncio.to_thread(func)


# ---------------------------------------------------------------------------------------------------------------------
# at a terminal


async def test_what_is_typed_reaches_a_real_guest_and_the_key_leaves_it_running(node: Node) -> None:
    async with running(node, "echo") as host:

        def person() -> None:
            with shell(node, "console", host.alloc.id[:8]) as one:
                one.until(f"chv: console of {host.alloc.id}/vm, Ctrl-] leaves it\r\n")
                assert one.raw()
                one.type(b"hello\r")
                one.until("echo: hello")
                one.type(b"\x03bye\r")  # ^C is the guest's as well; its line discipline drops what was typed before
                one.type(b"again\r")
                one.until("echo: again")
                one.type(b"lost" + LEAVE + b"gone\r")
                assert one.wait() == 0

        await act(person)
        assert host.result is None
        assert "gone" not in host.console()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_ends_it_and_the_terminal_is_what_it_was(fake_node: Node, number: signal.Signals) -> None:
    async with running(fake_node, "tick") as host:

        def person() -> None:
            with shell(fake_node, "console", host.alloc.id) as one:
                one.until("tick")
                assert one.raw()
                one.process.send_signal(number)
                assert one.wait() == 128 + number

        await act(person)


async def test_the_terminal_is_what_it_was_when_its_reader_stands_still(fake_node: Node) -> None:
    """A terminal that is full holds up who writes to it, and must not hold up who ends that."""
    async with running(fake_node, "echo") as host:

        def person() -> None:
            with shell(fake_node, "console", host.alloc.id) as one:
                one.until("leaves it")
                os.set_blocking(one.terminal, False)
                # What is typed comes back, is not read, and fills all on the way, until nothing more is taken.
                while select.select([], [one.terminal], [], 2.0)[1]:
                    with contextlib.suppress(BlockingIOError):
                        one.type(b"x" * 1000 + b"\r")
                one.process.terminate()
                assert one.process.wait(PATIENCE_S) == 143
                assert termios.tcgetattr(one.slave) == one.before

        await act(person)


async def test_the_machines_end_is_the_consoles_end(fake_node: Node) -> None:
    async with running(fake_node, "tick") as host:

        def person() -> None:
            with shell(fake_node, "console", host.alloc.id) as one:
                one.until("tick")
                process.send_signal(fake_node.vmm, signal.SIGKILL)
                assert one.wait() == 0
                words = "exit code 137, the VMM was killed by SIGKILL"
                assert one.said.decode().splitlines()[-1] == f"chv: {host.alloc.id}/vm has ended: {words}"

        await act(person)


async def test_one_types_and_others_watch_until_that_one_leaves_or_another_takes_over(fake_node: Node) -> None:
    async with running(fake_node, "echo") as host:
        id_ = host.alloc.id

        def people() -> None:
            with shell(fake_node, "console", id_) as first, contextlib.ExitStack() as others:
                first.until("leaves it\r\n")
                second, watcher, third = (
                    others.enter_context(shell(fake_node, "console", id_, *more)) for more in ((), ("--watch",), ())
                )
                for one in (second, third):
                    one.until("; eve (pid ")
                    one.until(" types, you watch until that one leaves (--take takes it over)\r\n")
                watcher.until("leaves it; you watch\r\n")
                for one in (second, watcher, third):
                    one.type(b"not heard\r")
                first.type(b"one\r")
                for one in (first, second, watcher, third):
                    one.until("echo: one")
                first.type(LEAVE)
                assert first.wait() == 0
                # Whoever of the two came to the keeper first.
                deadline = time.monotonic() + PATIENCE_S
                while not any(b"\r\nchv: you type now\r\n" in one.said for one in (second, third)):
                    assert time.monotonic() < deadline
                    second.pump()
                    third.pump()
                heir, other = (second, third) if b"you type now" in second.said else (third, second)
                heir.type(b"two\r")
                watcher.until("echo: two")
                with shell(fake_node, "console", id_, "--take") as taker:
                    taker.until(" watches now\r\n")
                    heir.until(f"\r\nchv: eve (pid {taker.process.pid}, pts/")
                    heir.until(" types now, you watch\r\n")
                    heir.type(b"not heard\r")
                    taker.type(b"three\r")
                    watcher.until("echo: three")
                    taker.type(LEAVE)
                    assert taker.wait() == 0
                heir.until("you type now", count=2 if heir.said.count(b"you type now") else 1)
                heir.type(b"four\r")
                other.until("echo: four")
                assert b"not heard" not in watcher.said
                for one in (heir, other, watcher):
                    one.type(LEAVE)
                    assert one.wait() == 0

        await act(people)


async def test_it_attaches_again_when_the_keeper_is_replaced(fake_node: Node) -> None:
    async with running(fake_node, "tick echo") as host:

        def person() -> None:
            with shell(fake_node, "console", host.alloc.id) as one:
                one.until("tick")
                process.send_signal(fake_node.keeper, signal.SIGKILL)
                one.until("chv: attached again")
                one.type(b"hello\r")
                one.until("echo: hello")
                one.type(LEAVE)
                assert one.wait() == 0

        await act(person)


# ---------------------------------------------------------------------------------------------------------------------
# in pipes


async def test_pipes_carry_the_guests_bytes_and_nothing_else_to_the_machines_end(node: Node) -> None:
    async with running(node, "echo") as host:

        def script() -> None:
            with shell(node, "console", host.alloc.id, terminal=False) as one:
                one.type(b"hello\n\x1d\n")
                one.close_input()
                one.until("echo: hello\r\n")
                one.until("echo: \x1d\r\n")
                process.send_signal(node.vmm, signal.SIGTERM)
                assert one.wait() == 0
                words = "exit code 143, the VMM was told to end by a signal from outside"
                assert one.complained.decode() == f"chv: {host.alloc.id}/vm has ended: {words}\n"
                assert b"chv: " not in one.said

        await act(script)


async def test_a_script_that_may_not_type_is_told_at_once(fake_node: Node) -> None:
    async with running(fake_node, "echo") as host:

        def script() -> None:
            with shell(fake_node, "console", host.alloc.id) as person:
                person.until("leaves it")
                with shell(fake_node, "console", host.alloc.id, terminal=False) as one:
                    one.type(b"hello\n")
                    assert one.wait() == 1
                    words = f"types on the console of {host.alloc.id}/vm, --take takes that over\n"
                    assert one.complained.decode().endswith(words)
                with shell(fake_node, "console", host.alloc.id, "--take", terminal=False) as one:
                    one.type(b"hello\n")
                    one.until("echo: hello")
                    one.process.terminate()
                    assert one.wait() == 143
                person.until("types now, you watch")

        await act(script)


@pytest.mark.parametrize("command", ["console", "reboot", "nmi"])
async def test_exit_codes_without_a_machine(fake_node: Node, command: str) -> None:
    def look(*words: str) -> tuple[int, str]:
        done = fake_node.command(command, *words)
        return done.returncode, done.stderr

    assert look("zzz") == (1, f"chv: no machine 'zzz' in {fake_node.layout.data_dir}, look at `chv ps`\n")
    assert look()[0] == 2
    assert look("zzz", "--nonsense")[0] == 2
    async with fake_node.host(fake_node.job("exit=3")) as host:
        await host.start()
        await host.wait()
        code, words = await asyncio.to_thread(look, host.alloc.id)
        assert (code, words) == (1, f"chv: {host.alloc.id}/vm has ended: exit code 3\n")


# ---------------------------------------------------------------------------------------------------------------------
# reboot, nmi


async def test_a_reboot_is_one_event_and_the_task_goes_on(node: Node) -> None:
    async with running(node, "tick") as host:
        for count in (2, 3):
            done = await asyncio.to_thread(node.command, "reboot", host.alloc.id)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            await until_says(host, READY, count=count)
        assert told(host)[2:] == ["rebooted from outside"] * 2
        assert kinds(host) == ["machine started", "cores", "rebooted", "rebooted"]
        assert host.result is None


async def test_a_paused_machine_is_resumed_and_rebooted(node: Node) -> None:
    async with running(node) as host:
        client = await host.client()
        await client.signal_task(host.task_id, "SIGSTOP")
        await until(lambda: "paused" in kinds(host), "the pause", host=host)
        assert (await asyncio.to_thread(node.command, "reboot", host.alloc.id)).returncode == 0
        await until_says(host, READY, count=2)
        assert kinds(host)[2:] == ["paused", "resumed", "rebooted"]


async def test_a_reboot_of_a_machine_that_shall_not_reboot_is_its_end(node: Node) -> None:
    async with node.host(node.job(config='on_reboot = "exit"')) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        assert (await asyncio.to_thread(node.command, "reboot", host.alloc.id)).returncode == 0
        assert await life == ExitResult()
        assert "rebooted" not in kinds(host)


async def test_an_nmi_reaches_the_guests_kernel(node: Node) -> None:
    async with running(node) as host:
        assert (await asyncio.to_thread(node.command, "nmi", host.alloc.id)).returncode == 0
        await until_says(host, "NMI received")
        assert host.result is None


async def test_a_vmm_that_hangs_is_told_within_seconds(fake_node: Node) -> None:
    async with running(fake_node) as host:
        process.send_signal(fake_node.vmm, signal.SIGSTOP)
        try:
            done = await asyncio.to_thread(fake_node.command, "reboot", host.alloc.id)
        finally:
            process.send_signal(fake_node.vmm, signal.SIGCONT)
        assert (done.returncode, done.stderr) == (1, "chv: greeting: no answer from the VMM in time\n")


# ---------------------------------------------------------------------------------------------------------------------
# the keeper's side


def attach(one: Running, *, write: bool = True, take: bool = False, notices: bool = False) -> Console:
    return one.machine.console(write=write, take=take, who="me", notices=notices)


def read_until(sock: socket.socket, text: bytes) -> bytes:
    data = b""
    sock.settimeout(20)
    while text not in data:
        piece = sock.recv(1 << 16)
        assert piece, data
        data += piece
    return data


def test_a_long_text_that_is_typed_arrives_whole(fake: Host) -> None:
    """More than all buffers on the way: who types is held up, not robbed."""
    one = fake.start("echo")
    one.until_line(READY)
    lines = [f"line {number:05d} {'x' * 80}" for number in range(6_000)]
    console = attach(one)
    console.sock.setblocking(True)
    console.sock.settimeout(60)
    with console.sock as sock:
        sock.sendall("".join(f"{line}\n" for line in lines).encode())
        one.until_line("echo: line 05999")
    heard = [line.removeprefix("echo: ") for line in one.out.text.splitlines() if line.startswith("echo: ")]
    assert heard == lines


def test_one_who_hung_up_while_nothing_was_taken_gives_way(qemu: Host) -> None:
    """Who types to a guest that reads nothing is held up, and then the keeper hears nothing of that one's end."""
    one = qemu.start()
    one.until_line(READY)
    first = attach(one)
    process.send_signal(one.machine.vmm_identity, signal.SIGSTOP)
    first.sock.setblocking(True)
    first.sock.settimeout(1.0)
    with first.sock as sock, contextlib.suppress(TimeoutError):
        sock.sendall(b"x" * (4 << 20))
    second = attach(one)
    process.send_signal(one.machine.vmm_identity, signal.SIGCONT)
    with second.sock:
        assert (second.writes, second.writer) == (True, "")


def test_a_watcher_that_does_not_read_is_dropped_and_the_guest_is_not_held_up(fake: Host) -> None:
    size = 3_000_000
    one = fake.start(f"sleep=1 flood={size} exit-only=1 sleep=60")
    lazy = attach(one, write=False)
    # The guest says it over another way, once all is said on this one.
    state = one.machine.run.state
    one.until(lambda: state.exists() and b'"exit_requested": 1' in state.read_bytes(), "the flood's end")
    read = 0
    with lazy.sock as sock:
        sock.setblocking(True)
        sock.settimeout(5.0)
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(1 << 20):
                read += len(piece)
    assert read < size


def test_there_is_a_most_of_watchers_and_those_that_left_do_not_count(fake: Host) -> None:
    one = fake.start("tick")
    one.until_line("tick 1")
    for _ in range(2):
        with contextlib.ExitStack() as there:
            for _ in range(16):
                there.enter_context(attach(one).sock)
            with pytest.raises(HypervisorError, match="16 others have the console already"):
                attach(one)
    assert one.ask("status")["ok"] is True


def test_names_of_others_cannot_harm_a_terminal(fake: Host) -> None:
    one = fake.start()
    with one.machine.console(write=True, who="\x1b[2J" + "x" * 500 + "\ud800").sock:
        second = attach(one)
        with second.sock:
            assert second.writer == "[2J" + "x" * 97
            assert not second.writes


def test_the_last_words_reach_who_watches(host: Host) -> None:
    one = host.start("sleep=1 exit=3")
    console = attach(one, write=False)
    with console.sock as sock:
        sock.setblocking(True)
        data = read_until(sock, b"exit 3\r\n")
        while piece := sock.recv(1 << 16):
            data += piece
    one.end()
    assert one.out.data.endswith(data[-100:])


def test_a_later_keeper_has_none_of_those_who_watched_the_one_before_and_takes_new_ones(fake: Host) -> None:
    one = fake.start("tick")
    console = attach(one, write=False)
    one.kill_keeper()
    with console.sock as sock:
        sock.setblocking(True)
        sock.settimeout(5.0)
        with contextlib.suppress(ConnectionError):
            while sock.recv(1 << 16):
                pass
    assert one.machine.settle() is None
    with attach(one, write=False).sock as sock:
        read_until(sock, b"tick")
