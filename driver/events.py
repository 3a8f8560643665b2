"""Task events on their way to Nomad: from whoever has one to every open TaskEvents stream."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

# What waits for a first stream: Nomad opens it right after the handshake and shows ten events a task.
_BACKLOG = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One line in `nomad alloc status`."""

    task_id: str
    alloc_id: str
    task_name: str
    message: str
    at: float = field(default_factory=time.time)  # seconds since the epoch
    annotations: dict[str, str] = field(default_factory=dict)


class EventHub:
    """Gives every event to all streams; keeps those that came while there was none."""

    def __init__(self) -> None:
        self._streams: list[asyncio.Queue[TaskEvent]] = []
        self._backlog: deque[TaskEvent] = deque(maxlen=_BACKLOG)

    def publish(self, event: TaskEvent) -> None:
        if not self._streams:
            self._backlog.append(event)
        for queue in self._streams:
            if queue.full():
                queue.get_nowait()  # a stream that is not read loses its oldest, never our memory
            queue.put_nowait(event)

    async def stream(self) -> AsyncIterator[TaskEvent]:
        """Never ends by itself: Nomad would call again at once, a thousand times a second."""
        queue: asyncio.Queue[TaskEvent] = asyncio.Queue(_BACKLOG)
        while self._backlog:
            queue.put_nowait(self._backlog.popleft())
        self._streams.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._streams.remove(queue)
