"""How long an agent waits for its tasks when the plugin was killed: RecoverTask and WaitTask for each of a hundred."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from driver._pb import driver_pb2 as pb
from tests.bench.crowd import start_crowd
from tests.bench.measure import Line, Settings, line
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at

_ROUND_TRIPS = 50


def run(settings: Settings) -> list[Line]:
    return [asyncio.run(_run(settings))]


async def _run(settings: Settings) -> Line:
    count = min(100, settings.machines)
    with place_at(settings.directory("recover")) as place:
        async with plugin_at(settings.chv, place) as plugin:
            tasks = await start_crowd(plugin, place, count)
            handles = await asyncio.gather(*(handle_of(plugin, task) for task in tasks))
            await plugin.kill()
        rounds = [await recover(settings, place, handles) for _ in range(1 + settings.pairs)][1:]
    return line(
        "recover, per task",
        f"RecoverTask and WaitTask for {count} machines at once, divided by {count} / one InspectTask",
        ours=[whole_s / count for whole_s, _ in rounds],
        baseline=[round_trip_s for _, round_trip_s in rounds],
    )


async def handle_of(plugin: Plugin, task: FakeTask) -> pb.TaskHandle:
    """What the agent keeps: a second StartTask with the same id gives it again."""
    return (await plugin.client.start_task(task.config())).handle


async def recover(settings: Settings, place: Place, handles: Sequence[pb.TaskHandle]) -> tuple[float, float]:
    """A new plugin, killed at the end. Seconds until all machines are its own again, and of one round trip."""
    async with plugin_at(settings.chv, place) as plugin:
        client = plugin.client
        begin = time.perf_counter()
        await asyncio.gather(*map(client.recover_task, handles))
        waits = [asyncio.create_task(client.wait_task(handle.config.id)) for handle in handles]
        # Answered after the calls before it were taken up; at once when a WaitTask was refused.
        await asyncio.gather(*(client.inspect_task(handle.config.id) for handle in handles[-1:]))
        whole_s = time.perf_counter() - begin
        round_trip_s = statistics.median([await inspect_s(plugin, handles[0].config.id) for _ in range(_ROUND_TRIPS)])
        if ended := [wait for wait in waits if wait.done()]:
            raise RuntimeError(f"{len(ended)} of {len(waits)} WaitTask calls ended: {ended[0]}")
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await plugin.kill()
    return whole_s, round_trip_s


async def inspect_s(plugin: Plugin, task_id: str) -> float:
    """One round trip of InspectTask, which Nomad never makes: what the plugin knows, without a look at the machine."""
    begin = time.perf_counter()
    await plugin.client.inspect_task(task_id)
    return time.perf_counter() - begin
