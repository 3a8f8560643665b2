"""Where blocking work goes: bounded threads, one kind apart from the other, so that none waits for another's kind."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Lane = Literal["image", "start", "remote", "recover", "keep", "stop", "vmm", "stats", "probe", "cores"]
_THREADS: dict[Lane, int] = {
    "image": 8,  # minutes each, when they have to be unpacked
    "start": 8,
    "remote": 8,  # starts of machines with files on a server, which may be silent
    "recover": 4,
    "keep": 8,
    "stop": 16,
    "vmm": 64,  # what is asked of running VMMs: one that hangs holds its thread for seconds, again and again
    "stats": 2,
    "probe": 2,
    "cores": 1,
}


class Offload:
    """Runs synchronous functions beside the event loop."""

    def __init__(self) -> None:
        self._lanes = {
            lane: ThreadPoolExecutor(threads, thread_name_prefix=f"chv-{lane}") for lane, threads in _THREADS.items()
        }

    async def __call__(self, lane: Lane, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._lanes[lane], lambda: func(*args, **kwargs))
