"""A full node: InspectTask while the agent's calls are open for every machine, and what a task costs the plugin."""

import asyncio
from collections.abc import Sequence
from itertools import cycle

from tests.bench.crowd import calls_open, start_crowd
from tests.bench.measure import Line, Settings, in_turns_async, line, percentile, pss_bytes, say
from tests.bench.recover import inspect_s
from tests.fakes.plugin_client import FakeTask, Plugin, place_at, plugin_at

_CALLS = 200  # a round; p99 of fewer would be the slowest one
_PAUSE_S = 0.005


def run(settings: Settings) -> list[Line]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> list[Line]:
    count = settings.machines
    with place_at(settings.directory("one")) as lonely, place_at(settings.directory("many")) as crowded:
        async with plugin_at(settings.chv, lonely) as single, plugin_at(settings.chv, crowded) as plugin:
            (alone,) = await start_crowd(single, lonely, 1)
            tasks = await start_crowd(plugin, crowded, count)
            with calls_open(single, [alone]), calls_open(plugin, tasks):
                say(f"InspectTask, {settings.pairs} rounds of {_CALLS} calls")
                turns = cycle(tasks)
                measures = [lambda: calm_inspect_s(single, alone), lambda: calm_inspect_s(plugin, next(turns))]
                rounds = [await in_turns_async(measures, pairs=_CALLS) for _ in range(settings.pairs)]
                memory = [pss_bytes(one.pid) for one in (single, plugin)]
    compared = f"InspectTask on a node with {count} machines, WaitTask and TaskStats open for each / the same with one"
    lines = [
        line(
            f"InspectTask p{percent}",
            f"{compared}; p{percent} of {_CALLS} calls",
            ours=[percentile(ours, percent) for _, ours in rounds],
            baseline=[percentile(baseline, percent) for baseline, _ in rounds],
        )
        for percent in (50, 99)
    ]
    return [*lines, *_memory(memory, count)]


async def calm_inspect_s(plugin: Plugin, task: FakeTask) -> float:
    """One call, with time between it and the one before: a round meets every task's samples."""
    await asyncio.sleep(_PAUSE_S)
    return await inspect_s(plugin, task.id)


def _memory(memory: Sequence[int], count: int) -> list[Line]:
    if count < 2:
        return []
    one, many = memory
    return [
        line(
            "plugin memory, per task",
            f"PSS of the plugin with {count} tasks less that with one, divided by {count - 1} / PSS with one",
            ours=[(many - one) / (count - 1)],
            baseline=[one],
            unit="bytes",
        )
    ]
