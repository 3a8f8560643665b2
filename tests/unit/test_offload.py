"""Lanes of threads: what waits in one keeps nobody else waiting."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from driver.offload import Lane, Offload, Width

SOON_S = 0.01


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a call that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


async def test_calls_that_hang_give_their_turns_to_others(gate: threading.Event) -> None:
    lane = Lane(Width(turns=2, patience_s=SOON_S, threads=8), name="test")
    hung = [asyncio.create_task(lane.run(gate.wait)) for _ in range(7)]
    assert await lane.run(lambda: "done") == "done"
    assert not any(one.done() for one in hung)
    gate.set()
    assert await asyncio.gather(*hung) == [True] * 7


async def test_no_more_than_its_turns_run_while_they_are_quick(gate: threading.Event) -> None:
    lane = Lane(Width(turns=2, patience_s=3600.0, threads=8), name="test")
    started: list[int] = []
    starts = threading.Semaphore(0)

    def call(number: int) -> None:
        started.append(number)
        starts.release()
        gate.wait()

    calls = [asyncio.create_task(lane.run(partial(call, number))) for number in range(5)]
    for _ in range(2):
        await asyncio.to_thread(starts.acquire)
    await asyncio.sleep(SOON_S)
    assert sorted(started) == [0, 1]
    gate.set()
    await asyncio.gather(*calls)
    assert sorted(started) == [0, 1, 2, 3, 4]


async def test_a_turn_is_given_back_once_whatever_became_of_its_call() -> None:
    lane = Lane(Width(turns=1, patience_s=3600.0, threads=4), name="test")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 / 0)
    inside, most, lock = 0, 0, threading.Lock()

    def count() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.001)
        with lock:
            inside -= 1

    await asyncio.gather(*(lane.run(count) for _ in range(10)))
    assert most == 1


async def test_a_caller_that_gives_up_takes_no_turn_along(gate: threading.Event) -> None:
    lane = Lane(Width(turns=1, patience_s=3600.0, threads=4), name="test")
    entered = threading.Event()

    def hang() -> None:
        entered.set()
        gate.wait()

    hung = asyncio.create_task(lane.run(hang))
    await asyncio.to_thread(entered.wait)
    waits = asyncio.create_task(lane.run(lambda: "never"))
    await asyncio.sleep(0)
    for one in (waits, hung):
        one.cancel()
    await asyncio.gather(waits, hung, return_exceptions=True)
    assert await lane.run(lambda: "done") == "done"


async def test_one_kind_of_work_does_not_wait_for_another(gate: threading.Event) -> None:
    offload = Offload()
    hung = [asyncio.create_task(offload("probe", gate.wait)) for _ in range(20)]
    assert await offload("stop", lambda: "done") == "done"
    gate.set()
    await asyncio.gather(*hung)
