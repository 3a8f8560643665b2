"""Events on their way to Nomad."""

import asyncio
from collections.abc import AsyncIterator

from driver.events import EventHub, TaskEvent
from driver.state import task_event


def event(number: int) -> TaskEvent:
    return TaskEvent(task_id="i", alloc_id="a", task_name="t", message=str(number), at=1.5, annotations={"kind": "k"})


async def take(stream: AsyncIterator[TaskEvent], count: int) -> list[str]:
    return [(await asyncio.wait_for(anext(stream), 1)).message for _ in range(count)]


def test_every_stream_gets_every_event_and_a_first_one_what_came_before_it() -> None:
    async def run() -> None:
        hub = EventHub()
        hub.publish(event(1))
        first = hub.stream()
        assert await take(first, 1) == ["1"]
        second = hub.stream()
        waiting = asyncio.create_task(take(second, 1))
        await asyncio.sleep(0.01)  # until it waits
        hub.publish(event(2))
        assert await take(first, 1) == ["2"]
        assert await waiting == ["2"]

    asyncio.run(run())


def test_a_stream_that_is_not_read_loses_its_oldest_and_not_our_memory() -> None:
    async def run() -> None:
        hub = EventHub()
        stream = hub.stream()
        hub.publish(event(0))
        assert await take(stream, 1) == ["0"]
        for number in range(1, 1502):
            hub.publish(event(number))
        assert await take(stream, 1) == ["502"]

    asyncio.run(run())


def test_an_event_reaches_nomad_with_its_time_and_its_kind() -> None:
    message = task_event(event(3))
    assert (message.task_id, message.alloc_id, message.task_name, message.message) == ("i", "a", "t", "3")
    assert (message.timestamp.seconds, message.timestamp.nanos) == (1, 500_000_000)
    assert dict(message.annotations) == {"kind": "k"}
