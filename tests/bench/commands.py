"""The command line on a full node: doctor, ps and inspect with many machines, none of which may make them slow."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from tests.bench.crowd import start_crowd
from tests.bench.measure import Line, Settings, expect_memory, in_turns, line, say
from tests.fakes.plugin_client import FakeTask, Place, place_at, plugin_at

_COMMANDS = ("ps", "inspect", "doctor")


def run(settings: Settings) -> list[Line]:
    expect_memory(settings.stats_machines)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> list[Line]:
    count = settings.stats_machines
    with place_at(settings.directory("cmd1")) as lonely, place_at(settings.directory("cmds")) as crowded:
        async with plugin_at(settings.chv, lonely) as single, plugin_at(settings.chv, crowded) as plugin:
            alone = await start_crowd(single, lonely, 1)
            tasks = await start_crowd(plugin, crowded, count)
            lines = []
            for command in _COMMANDS:
                say(f"chv {command}, {settings.pairs} rounds")
                measures = [_bare_s, _timed(settings.chv, lonely, command, alone),
                            _timed(settings.chv, crowded, command, tasks)]  # fmt: skip
                lines += _lines(command, count, await asyncio.to_thread(in_turns, measures, pairs=settings.pairs))
    return lines


def _lines(command: str, count: int, measured: Sequence[Sequence[float]]) -> list[Line]:
    bare, one, many = measured
    return [
        line(f"chv {command}", f"the command with {count} machines / with one", ours=many, baseline=one),
        line(f"chv {command}, bare", f"the same with {count} machines / a bare interpreter", ours=many, baseline=bare),
    ]


def _bare_s() -> float:
    return _taken_s([sys.executable, "-I", "-c", "print()"], dict(os.environ))


def _timed(chv: Path, place: Place, command: str, tasks: Sequence[FakeTask]) -> Callable[[], float]:
    """From the start of that command to its end, about another machine each time."""
    agent_file = place.base / "agent.hcl"
    # An agent on this machine is another's: a port at which nobody is.
    agent_file.write_text(
        f'ports {{\n  http = 1\n}}\nplugin "chv" {{\n  config {{\n    data_dir = "{place.layout.data_dir}"\n'
        f'    run_dir  = "{place.layout.run_dir}"\n  }}\n}}\n'
    )
    turns = cycle(tasks)

    def timed() -> float:
        words = [command, *([next(turns).alloc_id] if command == "inspect" else []), "--json"]
        return _taken_s(
            [str(chv), *words, "--config", str(agent_file)],
            {**os.environ, "CHV_ENABLE_FAKE": "1"},
            fine=(0, 1) if command == "doctor" else (0,),  # what it finds on this host is no matter here
        )

    return timed


def _taken_s(argv: Sequence[str], environment: dict[str, str], *, fine: Sequence[int] = (0,)) -> float:
    begin = time.perf_counter()
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode not in fine or not done.stdout:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return took
