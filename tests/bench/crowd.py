"""Many fake machines on one plugin, and somebody who keeps the agent's calls open for each of them.

Run as `python -m tests.bench.crowd ADDRESS CALLS` it reads one task id a line, opens Fingerprint and for each task
those of WaitTask and TaskStats that are named (`wait`, `stats`), says `ready` once each task gave a sample, and at the
end of its input says how many samples came. It is a process of its own, so that what it receives does not stand in the
way of whoever measures.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from driver.devhost.client import PluginClient
from tests.bench.measure import say
from tests.fakes.plugin_client import FakeTask, Place, Plugin

_STARTS_AT_ONCE = 8
_READY_S = 60.0
_CHECKOUT = Path(__file__).resolve().parents[2]


async def start_crowd(plugin: Plugin, place: Place, count: int) -> list[FakeTask]:
    """Start that many machines whose guests stay up."""
    say(f"{count} fake machines")
    tasks = [FakeTask(place) for _ in range(count)]
    starts = asyncio.Semaphore(_STARTS_AT_ONCE)

    async def start(task: FakeTask) -> None:
        task.make()
        async with starts:
            await plugin.client.start_task(task.config())

    await asyncio.gather(*map(start, tasks))
    return tasks


@contextlib.contextmanager
def calls_open(plugin: Plugin, tasks: Sequence[FakeTask], *, calls: str = "wait,stats") -> Iterator[None]:
    """Fingerprint, and those calls for each task, open and answered. Raises when one of them failed."""
    argv = [sys.executable, "-m", "tests.bench.crowd", plugin.address, calls]
    ids = "".join(f"{task.id}\n" for task in tasks)
    with subprocess.Popen(argv, cwd=_CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{ids}\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a call of the crowd failed before all were open")
        yield
        process.stdin.close()
        samples = process.stdout.readline()
    if process.returncode != 0:
        raise RuntimeError(f"a call of the crowd failed: exit code {process.returncode}")
    if "stats" in calls:
        say(f"no call failed, {samples.strip()} samples of TaskStats came")


async def main(address: str, kinds: Sequence[str], tasks: Sequence[str]) -> None:
    client = PluginClient(address)
    counts = dict.fromkeys(tasks, 0)
    all_sampled = asyncio.Event()

    async def read(task: str) -> None:
        async for _ in client.task_stats(task):
            counts[task] += 1
            if all(counts.values()):
                all_sampled.set()

    async def wait(task: str) -> None:
        await client.wait_task(task)

    async def read_fingerprints() -> None:
        async for _ in client.fingerprint():
            pass

    calls: list[asyncio.Future[Any]] = [asyncio.create_task(read_fingerprints())]
    if "wait" in kinds:
        calls += [asyncio.create_task(wait(task)) for task in tasks]
    if "stats" in kinds:
        calls += [asyncio.create_task(read(task)) for task in tasks]
    else:
        all_sampled.set()
    await _none_ends(calls, before=asyncio.create_task(asyncio.wait_for(all_sampled.wait(), _READY_S)))
    print("ready", flush=True)
    await _none_ends(calls, before=asyncio.get_running_loop().run_in_executor(None, sys.stdin.read))
    print(sum(counts.values()), flush=True)


async def _none_ends(calls: Sequence["asyncio.Future[Any]"], *, before: "asyncio.Future[Any]") -> None:
    """Wait for `before`. Raises when one of the calls ends first: none of them should."""
    await asyncio.wait([*calls, before], return_when=asyncio.FIRST_COMPLETED)
    for call in calls:
        if call.done():
            raise RuntimeError(f"a call ended: {call}")
    before.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2].split(","), list(iter(lambda: sys.stdin.readline().strip(), ""))))
