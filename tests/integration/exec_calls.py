"""Calls of ExecTaskStreaming, as Nomad's client makes them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import PluginClient
from tests.integration.nodes import PATIENCE_S

Request = pb.ExecTaskStreamingRequest


@dataclass
class Call:
    """One ExecTaskStreaming, as Nomad's client makes it."""

    client: PluginClient
    task_id: str
    argv: list[str]
    tty: bool = False
    size: tuple[int, int] | None = None
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        setup = Request.Setup(task_id=self.task_id, command=self.argv, tty=self.tty)
        self._requests.put_nowait(Request(setup=setup))
        if self.size:
            self.resize(*self.size)
        self.answers = self.client.exec_task_streaming(self._said())

    async def _said(self) -> AsyncIterator[Request]:
        while True:
            request = Request()  # that it lives
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10.0):
                    request = await self._requests.get()
            yield request

    def type(self, data: bytes) -> None:
        for at in range(0, len(data), 2048):
            self._requests.put_nowait(Request(stdin=pb.ExecTaskStreamingIOOperation(data=data[at : at + 2048])))

    def end_input(self) -> None:
        self._requests.put_nowait(Request(stdin=pb.ExecTaskStreamingIOOperation(close=True)))

    def resize(self, rows: int, cols: int) -> None:
        self._requests.put_nowait(Request(tty_size=Request.TerminalSize(height=rows, width=cols)))

    async def step(self) -> pb.ExitResult | None:
        answer = await anext(self.answers)
        self.out += answer.stdout.data
        self.err += answer.stderr.data
        return answer.result if answer.exited else None

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while text not in self.out:
                assert await self.step() is None, (bytes(self.out), bytes(self.err))

    async def end(self) -> int:
        """Its exit code; nothing comes after it."""
        async with asyncio.timeout(10 * PATIENCE_S):
            while (result := await self.step()) is None:
                pass
            with pytest.raises(StopAsyncIteration):
                await anext(self.answers)
        return int(result.exit_code)
