"""The plugin's end of the guest agent: the real agent as a process, and guests that play by no rules."""

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from driver import agents, exec_caller, guest_news
from driver._pb import driver_pb2 as pb
from driver.errors import AgentLostError, CommandTimeoutError, NoAgentError, UnimplementedError
from tests.integration.agent_keepers import Played, Script, ended, played, real_agent
from vmlib.errors import HostError, LaunchError, VmError
from vmlib.files import write_atomic
from vmlib.guest import known, session, wire
from vmlib.guest.known import load

Request = pb.ExecTaskStreamingRequest
LIMIT_S = 30.0


def setup(*argv: str, tty: bool = False) -> Request:
    return Request(setup=Request.Setup(task_id="t", command=argv, tty=tty))


def typed(data: bytes = b"", *, close: bool = False) -> Request:
    return Request(stdin=pb.ExecTaskStreamingIOOperation(data=data, close=close))


async def said(*requests: Request, stay: bool = False) -> AsyncIterator[Request]:
    """Of a caller that says this and no more; `stay`: and does not hang up."""
    for request in requests:
        yield request
    if stay:
        await asyncio.Event().wait()


async def outcome(answers: AsyncIterator[pb.ExecTaskStreamingResponse]) -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    async for answer in answers:
        out += answer.stdout.data
        err += answer.stderr.data
        if answer.exited:
            return answer.result.exit_code, bytes(out), bytes(err)
    raise AssertionError("ended without an exit code")


@pytest.fixture
def here(short_dir: Path) -> Path:
    (short_dir / "agent").mkdir()
    return short_dir


@contextlib.asynccontextmanager
async def ready(here: Path, **how: Any) -> AsyncIterator[tuple[Played, Any]]:
    """A task `t` whose agent, a real one, answers."""
    async with played(here) as one, real_agent(one, "t", here / "agent") as agent:
        one.add("t", **how)
        await one.until(lambda: one.texts("agent ready"), "the agent")
        yield one, agent


# ---------------------------------------------------------------------------------------------------------------------
# commands


async def test_a_script_has_outputs_exit_code_and_environment(here: Path) -> None:
    async with ready(here, env={"GREETING": 'it\'s "5 $"', "EMPTY": ""}) as (one, agent):
        done = await one.exec("t", "/bin/sh", "-c", 'echo "$GREETING${EMPTY-none}"; echo err >&2; exit 3')
        assert (done.stdout, done.stderr, done.result.exit_code) == (b'it\'s "5 $"\n', b"err\n", 3)
        assert b'GREETING="it\'s \\"5 \\$\\""' in agent.environment_file.read_bytes()
        killed = await one.exec("t", "/bin/sh", "-c", "kill -9 $$")
        assert (killed.result.exit_code, killed.result.signal) == (137, 9)
        missing = await one.exec("t", "no-such-command")
        assert (missing.result.exit_code, missing.stderr) == (127, b"chv: no-such-command: not found in the guest\n")
        assert (await one.exec("t", "/etc/passwd")).result.exit_code == 126
        assert (await one.exec("t", "cat")).result.exit_code == 0  # it has no input, and is told so


async def test_the_first_command_of_all_has_the_environment(here: Path) -> None:
    environment = {f"NAME_{number}": "x" * 1000 for number in range(500)}
    async with played(here) as one, real_agent(one, "t", here / "agent"):
        task = one.add("t", env=environment)
        await one.agents.wait_for(task)
        done = await one.exec("t", "/bin/sh", "-c", "echo ${#NAME_499}")
        assert done.stdout == b"1000\n"


async def test_a_command_that_takes_too_long_is_ended_and_the_error_says_so(here: Path) -> None:
    async with ready(here) as (one, _):
        marker = here / "alive"
        with pytest.raises(CommandTimeoutError, match=r"'/bin/sh' was ended: it took longer than 0.5 s"):
            await one.exec("t", "/bin/sh", "-c", f"echo $$ >{marker}; exec sleep 1000", timeout_s=0.5)
        await one.until(lambda: not Path(f"/proc/{marker.read_text().strip()}").exists(), "its end")


async def test_of_a_script_that_says_much_the_beginning_is_kept(here: Path) -> None:
    async with ready(here) as (one, _):
        done = await one.exec("t", "/bin/sh", "-c", "head -c 5000000 /dev/zero; echo end >&2")
        assert len(done.stdout) == (1 << 20) + len("\nchv: 3951424 bytes more\n")
        assert done.stdout.endswith(b"\nchv: 3951424 bytes more\n")
        assert done.stderr == b"end\n"


async def test_a_terminal_has_its_size_from_the_beginning_and_changes_it(here: Path) -> None:
    async with ready(here) as (one, _):
        size = Request(tty_size=Request.TerminalSize(height=33, width=101))
        code, out, err = await outcome(one.execs.stream(said(setup("stty", "size", tty=True), size, stay=True)))
        assert (code, out, err) == (0, b"33 101\r\n", b"")
        script = "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.1; done"
        resized: asyncio.Queue[Request] = asyncio.Queue()

        async def requests() -> AsyncIterator[Request]:
            yield setup("/bin/sh", "-c", script, tty=True)
            yield size
            while True:
                yield await resized.get()

        out = b""
        answers = one.execs.stream(requests())
        async for answer in answers:
            out += answer.stdout.data
            if b"ready" in out and resized.empty():
                for height, width in ((0, 0), (-1, 70000), (44, 120)):
                    resized.put_nowait(Request(tty_size=Request.TerminalSize(height=height, width=width)))
                out = out.replace(b"ready", b"")
            if answer.exited:
                assert answer.result.exit_code == 4
        assert out.strip() == b"44 120"


async def test_ten_at_once(here: Path) -> None:
    async with ready(here) as (one, _):

        async def cat(number: int) -> tuple[int, bytes, bytes]:
            script = f"cat; echo {number} >&2; exit {number}"
            requests = said(setup("/bin/sh", "-c", script), typed(b"%d" % number * 9999), typed(close=True), stay=True)
            return await outcome(one.execs.stream(requests))

        found = await asyncio.gather(*map(cat, range(10)))
        assert found == [(number, b"%d" % number * 9999, b"%d\n" % number) for number in range(10)]


async def test_a_hundred_megabytes_both_ways_at_once_and_the_memory_stays_as_it_was(here: Path) -> None:
    size, piece = 100_000_000, os.urandom(100_000)
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def requests() -> AsyncIterator[Request]:
        yield setup("cat")
        for _ in range(size // len(piece)):
            sent.update(piece)
            yield typed(piece)
        yield typed(close=True)
        await asyncio.Event().wait()

    async with ready(here) as (one, _):
        before, began, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), 0
        async for answer in one.execs.stream(requests()):
            received.update(answer.stdout.data)
            count += len(answer.stdout.data)
            if answer.exited:
                assert answer.result.exit_code == 0
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{size / (time.monotonic() - began) / 1e6:.1f} MB/s each way, {grown} KiB more memory")
        assert count == size
        assert received.digest() == sent.digest()
        assert grown < 16 << 10


async def test_a_command_that_says_a_letter_at_a_time_is_not_taken_for_a_flood(here: Path) -> None:
    script = "import os\nfor n in range(20000): os.write(1, b'x')"
    async with ready(here) as (one, _):
        began = time.monotonic()
        done = await one.exec("t", sys.executable, "-c", script)
        assert done.stdout == b"x" * 20000
        assert time.monotonic() - began < 15.0


async def test_a_caller_that_does_not_read_holds_up_the_command(here: Path) -> None:
    counter = here / "counter"
    script = f"i=0; while :; do i=$((i+1)); echo $i >{counter}; printf %8192s x; done"
    call = said(setup("/bin/sh", "-c", script), stay=True)

    def counted() -> int:
        while not (text := counter.read_text()):
            pass  # it is being written
        return int(text)

    async with ready(here) as (one, _), contextlib.aclosing(one.execs.stream(call)) as answers:
        await anext(answers)
        before = -1
        while (now := counted()) != before:  # it runs as far as it can
            assert now * 8192 < 4 * wire.WINDOW
            before = now
            await asyncio.sleep(0.5)
        await asyncio.sleep(1.0)
        assert counted() == before
        for _ in range(100):
            await anext(answers)
        await one.until(lambda: counted() > before, "it to go on")


@pytest.mark.parametrize(
    "more", [typed(bytes(2048)), typed(), Request(tty_size=Request.TerminalSize(height=24, width=80))]
)
async def test_a_command_that_does_not_read_holds_up_its_caller_and_no_other(here: Path, more: Request) -> None:
    taken = 0

    async def requests() -> AsyncIterator[Request]:
        nonlocal taken
        yield setup("sleep", "1000")
        for _ in range(300):  # more than it takes unread
            yield typed(bytes(2048))
        while True:
            yield more
            taken += 1
            await asyncio.sleep(0)

    async with ready(here) as (one, _), contextlib.aclosing(one.execs.stream(requests())) as answers:
        waiting = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(1.0)
        before = taken
        await asyncio.sleep(0.5)
        assert taken == before < 2048
        assert (await one.exec("t", "echo", "hello")).stdout == b"hello\n"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("tty", [False, True])
async def test_a_call_that_is_cancelled_ends_its_command(here: Path, tty: bool) -> None:
    async with ready(here) as (one, _):
        script = "echo $$; exec sleep 1000"
        async with contextlib.aclosing(
            one.execs.stream(said(setup("/bin/sh", "-c", script, tty=tty), stay=True))
        ) as call:
            pid = (await anext(call)).stdout.data.decode().strip()
        await one.until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


async def test_a_caller_that_says_nothing_any_more_is_gone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_caller, "SILENCE_S", 1.0)

    async def requests(beats: int, first: Request) -> AsyncIterator[Request]:
        yield first
        for _ in range(beats):
            await asyncio.sleep(0.4)
            yield Request()
        await asyncio.Event().wait()

    async with ready(here) as (one, _):
        code, _, _ = await outcome(one.execs.stream(requests(5, setup("sleep", "2.5"))))
        assert code == 0
        script = "echo $$; exec sleep 1000"
        answers = one.execs.stream(requests(2, setup("/bin/sh", "-c", script)))
        pid = (await anext(answers)).stdout.data.decode().strip()
        with pytest.raises(AgentLostError, match="nothing has come from the caller"):
            await anext(answers)
        await one.until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


async def test_a_caller_that_hangs_up_its_end_types_no_more(here: Path) -> None:
    async with ready(here) as (one, _):
        assert await outcome(one.execs.stream(said(setup("cat"), typed(b"x")))) == (0, b"x", b"")


# ---------------------------------------------------------------------------------------------------------------------
# signals


def hook(here: Path, name: str, script: str) -> None:
    path = here / "agent" / "signals" / f"{name}.d" / "10-it"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def test_a_signal_runs_what_the_guest_has_for_it(here: Path) -> None:
    asked = 0

    async def wake() -> bool:
        nonlocal asked
        asked += 1
        return False

    async with ready(here) as (one, _):
        task = one.tasks["t"]
        hook(here, "SIGHUP", f"touch {here}/seen")
        await one.agents.signal(task, "SIGHUP", wake=wake)
        assert (here / "seen").exists()
        hook(here, "SIGUSR1", "echo no such luck >&2; exit 9")
        with pytest.raises(VmError, match=r"signal SIGUSR1: .* exit code 1: .*/10-it: exit code 9"):
            await one.agents.signal(task, "SIGUSR1", wake=wake)
        with pytest.raises(
            UnimplementedError, match=r"signal SIGUSR2: the guest has no executable in .*SIGUSR2.d/"
        ) as no:
            await one.agents.signal(task, "SIGUSR2", wake=wake)
        assert no.value.hint.endswith("are run at this signal, as root")
        assert asked == 3


async def test_a_signal_that_nobody_can_hear_says_why_and_wakes_nobody(here: Path) -> None:
    async def wake() -> bool:
        raise AssertionError("woken in vain")

    async with played(here) as one:
        with pytest.raises(
            UnimplementedError, match=r"and this machine has none; .*/SIGHUP.d/ of the guest; without it: SIGTERM"
        ):
            await one.agents.signal(one.add("none", agent=False), "SIGHUP", wake=wake)


# ---------------------------------------------------------------------------------------------------------------------
# what is told


async def test_an_agent_is_told_of_once_for_each_boot_over_all_plugins(here: Path) -> None:
    script = Script({"boot_s": 12.4, "addresses": ["10.0.0.5", "2001:db8::5"], "load": [1, 2, 3], "uptime_s": 5})
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t")
        await one.until(lambda: load(one.run("t").guest).told_boot, "guest.json")
        assert one.told == [("agent ready", "agent ready: booted in 12 s, addresses 10.0.0.5, 2001:db8::5")]
        for keeper in one.keepers:
            keeper.close()
        assert script.writer is not None
        script.writer.close()  # a keeper that is killed; the next one is there at once
        await one.keep("t", script)
        await one.until(lambda: script.sessions == 2, "the next session")
        script.facts["boot_id"] = "b2"
        script.writer.write(wire.encode_json(wire.HELLO, 0, {"session": ""}))
        await one.until(lambda: len(one.told) == 2, "the next boot")
        await one.until(lambda: load(one.run("t").guest).told_boot == "b2", "guest.json")
    async with played(here) as another:
        await another.keep("t", script)
        another.add("t")
        await another.until(lambda: script.sessions >= 4, "the session")
        await asyncio.sleep(0.5)
        assert another.told == []
    known = load(another.run("t").guest)
    assert (known.told_boot, known.report.load, known.report.uptime_s) == ("b2", (1, 2, 3), 5)
    assert another.run("t").guest.stat().st_mode & 0o777 == 0o600


async def test_a_guest_without_addresses_yet_is_waited_for_a_moment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_news, "_ADDRESSES_S", 1.0)
    first, second = Script({"boot_s": 3}), Script({"boot_s": 4})
    async with played(here) as one:
        await one.keep("a", first)
        await one.keep("b", second)
        one.add("a", nics=1)
        one.add("b", nics=1)
        await one.until(lambda: first.writer and second.writer, "both")
        await asyncio.sleep(0.3)
        assert one.told == []
        first.note(addresses=["192.0.2.1"])
        await one.until(lambda: len(one.told) == 2, "both events")
        assert sorted(one.texts("agent ready")) == [
            "agent ready: booted in 3 s, addresses 192.0.2.1",
            "agent ready: booted in 4 s",
        ]


async def test_a_new_address_is_told_unless_the_link_has_shown_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_news, "_SETTLE_S", 0.2)
    script = Script({"addresses": ["192.0.2.1"]})
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t", nics=1)
        await one.until(lambda: one.told, "the agent")
        one.learned["t"] = ("192.0.2.1", "192.0.2.2")
        script.note(addresses=["192.0.2.1", "192.0.2.2"])
        await asyncio.sleep(0.5)
        for last in range(3, 9):
            script.note(addresses=["192.0.2.1", f"192.0.2.{last}"])
            await asyncio.sleep(0.4)
        assert one.texts("address") == [
            "address: 192.0.2.3, by the guest's own word",
            "address: 192.0.2.4, by the guest's own word",
        ]


async def test_a_share_that_is_not_there_is_told_once_with_the_cure(here: Path) -> None:
    why = "the guest's kernel has no virtiofs"
    script = Script({"shares": {"/local": why, "/secrets": why, "/alloc": ""}})
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t")
        await one.until(lambda: one.texts("lint"), "the event")
        script.note(shares={"/local": "x"})
        await asyncio.sleep(0.3)
        (text,) = one.texts("lint")
        assert text == (
            "lint: the guest has not mounted /local, /secrets (the guest's kernel has no virtiofs): "
            "it needs an image whose kernel has virtiofs, Linux 5.4 or newer"
        )


async def test_a_guest_that_boots_and_boots_and_shouts_is_not_told_of_for_ever(here: Path) -> None:
    script = Script({"boot_s": 1e300, "addresses": [f"10.0.0.{n}" for n in range(99)]})
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t")
        for number in range(8):
            await asyncio.sleep(0.2)
            script.facts["boot_id"] = f"\x1b[2J{number}\n" * 100
            assert script.writer is not None
            script.writer.write(wire.encode_json(wire.HELLO, 0, {"session": ""}))
        await asyncio.sleep(0.5)
        assert len(one.told) == 3
        assert all(len(text) < 200 and text.isprintable() for _, text in one.told)
    assert one.run("t").guest.stat().st_size < 10_000


async def test_a_guest_that_notes_a_new_boot_all_the_time_costs_few_events_and_few_writes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        writes.append(path)
        write_atomic(path, data)

    monkeypatch.setattr(known, "write_atomic", write)
    script = Script(on_open=lambda number, _: wire.encode_json(wire.EXITED, number, {"code": 0}))
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t")
        await one.until(lambda: one.told, "the agent")
        for number in range(100):
            script.note(boot_id=f"boot {number}", shares={"/local": "no"})
        await one.exec("t", "true")  # is answered after all that
        await asyncio.sleep(0.2)
        assert len(one.texts("agent ready")) == 3
        assert len(one.texts("lint")) == 3
        assert len(writes) < 10


# ---------------------------------------------------------------------------------------------------------------------
# without an agent, and with one that is hostile


async def test_who_has_no_agent_is_told_what_to_do_in_few_words(here: Path) -> None:
    async with played(here) as one:
        one.add("none", agent=False)
        silent = one.add("silent")
        for name, text in (("none", agents.NO_AGENT), ("silent", agents.SILENT)):
            with pytest.raises(NoAgentError) as refused:
                await one.exec(name, "true")
            assert str(refused.value) == text
            assert len(text.encode()) <= agents.NO_AGENT_BYTES
        ended(silent)
        with pytest.raises(HostError, match="the machine has ended"):
            await one.exec("silent", "true")


async def test_who_waits_for_an_agent_hears_of_every_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "AGENT_WAIT_S", 1.0)
    async with played(here) as one:
        late = one.add("late")
        waits = asyncio.ensure_future(one.agents.wait_for(late))
        with pytest.raises(LaunchError, match="no guest agent has answered within 1 s"):
            await waits
        over = one.add("over")
        waits = asyncio.ensure_future(one.agents.wait_for(over))
        await asyncio.sleep(0.1)
        ended(over, "guest panic: no init", 1)
        with pytest.raises(LaunchError, match="ended before its guest agent answered: guest panic: no init"):
            await waits
        gone = one.add("gone")
        waits = asyncio.ensure_future(one.agents.wait_for(gone))
        await asyncio.sleep(0.1)
        one.agents.drop("gone")
        with pytest.raises(LaunchError, match="the task was destroyed"):
            await waits
        fine = one.add("fine")
        await one.keep("fine", Script())
        await one.agents.wait_for(fine)


async def test_an_agent_that_goes_away_ends_its_commands_and_comes_back(here: Path) -> None:
    script = Script()
    async with played(here) as one:
        await one.keep("t", script)
        one.add("t")
        await one.until(lambda: one.told, "the agent")
        call = asyncio.ensure_future(one.exec("t", "sleep", "1000"))
        await one.until(lambda: any(frame.kind == wire.OPEN for frame in script.heard), "the command")
        assert script.writer is not None
        script.writer.close()
        with pytest.raises(AgentLostError, match="the connection to the guest agent was lost"):
            await call
        await one.until(lambda: script.sessions == 2, "the next session")


async def test_a_machine_that_ends_beneath_a_command(here: Path) -> None:
    script = Script()
    async with played(here) as one:
        await one.keep("t", script)
        task = one.add("t")
        await one.until(lambda: one.told, "the agent")
        call = asyncio.ensure_future(one.exec("t", "poweroff"))
        await one.until(lambda: any(frame.kind == wire.OPEN for frame in script.heard), "the command")
        assert script.writer is not None
        script.writer.close()
        await asyncio.sleep(0.1)
        ended(task)
        with pytest.raises(HostError, match="the machine has ended"):
            await call


async def test_an_agent_that_is_silent_is_given_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half open: it has answered once, and takes nothing and says nothing any more."""
    monkeypatch.setattr(session, "PING_S", 0.3)
    monkeypatch.setattr(session, "SILENCE_S", 1.0)

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (hello,) = wire.Decoder().feed(await reader.read(4096))
        assert isinstance(hello, wire.Frame)
        writer.write(wire.encode_json(wire.HELLO, 0, {**wire.json_of(hello), "boot_id": "b"}))
        await asyncio.Event().wait()

    async with played(here) as one:
        await one.keep("t", guest)
        one.add("t")
        await one.until(lambda: one.told, "the agent")
        with pytest.raises(AgentLostError, match="the guest agent has said nothing for 1 s"):
            await one.exec("t", "true")
        with pytest.raises(NoAgentError):
            await one.exec("t", "true")


def endless(piece: Callable[[str], bytes]) -> Any:
    """A guest that greets and then says the same for ever, as fast as it is read, and reads nothing."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (hello,) = wire.Decoder().feed(await reader.read(4096))
        assert isinstance(hello, wire.Frame)
        writer.write(wire.encode_json(wire.HELLO, 0, {**wire.json_of(hello), "boot_id": "b"}))
        data = piece(wire.json_of(hello)["session"])
        while True:
            writer.write(data)
            await writer.drain()

    return guest


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "bytes": lambda _: os.urandom(1 << 16),
    "no line ends": lambda _: b"\x01" * (1 << 16),
    "pongs": lambda _: wire.encode(wire.PONG) * 1000,
    "greetings": lambda _: wire.encode_json(wire.HELLO, 0, {"session": ""}) * 1000,
    "boots": lambda name: wire.encode_json(wire.HELLO, 0, {"session": name, "version": 1, "boot_id": "x"}) * 1000,
    "addresses": lambda _: b"".join(
        wire.encode_json(wire.NOTE, 0, {"addresses": [f"10.0.{n % 256}.{m}" for m in range(64)]}) for n in range(50)
    ),
    "output of nothing": lambda _: wire.encode_data(7, wire.STDOUT, bytes(30000)),
    "output without end": lambda _: wire.encode_data(1, wire.STDOUT, bytes(30000)),
    "credit": lambda _: wire.encode_credit(1, 0xFFFFFFFF) * 1000,
    "ends": lambda _: wire.encode_json(wire.EXITED, 1, {"code": 0}) * 1000,
}


async def test_hostile_guests_harm_themselves_alone(here: Path) -> None:
    """Ten at once, beside an agent that is well."""
    async with ready(here) as (one, _):
        threads = threading.active_count()
        for name, piece in HOSTILE.items():
            await one.keep(name, endless(piece))
            one.add(name)
        await asyncio.sleep(2.0)
        memory, calls, used, began = maxrss_kib(), 0, time.process_time(), time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < 10.0:
            asked = time.monotonic()
            assert (await one.exec("t", "echo", "well")).stdout == b"well\n"
            slowest = max(slowest, time.monotonic() - asked)
            for name in HOSTILE:
                with contextlib.suppress(VmError):
                    await one.exec(name, "true", timeout_s=0.05)
            calls += 1
        share = (time.process_time() - used) / (time.monotonic() - began)
        print(f"{calls} calls, slowest {slowest:.2f} s, {share:.0%} of a CPU, {maxrss_kib() - memory} KiB more")
        assert slowest < 5.0
        assert maxrss_kib() - memory < 32 << 10
        assert threading.active_count() < threads + 12
        assert len(one.told) < 60
        for name in HOSTILE:
            assert not one.run(name).guest.exists() or one.run(name).guest.stat().st_size < 20_000


def maxrss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_a_thousand_agents_cost_a_connection_and_little_else(here: Path) -> None:
    """The guests are played by a process of their own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs 4096 file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    count = 1000
    async with played(here) as one:
        for number in range(count):
            one.run(f"t{number}").root.mkdir()
        far = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.many_agents", str(here), str(count), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert far.stdout is not None
            assert await far.stdout.readline() == b"ready\n"
            memory, threads, files = maxrss_kib(), threading.active_count(), len(os.listdir("/proc/self/fd"))
            began, used = time.monotonic(), time.process_time()
            for number in range(count):
                one.add(f"t{number}", env={"A": "b"})
            await one.until(lambda: len(one.told) == count, "all agents", 60.0)
            took, start = time.monotonic() - began, time.process_time() - used
            assert len(os.listdir("/proc/self/fd")) <= files + count + 8
            await asyncio.sleep(16.0)  # the first reports are written
            began, used = time.monotonic(), time.process_time()
            await asyncio.sleep(15.0)
            share = (time.process_time() - used) / (time.monotonic() - began)
            print(
                f"{took:.1f} s and {start / count * 1e3:.2f} ms of CPU each to begin with, {share:.1%} of a CPU then, "
                f"{(maxrss_kib() - memory) / count:.1f} KiB each, {threading.active_count() - threads} threads"
            )
            assert share < 0.25
            assert threading.active_count() - threads < 20  # of a lane, and whoever waits for a disk
            assert maxrss_kib() - memory < count * 64
        finally:
            with contextlib.suppress(ProcessLookupError):
                far.send_signal(signal.SIGKILL)
            await far.wait()
    assert json.loads(one.run("t0").guest.read_text())["told_boot"] == "b1"
