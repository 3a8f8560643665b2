"""Cloud Hypervisors that do not answer, through a plugin that would wait a minute for each call: nobody else waits."""

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from tests.fakes.ch_tasks import PATIENCE_S, ChPlace, ChTask, ch_plugin_at, until_says
from tests.fakes.plugin_client import Plugin
from tests.integration.misbehaviours import ADVICE, KILLED, STOP_S
from tests.integration.nodes import READY, until
from vmlib import process
from vmlib.hypervisor.ch_api import ApiError, ApiTimeoutError, ChApi

HUNG = "chfake.hang=vm.power-button"
LONG_S = 60.0  # of a call to a VMM
SLACK_S = 15.0  # of a busy host
KILLED_BY_KEEPER = "forced off: the guest did not power off in its time, its keeper ended the VMM"


def api_of(task: ChTask) -> ChApi:
    return ChApi(task.place.layout.run(task.id).root / "api")


async def until_hung(task: ChTask) -> None:
    while True:
        try:
            await asyncio.to_thread(api_of(task).get, "vm.info", timeout_s=1.0)
        except ApiTimeoutError:
            return
        except ApiError as exc:
            if not exc.status:  # else it has no machine yet
                raise
        await asyncio.sleep(0.05)


async def hung(plugin: Plugin, place: ChPlace) -> tuple[ChTask, "asyncio.Task[None]"]:
    """A task whose VMM hangs, and the signal that waits for it."""
    task = ChTask(place, words=HUNG)
    task.make()
    await plugin.client.start_task(task.config())
    pressing = asyncio.create_task(plugin.client.signal_task(task.id, "SIGTERM"))
    await until_hung(task)
    return task, pressing


async def look(plugin: Plugin, task: ChTask) -> None:
    """InspectTask and TaskStats, whatever the VMM says to it."""
    found = await plugin.client.inspect_task(task.id)
    assert found.task.state == pb.RUNNING
    async with aclosing(plugin.client.task_stats(task.id)) as samples:
        assert (await anext(samples)).agg_resource_usage.memory.rss > 1 << 20


async def live_a_life(plugin: Plugin, place: ChPlace) -> None:
    """A healthy task, from its start to its end by the power button."""
    task = ChTask(place)
    task.make()
    with task.reading("stdout") as out:
        await plugin.client.start_task(task.config())
        await until_says(out, READY)
        await look(plugin, task)
        await plugin.client.stop_task(task.id, timeout_s=PATIENCE_S)
        answer = await plugin.client.wait_task(task.id)
    assert (answer.result.exit_code, answer.err) == (0, "")
    await plugin.client.destroy_task(task.id)


@pytest.fixture
def place(short_dir: Path) -> Iterator[ChPlace]:
    place = ChPlace(base=short_dir)
    place.make()
    yield place
    place.end_machines()


@pytest.mark.parametrize("how", ["a call", "the process"])
async def test_a_hung_api_hangs_neither_looks_nor_recover_nor_stop_nor_another_task(
    chv_limited: Path, place: ChPlace, how: str
) -> None:
    task = ChTask(place, words=HUNG if how == "a call" else "")
    task.make()
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        handle = (await plugin.client.start_task(task.config())).handle
        if how == "the process":
            process.send_signal(place.vmms()[0], signal.SIGSTOP)
        pressing = asyncio.create_task(plugin.client.signal_task(task.id, "SIGTERM"))
        await until_hung(task)
        await look(plugin, task)
        await live_a_life(plugin, place)
        assert not pressing.done()
        await plugin.kill()
        await asyncio.gather(pressing, return_exceptions=True)
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        begin = time.monotonic()
        await plugin.client.recover_task(handle)
        assert time.monotonic() - begin < 1.0
        await look(plugin, task)
        await live_a_life(plugin, place)
        begin = time.monotonic()
        await plugin.client.stop_task(task.id, timeout_s=STOP_S)
        assert time.monotonic() - begin < STOP_S + 5.0 + SLACK_S / 3
        answer = await plugin.client.wait_task(task.id)
        assert (answer.result.exit_code, answer.err) == (137, KILLED + ADVICE)
        await plugin.client.destroy_task(task.id)


async def test_a_stop_of_a_hung_vmm_comes_to_its_end_without_the_plugin(chv_limited: Path, place: ChPlace) -> None:
    task = ChTask(place, words=HUNG)
    task.make()
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        handle = (await plugin.client.start_task(task.config())).handle
        stopping = asyncio.create_task(plugin.client.stop_task(task.id, timeout_s=STOP_S))
        await until_hung(task)
        await plugin.kill()
        await asyncio.gather(stopping, return_exceptions=True)
    await until(lambda: not place.vmms(), "the end of the VMM")
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        await plugin.client.recover_task(handle)
        answer = await plugin.client.wait_task(task.id)
        assert (answer.result.exit_code, answer.err) == (137, KILLED_BY_KEEPER)
        await plugin.client.destroy_task(task.id)


async def test_a_plugin_that_is_killed_while_a_vmm_hangs_at_its_boot_leaves_nothing_in_the_way(
    chv_limited: Path, place: ChPlace
) -> None:
    task = ChTask(place, words="chfake.hang=vm.boot")
    task.make()
    async with ch_plugin_at(chv_limited, place, boot=PATIENCE_S) as plugin:
        starting = asyncio.create_task(plugin.client.start_task(task.config()))
        await until(place.vmms, "the VMM")
        await until_hung(task)
        await plugin.kill()
        await asyncio.gather(starting, return_exceptions=True)
    await until(lambda: not place.vmms(), "the end of the VMM, which nobody has any more")
    async with ch_plugin_at(chv_limited, place, boot=PATIENCE_S) as plugin:
        again = ChTask(place, words="exit=5", alloc_id=task.alloc_id)
        await plugin.client.start_task(again.config())
        assert (await plugin.client.wait_task(again.id)).result.exit_code == 5
        await plugin.client.destroy_task(again.id)
        assert list(place.layout.runs.iterdir()) == []


async def test_a_hung_vmm_is_killed_by_sigkill_at_once(chv_limited: Path, place: ChPlace) -> None:
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        task, pressing = await hung(plugin, place)
        with pytest.raises(RpcError, match="the VMM has not answered an earlier signal yet"):
            await plugin.client.signal_task(task.id, "SIGSTOP")
        await plugin.client.signal_task(task.id, "SIGKILL")
        answer = await plugin.client.wait_task(task.id)
        assert (answer.result.exit_code, answer.result.signal) == (137, signal.SIGKILL)
        with pytest.raises(RpcError, match=re.escape("vm.power-button")):
            await pressing
        await plugin.client.destroy_task(task.id)


async def test_a_hung_vmm_is_destroyed(chv_limited: Path, place: ChPlace) -> None:
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        task, pressing = await hung(plugin, place)
        await plugin.client.destroy_task(task.id)
        await asyncio.gather(pressing, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------------
# more of them at once than any kind of work has turns


MANY_STOPS = 20
MANY_STARTS = 9
MANY_STOP_S = 15.0


async def test_many_hung_vmms_that_are_stopped_do_not_delay_another_tasks_stop(
    chv_limited: Path, place: ChPlace
) -> None:
    tasks = [ChTask(place, words=HUNG) for _ in range(MANY_STOPS)]
    async with ch_plugin_at(chv_limited, place, call=LONG_S) as plugin:
        await start_all(plugin, tasks)

        async def stop(task: ChTask) -> float:
            begin = time.monotonic()
            await plugin.client.stop_task(task.id, timeout_s=MANY_STOP_S)
            return time.monotonic() - begin

        healthy = ChTask(place)
        healthy.make()
        with healthy.reading("stdout") as out:
            await plugin.client.start_task(healthy.config())
            await until_says(out, READY)
            stops = [asyncio.create_task(stop(task)) for task in tasks]
            await asyncio.gather(*map(until_hung, tasks))
            await look(plugin, healthy)
            await plugin.client.stop_task(healthy.id, timeout_s=PATIENCE_S)
            assert not any(one.done() for one in stops)
        assert (await plugin.client.wait_task(healthy.id)).result.exit_code == 0
        assert max(await asyncio.gather(*stops)) < MANY_STOP_S + 5.0 + SLACK_S
        ends = await asyncio.gather(*(plugin.client.wait_task(task.id) for task in tasks))
        assert {one.result.exit_code for one in ends} == {137}
        await asyncio.gather(*(plugin.client.destroy_task(task.id) for task in [healthy, *tasks]))


async def test_many_starts_that_hang_keep_no_other_task_from_its_life(chv_limited: Path, place: ChPlace) -> None:
    tasks = [ChTask(place, words="chfake.hang=vm.boot") for _ in range(MANY_STARTS)]
    async with ch_plugin_at(chv_limited, place, boot=PATIENCE_S) as plugin:
        for task in tasks:
            task.make()
        starts = [asyncio.create_task(plugin.client.start_task(task.config())) for task in tasks]
        await until(lambda: len(place.vmms()) == MANY_STARTS, "the VMMs")
        await live_a_life(plugin, place)
        assert not any(one.done() for one in starts)
        for who in place.vmms():
            process.send_signal(who, signal.SIGKILL)
        failures = await asyncio.gather(*starts, return_exceptions=True)
        assert {str(one).partition(" desc = ")[2] for one in failures} == {"the VMM was killed by SIGKILL"}
        assert list(place.layout.runs.iterdir()) == []


async def start_all(plugin: Plugin, tasks: list[ChTask]) -> None:
    turns = asyncio.Semaphore(3)

    async def start(task: ChTask) -> None:
        task.make()
        async with turns:
            await plugin.client.start_task(task.config())

    await asyncio.gather(*map(start, tasks))
