"""Where blocking work goes: bounded threads, one kind apart from the other, so that none waits for another's kind."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LaneName = Literal["image", "start", "remote", "recover", "keep", "ask", "stop", "stats", "probe", "cores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """`turns` calls at once, so that many quick ones do not crowd the host. One that outlasts `patience_s` waits for
    something that may hang, and costs nothing meanwhile: it keeps its thread and gives its turn to the next one.
    """

    turns: int
    patience_s: float = math.inf
    threads: int = 0  # at most; 0: one for each turn

    @property
    def most_threads(self) -> int:
        return self.threads or self.turns


# A thread is made when there is no idle one: these bounds cost nothing on a node where nothing hangs. A machine has at
# most three calls to its VMM under way (a press, `quit`, a signal: task_driver.py), each with a limit of its own: it
# takes 170 machines that all hang at once until another one's call waits for theirs.
_WIDTHS: dict[LaneName, Width] = {
    "image": Width(turns=8),  # minutes each, when they have to be unpacked
    "start": Width(turns=8, patience_s=5.0, threads=128),  # a VMM that hangs at its boot costs a minute
    "remote": Width(turns=8, patience_s=5.0, threads=128),  # starts with files on a server, which may be silent
    "recover": Width(turns=4),
    "keep": Width(turns=8, patience_s=1.0, threads=256),  # keepers that hang, or a machine that is being taken back
    "ask": Width(turns=16, patience_s=0.25, threads=512),  # a running VMM, which may hang
    "stop": Width(turns=16, patience_s=0.25, threads=512),  # without its VMM's help
    "stats": Width(turns=2),
    "probe": Width(turns=2),
    "cores": Width(turns=1),
}


class Offload:
    """Runs synchronous functions beside the event loop."""

    def __init__(self) -> None:
        self._lanes = {name: Lane(width, name=name) for name, width in _WIDTHS.items()}

    async def __call__(self, lane: LaneName, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._lanes[lane].run(lambda: func(*args, **kwargs))


class Lane:
    """Threads for one kind of work."""

    def __init__(self, width: Width, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(width.most_threads, thread_name_prefix=f"chv-{name}")
        self._turns = asyncio.Semaphore(width.turns)
        self._patience_s = width.patience_s

    async def run(self, func: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        await self._turns.acquire()
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._turns.release()

        impatience = None if math.isinf(self._patience_s) else loop.call_later(self._patience_s, give_back)
        try:
            return await loop.run_in_executor(self._pool, func)
        finally:
            if impatience is not None:
                impatience.cancel()
            give_back()
