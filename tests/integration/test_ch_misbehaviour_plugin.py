"""What Nomad is told of tasks whose Cloud Hypervisor misbehaves, and how the other tasks fare meanwhile.

The causes one by one are in test_ch_misbehaviour; here they come through one plugin, all at once and with the limits
that users get.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from tests.fakes.ch.install import install
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at
from tests.guest.build import Guest
from tests.integration.nodes import PATIENCE_S, until
from tests.integration.test_ch_misbehaviour import RUNS, STARTS
from vmlib import process
from vmlib.paths import RunPaths

BOOT_LIMIT_S = 60.0
CALL_LIMIT_S = 5.0
SLACK_S = 30.0  # of a busy host on which all of them start at once
FORCED_S = 5.0  # a stop takes that much more than its kill_timeout
# Limits that the tests of one machine make shorter.
LONGER = {
    "hang=vm.create": "vm.create: no answer from the VMM within 15 s",
    "hang=vm.boot": "vm.boot: no answer from the VMM within 60 s",
}
TAKES_MINUTES = {"chfake.reboot-hang reboot-once"}


@dataclass(slots=True)
class Node:
    """One plugin, and tasks on the fake whose guests are played."""

    chv: Path
    place: Place
    plugin: Plugin
    tasks: list[FakeTask] = field(default_factory=list)

    def task(self, words: str = "") -> FakeTask:
        task = FakeTask(self.place, words=words, hypervisor="cloud-hypervisor")
        task.make()
        self.tasks.append(task)
        return task

    async def start(self, words: str = "") -> tuple[FakeTask, pb.TaskHandle]:
        task = self.task(words)
        return task, (await self.plugin.client.start_task(task.config())).handle

    async def refusal(self, words: str) -> str:
        """What StartTask says."""
        with pytest.raises(RpcError) as failed:
            await self.start(words)
        return failed.value.details

    async def result(self, task: FakeTask) -> tuple[int, int, str]:
        answer = await self.plugin.client.wait_task(task.id)
        return answer.result.exit_code, answer.result.signal, answer.err

    async def destroy_all(self) -> None:
        await asyncio.gather(*(self.plugin.client.destroy_task(task.id) for task in self.tasks))

    def vmms(self) -> list[int]:
        runs = self.place.layout.runs
        found = [process.load_identity(RunPaths(run).vmm) for run in runs.iterdir()] if runs.exists() else []
        return [who.pid for who in found if who is not None and process.alive(who)]


@asynccontextmanager
async def node_at(chv: Path, base: Path, guest: Guest) -> AsyncIterator[Node]:
    (base / "fake").mkdir()
    fake = install(base / "fake", guest="light")
    with place_at(base, {"hypervisor": "auto", "cloud_hypervisor": {"binary": str(fake)}}) as place:
        shutil.copyfile(guest.directory / "vmlinuz", place.images / "kernel")
        async with plugin_at(chv, place) as plugin:
            node = Node(chv, place, plugin)
            yield node
            await node.destroy_all()
            assert node.vmms() == []
            assert not place.layout.runs.exists() or list(place.layout.runs.iterdir()) == []


async def test_starts_fail_in_time_with_their_cause_and_delay_no_other(
    chv: Path, short_dir: Path, guest: Guest
) -> None:
    async with node_at(chv, short_dir, guest) as node:
        begin = time.monotonic()
        hung = [asyncio.create_task(node.refusal(f"chfake.{word}")) for word in LONGER]
        others = [word for word in STARTS if word not in LONGER]
        said = dict(zip(others, await asyncio.gather(*(node.refusal(f"chfake.{w}") for w in others)), strict=True))
        task, _ = await node.start("sleep=1 exit=3")
        assert await node.result(task) == (3, 0, "")
        assert not all(one.done() for one in hung)
        said |= dict(zip(LONGER, await asyncio.gather(*hung), strict=True))
        assert time.monotonic() - begin < BOOT_LIMIT_S + SLACK_S
        expected = {**STARTS, **LONGER}
        assert {word: text for word, text in said.items() if not text.startswith(expected[word])} == {}
        assert node.vmms() == []


async def test_what_becomes_of_running_tasks_is_told_with_its_cause(chv: Path, short_dir: Path, guest: Guest) -> None:
    async with node_at(chv, short_dir, guest) as node:
        words = [words for words in RUNS if words not in TAKES_MINUTES]
        healthy, _ = await node.start()
        started = await asyncio.gather(*(node.start(one) for one in words))
        results = await asyncio.gather(*(node.result(task) for task, _ in started))
        assert dict(zip(words, results, strict=True)) == {one: RUNS[one] for one in words}
        await node.plugin.client.stop_task(healthy.id, timeout_s=PATIENCE_S)
        assert await node.result(healthy) == (0, 0, "")


async def test_an_api_that_hangs_holds_up_neither_recover_nor_look_nor_stop_nor_another_task(
    chv: Path, short_dir: Path, guest: Guest
) -> None:
    async with AsyncExitStack() as stack, node_at(chv, short_dir, guest) as node:
        client = node.plugin.client
        started = await asyncio.gather(*(node.start("chfake.hang=vm.power-button") for _ in range(3)), node.start())
        *hung, (healthy, _) = started
        # The first press hangs, and with it the VMM's thread and all that is asked from now on.
        stops = [asyncio.create_task(client.stop_task(task.id, timeout_s=PATIENCE_S)) for task, _ in hung]
        await until(lambda: _said(node, "stop step failed") >= len(hung), "the presses to fail")
        await node.plugin.kill()
        await asyncio.gather(*stops, return_exceptions=True)
        node.plugin = await stack.enter_async_context(plugin_at(chv, node.place))
        client = node.plugin.client

        begin = time.monotonic()
        await asyncio.gather(*(client.recover_task(handle) for _, handle in started))
        assert time.monotonic() - begin < 1.0
        begin = time.monotonic()
        for task, _ in hung:
            assert (await client.inspect_task(task.id)).task.state == pb.RUNNING
            assert (await anext(client.task_stats(task.id))).id == task.id
        assert time.monotonic() - begin < SLACK_S
        begin = time.monotonic()
        stops = [asyncio.create_task(client.stop_task(task.id, timeout_s=2)) for task, _ in hung]
        await client.stop_task(healthy.id, timeout_s=PATIENCE_S)
        assert await node.result(healthy) == (0, 0, "")
        await asyncio.gather(*stops)
        assert time.monotonic() - begin < 2 + FORCED_S + SLACK_S
        for task, _ in hung:
            forced = "forced off: the guest did not power off within 2 s, SIGKILL to the VMM"
            assert await node.result(task) == (137, 0, forced)


async def test_many_machines_that_hang_in_their_stop_do_not_hold_up_another_ones(
    chv: Path, short_dir: Path, guest: Guest
) -> None:
    async with node_at(chv, short_dir, guest) as node:
        client = node.plugin.client
        hung = await asyncio.gather(*(node.start("chfake.hang=vm.power-button") for _ in range(24)))
        (healthy, _), (killed, _) = await asyncio.gather(node.start(), node.start())
        stops = [asyncio.create_task(client.stop_task(task.id, timeout_s=PATIENCE_S)) for task, _ in hung]
        await asyncio.sleep(1.0)  # all of them press
        begin = time.monotonic()
        await asyncio.gather(
            client.stop_task(healthy.id, timeout_s=PATIENCE_S),
            client.stop_task(killed.id, timeout_s=PATIENCE_S, signal="SIGKILL"),
        )
        assert time.monotonic() - begin < CALL_LIMIT_S  # no press has given its thread back since
        assert await node.result(healthy) == (0, 0, "")
        assert (await node.result(killed))[0] == 137
        assert not any(stop.done() for stop in stops)
        for stop in stops:
            stop.cancel()
        await asyncio.gather(*stops, return_exceptions=True)


def _said(node: Node, words: str) -> int:
    return sum(words in str(line) for line in node.plugin.log)
