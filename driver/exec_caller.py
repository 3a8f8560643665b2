"""Who has called ExecTaskStreaming: what it types, its terminal, and whether it is still there."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from driver._pb import driver_pb2 as pb
from driver.errors import AgentLostError
from vmlib.guest.wire import MAX_PAYLOAD

Request = pb.ExecTaskStreamingRequest

# Nomad's client says that it lives every ten seconds, and nothing else tells when it does not: see `Caller.gone`.
SILENCE_S = 30.0
_AHEAD = 1 << 20  # bytes that are read and not typed yet
_AT_ONCE = MAX_PAYLOAD - 1  # bytes; as many fit into a frame
_REQUEST = 512  # bytes that one costs, whatever is in it


class Typed(Protocol):
    """Where it goes what a caller types."""

    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None: ...

    async def resize(self, rows: int, cols: int) -> None: ...

    def fail(self, why: Exception) -> None: ...


class Caller:
    """Reads ahead of what is typed, so that a command that takes no input does not hide that its caller is gone.

    Beyond `_AHEAD` bytes nothing is read, so nothing is known of the caller either, until the command takes some or
    says something.
    """

    def __init__(self, requests: AsyncIterator[Request], first: Request) -> None:
        self._requests = requests
        self._inbox: deque[Request] = deque([first])
        self._waiting = _weight(first)  # bytes
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._gone: Callable[[], None] | None = None
        self._is_gone = False
        self._listening = asyncio.create_task(self._listen(), name="exec caller")

    async def first_size(self, timeout_s: float) -> tuple[int, int] | None:
        """Rows and columns that the caller's terminal has from the beginning, which it says right after its call."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not any(map(_size, self._inbox)) and not self._ended and len(self._inbox) < 2:
                    self._more.clear()
                    await self._more.wait()
        return next(filter(None, map(_size, self._inbox)), None)

    async def type_into(self, to: Typed) -> None:
        """Pass on all that comes, until it ends. Whoever is typed into fails when the caller is gone."""

        def gone() -> None:
            to.fail(AgentLostError(f"nothing has come from the caller for {SILENCE_S:.0f} s"))

        self._gone = gone
        if self._is_gone:
            gone()
        try:
            open_ = True
            while (request := await self._next()) is not None:
                if (size := _size(request)) is not None:
                    await to.resize(*size)
                if open_ and (data := request.stdin.data):
                    await to.write(data if request.stdin.close else data + self._more_input(_AT_ONCE - len(data)))
                if open_ and request.stdin.close:
                    open_ = False
                    await to.end_input()
            if open_:
                await to.end_input()
        except Exception as exc:  # whoever reads its output is told
            to.fail(exc)
            raise

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    def _more_input(self, most: int) -> bytes:
        """What else was typed and waits: it comes in small pieces, each of which would cost the guest time."""
        found = []
        while self._inbox:
            stdin = self._inbox[0].stdin
            if self._inbox[0].HasField("tty_size") or stdin.close or len(stdin.data) > most:
                break
            found.append(stdin.data)
            most -= len(stdin.data)
            self._forget(self._inbox.popleft())
        return b"".join(found)

    async def _next(self) -> Request | None:
        while not self._inbox:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        request = self._inbox.popleft()
        self._forget(request)
        return request

    def _forget(self, request: Request) -> None:
        self._waiting -= _weight(request)
        self._room.set()

    async def _listen(self) -> None:
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    request = await anext(self._requests)
                if request.HasField("stdin") or request.HasField("tty_size"):  # else it only says that it lives
                    self._inbox.append(request)
                    self._waiting += _weight(request)
                    self._more.set()
                while self._waiting > _AHEAD:
                    self._room.clear()
                    await self._room.wait()
        except StopAsyncIteration:  # it types no more, and shall not be heard of
            pass
        except TimeoutError:
            self._is_gone = True
            if self._gone is not None:
                self._gone()
        finally:
            self._ended = True
            self._more.set()


def _weight(request: Request) -> int:
    return _REQUEST + len(request.stdin.data)


def _size(request: Request) -> tuple[int, int] | None:
    size = request.tty_size
    return (size.height, size.width) if 0 < size.height < 65536 and 0 < size.width < 65536 else None
