"""`wait_for = "agent"` over the wire, of a guest whose agent never comes: every way in which that ends."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from tests.fakes.plugin_client import FakeTask, Plugin, place_at, plugin_at
from tests.integration.nodes import PATIENCE_S

LONG_S = 300.0


def waiting(task: FakeTask) -> pb.TaskConfig:
    config = task.config()
    options = msgspec.msgpack.decode(config.msgpack_driver_config)
    config.msgpack_driver_config = msgspec.msgpack.encode(options | {"wait_for": "agent"})
    return config


@contextlib.asynccontextmanager
async def plugin_and_task(
    chv: Path, base: Path, words: str = "", *, limit_s: float = LONG_S
) -> AsyncIterator[tuple[Plugin, FakeTask]]:
    with place_at(base) as place:
        (base / "tmp").mkdir()
        task = FakeTask(place, words=words)
        task.make()
        async with plugin_at(chv, place, env={"CHV_TEST_LIMITS": json.dumps({"agent": limit_s})}) as plugin:
            with task.reading("stdout"), task.reading("stderr"):
                yield plugin, task
            assert place.vmms() == []
            assert not place.layout.runs.exists() or list(place.layout.runs.iterdir()) == []


async def begun(plugin: Plugin, task: FakeTask) -> "asyncio.Task[pb.StartTaskResponse]":
    """A start that waits for the agent: its task is known by then."""
    starting = asyncio.create_task(plugin.client.start_task(waiting(task)))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(RpcError):
                await plugin.client.inspect_task(task.id)
                break
            await asyncio.sleep(0.05)
    assert not starting.done()
    return starting


async def refusal(starting: "asyncio.Task[pb.StartTaskResponse]") -> RpcError:
    with pytest.raises(RpcError) as refused:
        async with asyncio.timeout(PATIENCE_S):
            await starting
    assert refused.value.recoverable
    return refused.value


async def test_time_runs_out(chv_limited: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv_limited, short_dir, limit_s=2.0) as (plugin, task):
        starting = await begun(plugin, task)
        text = (await refusal(starting)).details
        assert text == (
            'wait_for = "agent": no guest agent has answered within 2 s '
            "(it needs cloud-init and python3 in the guest, and the guest's boot is in alloc logs)"
        )
        with pytest.raises(RpcError, match="NotFound"):
            await plugin.client.wait_task(task.id)


async def test_the_machine_ends(chv_limited: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv_limited, short_dir, "sleep=5 panic") as (plugin, task):
        text = (await refusal(await begun(plugin, task))).details
        assert text.startswith("the machine ended before its guest agent answered: guest panic: ")


async def test_nomad_stops_it_or_destroys_it(chv_limited: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv_limited, short_dir) as (plugin, task):
        starting = await begun(plugin, task)
        await plugin.client.stop_task(task.id, timeout_s=20)
        assert "ended before its guest agent answered: exit code 0" in (await refusal(starting)).details
        task.start = "0000000b"
        starting = await begun(plugin, task)
        async with asyncio.timeout(PATIENCE_S):
            await plugin.client.destroy_task(task.id)
        assert "the task was destroyed before" in (await refusal(starting)).details


async def test_it_is_asked_for_twice_and_by_the_next_plugin(chv_limited: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv_limited, short_dir) as (plugin, task):
        first = await begun(plugin, task)
        second = await begun(plugin, task)
        (vmm,) = task.place.vmms()
        await plugin.kill()
        await asyncio.gather(first, second, return_exceptions=True)
        async with plugin_at(chv_limited, task.place, env={"CHV_TEST_LIMITS": '{"agent": 300}'}) as again:
            starting = await begun(again, task)
            assert task.place.vmms() == [vmm]
            await again.client.destroy_task(task.id)
            await refusal(starting)


async def test_a_plugin_that_recovers_a_task_does_not_wait(chv_limited: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv_limited, short_dir) as (plugin, task):
        answer = await plugin.client.start_task(task.config())
        await plugin.kill()
        answer.handle.config.CopyFrom(waiting(task))
        async with plugin_at(chv_limited, task.place) as again:
            async with asyncio.timeout(5.0):
                await again.client.recover_task(answer.handle)
            await again.client.destroy_task(task.id)
