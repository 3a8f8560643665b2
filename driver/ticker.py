"""The one clock of all streams of numbers: however many are open, one timer runs and one thread works for them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_GRAIN_S = 0.02  # streams that are due within it are taken together; more would make other calls wait for them
_BATCH = 64  # as many at a time: their receivers are served in between
_GOLDEN = 0.6180339887498949  # multiples of it, less their whole part, are spread evenly, however many there are


class Stream(Generic[T]):
    """The newest of what one taker gave. A slow receiver misses some: old numbers are of no use to it."""

    def __init__(self, take: Callable[[], T | None], interval_s: float, due: float, phase: float) -> None:
        self.take = take
        self.interval_s = interval_s
        self.due = due
        self._phase: float | None = phase
        self._newest: T | None = None
        self._changed = asyncio.Event()
        self._ended = False
        self.complained = False

    def put(self, taken: T) -> None:
        self._newest = taken
        self._changed.set()

    def end(self, _: object = None) -> None:
        """No more comes."""
        self._ended = True
        self._changed.set()

    def pass_on(self, now: float) -> None:
        """Be due again: after the first time at a phase of its own, so that streams that began together come apart."""
        if self._phase is not None:
            self.due = now + self.interval_s * (0.5 + self._phase)
            self._phase = None
            return
        missed = max(0.0, now - self.due) // self.interval_s
        self.due += self.interval_s * (1 + missed)

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            newest, self._newest = self._newest, None
            if self._ended:
                return
            if newest is not None:
                yield newest


class Ticker(Generic[T]):
    """Has every open stream's taker called once in its interval, in the thread that `work` goes to."""

    def __init__(self, work: Callable[[Callable[[], list[T | None]]], Awaitable[list[T | None]]]) -> None:
        self._work = work
        self._streams: set[Stream[T]] = set()
        self._opened = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def stream(self, take: Callable[[], T | None], interval_s: float) -> Iterator[Stream[T]]:
        """Open as long as the block lasts; its first is taken at once. What `take` raises is logged and passed over."""
        self._opened += 1
        now = asyncio.get_running_loop().time()
        opened = Stream(take, interval_s, now, self._opened * _GOLDEN % 1)
        self._streams.add(opened)
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ticker")
        try:
            yield opened
        finally:
            self._streams.discard(opened)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop()
        while self._streams:
            self._news.clear()
            now = clock.time()
            due = [one for one in self._streams if one.due <= now]
            for begin in range(0, len(due), _BATCH):
                await self._serve(due[begin : begin + _BATCH])
            for one in due:
                one.pass_on(clock.time())
            if due:
                await asyncio.sleep(_GRAIN_S)
                continue
            next_due = min(one.due for one in self._streams)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_due):
                    await self._news.wait()
        self._task = None

    async def _serve(self, streams: Sequence[Stream[T]]) -> None:
        try:
            taken = await self._work(lambda: [_taken(one) for one in streams])
        except Exception:  # the top of a background task: without it no stream would ever get anything again
            log.exception("numbers could not be taken")
            return
        for one, newest in zip(streams, taken, strict=True):
            if newest is not None:
                one.put(newest)


def _taken(stream: Stream[T]) -> T | None:
    try:
        return stream.take()
    except Exception:  # one bad look ends no stream, and not the others' either
        log.log(logging.DEBUG if stream.complained else logging.WARNING, "a sample was left out", exc_info=True)
        stream.complained = True
        return None
