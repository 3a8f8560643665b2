"""Numbers for every task of a large node: what they cost the plugin, and what other calls feel of it."""

import asyncio
import os
import time
from itertools import cycle
from pathlib import Path

from tests.bench.crowd import calls_open, start_crowd
from tests.bench.full_node import calm_inspect_s
from tests.bench.measure import Line, Settings, expect_memory, line, percentile, say
from tests.fakes.plugin_client import FakeTask, Plugin, place_at, plugin_at

_CALLS = 400  # a phase
_PHASE_S = 4.0  # at least
_SETTLE_S = 1.5  # until the streams that were opened at once have come apart


def run(settings: Settings) -> list[Line]:
    expect_memory(settings.stats_machines)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> list[Line]:
    count = settings.stats_machines
    without: list[tuple[float, float]] = []
    streaming: list[tuple[float, float]] = []
    with place_at(settings.directory("stats")) as place:
        async with plugin_at(settings.chv, place) as plugin:
            tasks = await start_crowd(plugin, place, count)
            with calls_open(plugin, tasks, calls="wait"):
                say(f"InspectTask with and without streams, {settings.pairs} rounds")
                for _ in range(1 + settings.pairs):
                    without.append(await _phase(plugin, tasks))
                    with calls_open(plugin, tasks, calls="stats"):
                        streaming.append(await _phase(plugin, tasks))
    without, streaming = without[1:], streaming[1:]
    return [
        line(
            "stats, of a core",
            f"CPU time of the plugin for a TaskStats stream of each of {count} machines, a sample a second, less that "
            "without streams / all that one core has",
            ours=[ours - baseline for (ours, _), (baseline, _) in zip(streaming, without, strict=True)],
            baseline=[1.0] * settings.pairs,
            unit="share",
        ),
        line(
            "stats, InspectTask p99",
            f"InspectTask while these streams are open / while they are not; p99 of {_CALLS} calls",
            ours=[p99 for _, p99 in streaming],
            baseline=[p99 for _, p99 in without],
        ),
    ]


async def _phase(plugin: Plugin, tasks: list[FakeTask]) -> tuple[float, float]:
    """The plugin's share of a core, and p99 of a call."""
    await asyncio.sleep(_SETTLE_S)
    turns = cycle(tasks)
    before, begin = _cpu_s(plugin.pid), time.monotonic()
    taken = [await calm_inspect_s(plugin, next(turns)) for _ in range(_CALLS)]
    await asyncio.sleep(begin + _PHASE_S - time.monotonic())
    return (_cpu_s(plugin.pid) - before) / (time.monotonic() - begin), percentile(taken, 99)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
