"""How fast an end is known: WaitTask's answer over gRPC, over a parent that waits for the same kind of process."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from tests.bench.measure import Line, Settings, in_turns_async, line
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at

# As large as the fake's VMM, which is a Python as well.
_SLEEPER = "import json, selectors, signal, socket; print(flush=True); signal.pause()"


def run(settings: Settings) -> list[Line]:
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> list[Line]:
    with place_at(settings.directory("exit")) as place:
        async with plugin_at(settings.chv, place) as plugin:
            parent, ours = await in_turns_async(
                [known_to_a_parent, lambda: known_to_the_agent(plugin, place)], pairs=4 * settings.pairs
            )
    return [
        line(
            "exit latency",
            "SIGKILL of the VMM until WaitTask answers / SIGKILL of a child until waitpid returns",
            ours=ours,
            baseline=parent,
        )
    ]


async def known_to_a_parent() -> float:
    return killed_and_waited_for_s()  # blocks the loop, on which nothing else is to run now


def killed_and_waited_for_s() -> float:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", _SLEEPER], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        begin = time.perf_counter()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        return time.perf_counter() - begin


async def known_to_the_agent(plugin: Plugin, place: Place) -> float:
    task = FakeTask(place)
    task.make()
    client = plugin.client
    await client.start_task(task.config())
    wait = asyncio.create_task(client.wait_task(task.id))
    status = await client.inspect_task(task.id)
    begin = time.perf_counter()
    os.kill(int(status.driver.attributes["pid"]), signal.SIGKILL)
    result = (await wait).result
    took = time.perf_counter() - begin
    if result.signal != signal.SIGKILL:
        raise RuntimeError(f"the machine ended otherwise: {result}")
    await client.destroy_task(task.id)
    task.remove()
    return took
