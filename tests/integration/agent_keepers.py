"""A machine that is nothing but its guest's channel, for the plugin's end of the guest agent.

The keeper is played: it serves its control socket and hands each client over to whatever plays the guest, which is the
real agent as a process, or a test.
"""

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from driver._pb import driver_pb2 as pb
from driver.agents import Agents
from driver.execs import Execs
from driver.offload import Offload
from driver.store import Task
from tests.integration.guest_agent import AgentProcess, running_agent
from vmlib.guest import wire
from vmlib.guest.wire import Decoder, Frame
from vmlib.paths import RunPaths
from vmlib.record import ExitRecord

Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Played:
    """Tasks, the agents' links to them, and what was told."""

    base: Path
    agents: Agents = field(init=False)
    execs: Execs = field(init=False)
    told: list[tuple[str, str]] = field(default_factory=list)  # kind, text
    tasks: dict[str, Task] = field(default_factory=dict)
    keepers: list[asyncio.Server] = field(default_factory=list)
    learned: dict[str, tuple[str, ...]] = field(default_factory=dict)  # addresses that the links show, by task

    def __post_init__(self) -> None:
        self.offload = Offload()
        self.agents = Agents(self.offload, self._tell)
        self.execs = Execs(self.agents, self.tasks.__getitem__)

    def _tell(self, *event: object) -> None:
        _, text, kind = map(str, event)
        self.told.append((kind, text))

    def texts(self, kind: str) -> list[str]:
        return [text for one, text in self.told if one == kind]

    def run(self, name: str) -> RunPaths:
        return RunPaths(self.base / name)

    async def keep(self, name: str, guest: Guest) -> None:
        """Play that task's keeper; each client gets a guest."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = json.loads(await reader.readline())
            assert request["op"] == "agent"
            writer.write(b'{"ok": true}\n')
            try:
                await guest(reader, writer)
            except OSError:
                pass
            finally:
                writer.close()

        self.run(name).root.mkdir(exist_ok=True)
        self.run(name).control.unlink(missing_ok=True)
        self.keepers.append(await asyncio.start_unix_server(serve, str(self.run(name).control)))

    def add(self, name: str, *, env: dict[str, str] | None = None, nics: int = 0, agent: bool = True) -> Task:
        """A task that the plugin has started, or recovered."""

        def seen() -> tuple[SimpleNamespace, ...]:
            return (SimpleNamespace(addresses=self.learned.get(name, ())),)

        record = SimpleNamespace(agent=agent, nics=(None,) * nics, name=name)
        machine = SimpleNamespace(id=name, record=record, run=self.run(name), nics=seen, running=lambda: True)
        config = pb.TaskConfig(id=name, name=name, env=env or {})
        task = Task(config, cast(Any, machine), asyncio.get_running_loop().create_future(), time.time())
        self.tasks[name] = task
        self.agents.add(task)
        return task

    async def exec(self, name: str, *argv: str, timeout_s: float = 0) -> pb.ExecTaskResponse:
        request = pb.ExecTaskRequest(task_id=name, command=argv)
        request.timeout.FromNanoseconds(int(timeout_s * 1e9))
        return await self.execs.run(request)

    async def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; {self.told}"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.agents.close()
        for keeper in self.keepers:
            keeper.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def played(base: Path) -> AsyncIterator[Played]:
    one = Played(base)
    try:
        yield one
    finally:
        await one.close()


def ended(task: Task, message: str = "", exit_code: int = 0) -> None:
    task.ended.set_result(ExitRecord(id=task.id, at=time.time(), exit_code=exit_code, message=message))


@contextlib.asynccontextmanager
async def real_agent(one: Played, name: str, directory: Path) -> AsyncIterator[AgentProcess]:
    """The agent as a process behind that task's keeper; `directory` is its own, and there."""
    with running_agent(sys.executable, directory) as agent:
        far = await asyncio.open_connection(sock=_twin(agent.host.sock))

        async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far[1].write(b"\n")
            ways = [asyncio.ensure_future(_pass(reader, far[1])), asyncio.ensure_future(_pass(far[0], writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

        await one.keep(name, guest)
        try:
            yield agent
        finally:
            await one.close()
            far[1].close()
            await far[1].wait_closed()


def _twin(sock: socket.socket) -> socket.socket:
    twin = sock.dup()
    twin.setblocking(False)
    return twin


async def _pass(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        to.write(data)
        await to.drain()


def nothing(number: int, wanted: dict[str, Any]) -> bytes:
    return b""


@dataclass
class Script:
    """An agent in so many words: greets, answers pings, and does with a stream what `on_open` says."""

    facts: dict[str, Any] = field(default_factory=dict)
    on_open: Callable[[int, dict[str, Any]], bytes] = nothing
    sessions: int = 0
    heard: list[Frame] = field(default_factory=list)  # but for pings
    writer: asyncio.StreamWriter | None = None  # of the last client

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        decoder = Decoder()
        while data := await reader.read(1 << 16):
            for frame in decoder.feed(data):
                assert isinstance(frame, Frame)
                if frame.kind == wire.PING:
                    writer.write(wire.encode(wire.PONG))
                    continue
                self.heard.append(frame)
                if frame.kind == wire.HELLO:
                    self.sessions += 1
                    name = wire.json_of(frame)["session"]
                    writer.write(
                        wire.encode_json(wire.HELLO, 0, {"version": 1, "boot_id": "b1", **self.facts, "session": name})
                    )
                elif frame.kind == wire.OPEN:
                    writer.write(self.on_open(frame.stream, wire.json_of(frame)))
            await writer.drain()

    def note(self, **facts: Any) -> None:
        assert self.writer is not None
        self.writer.write(wire.encode_json(wire.NOTE, 0, facts))
