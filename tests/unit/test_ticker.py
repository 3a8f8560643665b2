"""One clock for all streams of numbers."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from itertools import count, pairwise

import pytest

from driver.ticker import Stream, Ticker


class Work:
    """Where the ticker's work goes: done at once, and counted."""

    def __init__(self) -> None:
        self.jobs = 0
        self.fails = False

    async def __call__(self, work: Callable[[], list[int | None]]) -> list[int | None]:
        self.jobs += 1
        if self.fails:
            raise RuntimeError("no thread")
        return work()


async def collect(ticker: Ticker[int], take: Callable[[], int | None], *, many: int, interval_s: float) -> list[float]:
    """When so many came, in seconds of the loop."""
    at = []
    with ticker.stream(take, interval_s) as stream:
        async for _ in stream:
            at.append(asyncio.get_running_loop().time())
            if len(at) == many:
                break
    return at


async def until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


async def test_all_streams_get_theirs_and_few_jobs_are_made_for_them() -> None:
    work = Work()
    ticker = Ticker(work)
    takers = [count() for _ in range(500)]
    begin = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        times = await asyncio.gather(
            *(collect(ticker, lambda one=one: next(one), many=3, interval_s=0.5) for one in takers)  # type: ignore[misc]
        )
    spent_s = asyncio.get_running_loop().time() - begin
    assert all(len(one) == 3 for one in times)
    assert all(next(one) <= 4 for one in takers)  # nobody is asked oftener than its interval says
    assert work.jobs <= spent_s / 0.02 + 500 / 64 + 5


async def test_streams_that_began_together_come_apart_and_keep_their_interval() -> None:
    """Told by when they are due: when their numbers arrive is the machine's to say."""
    ticker, interval_s = Ticker(Work()), 0.4
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(ticker.stream(lambda: 1, interval_s)) for _ in range(8)]
        begin = streams[0].due
        async with asyncio.timeout(10):
            await asyncio.gather(*(anext(aiter(one)) for one in streams))
            await until(lambda: all(one.due >= begin + interval_s / 2 for one in streams))
            first = [one.due for one in streams]
            await asyncio.gather(*(anext(aiter(one)) for one in streams))
            await until(lambda: all(one.due > due for one, due in zip(streams, first, strict=True)))
    phases = sorted(due % interval_s for due in first)
    gaps = [later - earlier for earlier, later in pairwise([*phases, phases[0] + interval_s])]
    assert max(gaps) < interval_s / 3
    for one, due in zip(streams, first, strict=True):
        turns = (one.due - due) / interval_s
        assert turns > 0.99
        assert abs(turns - round(turns)) < 1e-6


async def test_one_that_fails_or_has_nothing_ends_neither_itself_nor_another(caplog: pytest.LogCaptureFixture) -> None:
    ticker = Ticker(Work())
    turns = count()

    def sometimes() -> int | None:
        match next(turns) % 3:
            case 0:
                raise OSError("unreadable")
            case 1:
                return None
        return 1

    with caplog.at_level(logging.WARNING):
        async with asyncio.timeout(10):
            await asyncio.gather(
                collect(ticker, sometimes, many=2, interval_s=0.1), collect(ticker, lambda: 1, many=6, interval_s=0.1)
            )
    assert len(caplog.records) == 1  # a stream complains once


async def test_work_that_cannot_be_done_now_is_done_later() -> None:
    work = Work()
    ticker = Ticker(work)
    work.fails = True
    following = asyncio.create_task(collect(ticker, lambda: 1, many=2, interval_s=0.1))
    async with asyncio.timeout(10):
        await until(lambda: work.jobs >= 3)
        assert not following.done()
        work.fails = False
        await following


async def test_a_slow_receiver_gets_the_newest_and_holds_nobody_up() -> None:
    ticker = Ticker(Work())
    numbers = count()
    with ticker.stream(lambda: next(numbers), 0.1) as stream:
        async with asyncio.timeout(10):
            await asyncio.gather(collect(ticker, lambda: 1, many=8, interval_s=0.1))
            assert await anext(aiter(stream)) >= 4


async def test_nobody_works_while_no_stream_is_open() -> None:
    work = Work()
    ticker = Ticker(work)
    for _ in range(2):  # it begins again for the next one
        await collect(ticker, lambda: 1, many=1, interval_s=0.1)
        await asyncio.sleep(0.3)
        before = work.jobs
        await asyncio.sleep(0.3)
        assert work.jobs == before


async def test_a_stream_that_is_ended_gives_nothing_more() -> None:
    ticker = Ticker(Work())
    with ticker.stream(lambda: 1, 0.1) as stream:
        got = 0
        async with asyncio.timeout(10):
            async for _ in stream:
                got += 1
                if got == 2:
                    stream.put(1)
                    stream.end()
        assert got == 2


def test_a_stream_that_has_missed_its_time_is_not_asked_twice_at_once() -> None:
    stream = Stream(lambda: 1, 1.0, due=10.0, phase=0.5)
    stream.pass_on(10.0)
    assert stream.due == 11.0
    stream.pass_on(11.02)
    assert stream.due == 12.0
    stream.pass_on(15.3)
    assert stream.due == 16.0
