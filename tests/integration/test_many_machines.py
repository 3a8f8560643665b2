"""A full node: many machines on one plugin, each with the calls open that an agent keeps open, and no call fails."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from tests import leftovers
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at
from vmlib.paths import run_key

MACHINES = int(os.environ.get("CHV_TEST_MACHINES", "200"))
STARTS_AT_ONCE = 8
# Of the guest's own time, which stands still while it is paused: time enough for the pause to come.
GUEST_SLEEPS_S = 8
PATIENCE_S = 120.0


@dataclass(slots=True)
class End:
    """How a machine is to end, and what WaitTask has to say of it."""

    kind: str
    exit_code: int = 0
    signal: int = 0


def end_of(index: int) -> End:
    match index % 10:
        case 0:
            return End("kill", exit_code=128 + signal.SIGKILL, signal=signal.SIGKILL)
        case 1:
            return End("stop")
        case _:
            return End("exit", exit_code=index % 256)


async def first_sample(plugin: Plugin, task: FakeTask) -> int:
    """Bytes of memory in the task's first sample."""
    async with aclosing(plugin.client.task_stats(task.id)) as samples:
        async for sample in samples:
            assert sample.id == task.id
            return int(sample.agg_resource_usage.memory.rss)
    raise AssertionError(f"the stats of {task.id} ended without a sample")


async def run_many(chv: Path, place: Place, tasks: Sequence[FakeTask]) -> None:
    async with plugin_at(chv, place) as plugin:
        client = plugin.client
        fingerprint = client.fingerprint()
        assert (await anext(fingerprint)).health_description
        more_fingerprints = asyncio.ensure_future(anext(fingerprint))
        starts = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(task: FakeTask) -> None:
            async with starts:
                await client.start_task(task.config())
                await client.signal_task(task.id, "SIGSTOP")

        await asyncio.gather(*map(start, tasks))
        waits = [asyncio.create_task(client.wait_task(task.id)) for task in tasks]
        samples = await asyncio.gather(*(first_sample(plugin, task) for task in tasks))
        assert all(rss > 1 << 20 for rss in samples)
        statuses = await asyncio.gather(*(client.inspect_task(task.id) for task in tasks))
        assert [status.task.id for status in statuses] == [task.id for task in tasks]
        assert len({status.driver.attributes["pid"] for status in statuses}) == MACHINES
        assert not any(wait.done() for wait in waits)

        async def end(task: FakeTask, how: End) -> None:
            match how.kind:
                case "kill":
                    await client.signal_task(task.id, "SIGKILL")
                case "stop":
                    await client.stop_task(task.id, timeout_s=60)
                case _:
                    await client.signal_task(task.id, "SIGCONT")

        ends = [end_of(index) for index in range(MACHINES)]
        await asyncio.gather(*map(end, tasks, ends))
        results = [answer.result for answer in await asyncio.gather(*waits)]
        assert [(one.exit_code, one.signal) for one in results] == [(one.exit_code, one.signal) for one in ends]

        await asyncio.gather(*(client.destroy_task(task.id) for task in tasks))
        if more_fingerprints.done():
            more_fingerprints.result()  # raises when the stream has ended
        more_fingerprints.cancel()
        worse = [line for line in plugin.complaints() if "[ERROR]" in line]
        assert worse == []


def test_a_full_node_answers_every_call_and_leaves_nothing(chv: Path, short_dir: Path) -> None:
    place = Place(base=short_dir)
    tasks = [FakeTask(place, words=f"sleep={GUEST_SLEEPS_S} exit={index % 256}") for index in range(MACHINES)]
    ours = {run_key(task.id) for task in tasks}

    def of_another_run(found: str) -> bool:
        """So many machines take long enough for the groups of a run beside this one to come."""
        return found.startswith("cgroups: ") and ours.isdisjoint(found.split("/"))

    with place_at(short_dir) as place:
        for task in tasks:
            task.make()
        with leftovers.none_left(run_dir=place.layout.run_dir, data_dir=place.layout.data_dir, ignore=of_another_run):
            asyncio.run(asyncio.wait_for(run_many(chv, place, tasks), PATIENCE_S))
