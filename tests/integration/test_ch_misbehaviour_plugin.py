"""What Nomad hears of a Cloud Hypervisor that misbehaves: real calls to a real plugin process, the VMM is the fake one.

test_ch_misbehaviour.py has them beneath the plugin.
"""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from tests import leftovers
from tests.fakes.ch.install import tell
from tests.fakes.ch_tasks import PATIENCE_S, ChPlace, ChTask, ch_plugin_at, until_says
from tests.fakes.plugin_client import Plugin
from tests.integration.misbehaviours import LIMIT_S, NICS, PAUSED, RUNS, SAID_BY_THE_VMM, STARTS, STOP_S, STOPS, advised
from tests.integration.networks import network
from tests.integration.nodes import READY, until
from vmlib.process import Identity

T = TypeVar("T")
Ends = dict[str, tuple[int, str, list[str]]]

SLACK_S = 15.0  # of a busy host, besides the limits
# The last event of those that have one beside the start's.
TOLD = {"panic": "panic: Kernel panic - not syncing: sysrq triggered crash"}


# ---------------------------------------------------------------------------------------------------------------------
# one plugin for most of them


@dataclass(slots=True)
class Node:
    """A plugin process that serves several tests, and a healthy task of it that none of them may disturb."""

    place: ChPlace
    plugin: Plugin
    runner: asyncio.Runner
    neighbour: ChTask
    neighbour_vmm: str
    heard: list[pb.DriverTaskEvent] = field(default_factory=list)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE_S):
                return await what

        return self.runner.run(bounded())

    def told(self, task: ChTask) -> list[str]:
        return [event.message for event in self.heard if event.task_id == task.id]

    async def expect_neighbour_well(self) -> None:
        found = await self.plugin.client.inspect_task(self.neighbour.id)
        assert (found.task.state, found.driver.attributes["pid"]) == (pb.RUNNING, self.neighbour_vmm)

    def vmms(self) -> list[Identity]:
        """Those that live, but the neighbour's."""
        return [who for who in self.place.vmms() if str(who.pid) != self.neighbour_vmm]


@pytest.fixture(scope="module")
def shared_node(chv_limited: Path) -> Iterator[Node]:
    base = Path(tempfile.mkdtemp(prefix="ct-", dir="/tmp"))
    place = ChPlace(base=base)
    place.make()
    with asyncio.Runner() as runner, ExitStack() as ended:
        ended.callback(shutil.rmtree, base)
        ended.callback(place.end_machines)
        opened = ch_plugin_at(chv_limited, place, start=3 * LIMIT_S, add=LIMIT_S, boot=LIMIT_S, reboot=LIMIT_S)
        plugin = runner.run(opened.__aenter__())
        ended.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
        neighbour = ChTask(place)
        neighbour.make()
        runner.run(plugin.client.start_task(neighbour.config()))
        ended.callback(lambda: runner.run(plugin.client.destroy_task(neighbour.id)))
        found = runner.run(plugin.client.inspect_task(neighbour.id))
        node = Node(place, plugin, runner, neighbour, found.driver.attributes["pid"])

        async def listen() -> None:
            async with aclosing(plugin.client.task_events()) as events:
                async for event in events:
                    node.heard.append(event)

        async def begin() -> "asyncio.Task[None]":
            return asyncio.create_task(listen())

        listening = runner.run(begin())
        ended.callback(listening.cancel)
        yield node


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The shared one; whatever a test leaves in it fails that test."""
    place = shared_node.place
    with (
        leftovers.Runs(place.layout.run_dir) as runs,
        leftovers.none_left(
            run_dir=place.layout.run_dir, data_dir=place.layout.data_dir, ignore=_not_of(place, lambda: runs.keys)
        ),
    ):
        tell(place.binary, guest="light")
        yield shared_node
        tell(place.binary, guest="light")
    shared_node.do(shared_node.expect_neighbour_well())


def _not_of(place: ChPlace, keys: Callable[[], set[str]]) -> Callable[[str], bool]:
    """Other tests may run on this machine at the same time."""

    def ignore(line: str) -> bool:
        kind, _, rest = line.partition(": ")
        match kind:
            case "files" | "mounts":
                return not rest.startswith(f"{place.base}/")
            case "cgroups":
                return keys().isdisjoint(Path(rest).parts)
        return kind in ("links", "namespaces")

    return ignore


# ---------------------------------------------------------------------------------------------------------------------
# StartTask


@pytest.mark.parametrize("word", STARTS)
def test_start_task_fails_in_time_with_the_cause_and_leaves_nothing(node: Node, word: str) -> None:
    client = node.plugin.client
    task = ChTask(node.place)
    task.make()

    async def life() -> None:
        tell(node.place.binary, guest="light", misbehave=[word])
        begin = time.monotonic()
        starting = asyncio.create_task(client.start_task(task.config()))
        while not starting.done():
            await node.expect_neighbour_well()
            await asyncio.wait([starting], timeout=0.3)
        took_s = time.monotonic() - begin
        with pytest.raises(RpcError) as failed:
            await starting
        text, recoverable = STARTS[word]
        assert failed.value.details == text + SAID_BY_THE_VMM.get(word, "")
        assert failed.value.recoverable == recoverable
        assert took_s < 3 * LIMIT_S + SLACK_S
        assert node.vmms() == []
        assert [path.name for path in node.place.layout.runs.iterdir()] == [run_name(node, node.neighbour)]
        with pytest.raises(RpcError, match="NotFound"):
            await client.inspect_task(task.id)
        await client.destroy_task(task.id)
        # The task is started again, as Nomad does; what was kept of the first attempt is in nobody's way.
        tell(node.place.binary, guest="light")
        again = ChTask(node.place, words="exit=5", alloc_id=task.alloc_id)
        await client.start_task(again.config())
        assert (await client.wait_task(again.id)).result.exit_code == 5
        await client.destroy_task(again.id)

    node.do(life())


def run_name(node: Node, task: ChTask) -> str:
    return node.place.layout.run(task.id).root.name


def test_start_task_gives_back_the_link_of_an_interface_that_the_vmm_does_not_take(
    chv_limited: Path, short_dir: Path
) -> None:
    place = ChPlace(base=short_dir, networks={"lan": {"mode": "macvtap", "parent": "up0"}})
    place.make()

    async def lives() -> None:
        async with ch_plugin_at(chv_limited, place, add=LIMIT_S) as plugin:
            for word, text in NICS.items():
                task = ChTask(place, options={"network_interface": [{"network": "lan"}]})
                task.make()
                tell(place.binary, guest="light", misbehave=[word])
                with pytest.raises(RpcError) as failed:
                    await plugin.client.start_task(task.config())
                assert failed.value.details == text
                assert place.vmms() == []
                assert list(place.layout.runs.iterdir()) == []
                assert net.host.ours() == []
                await plugin.client.destroy_task(task.id)

    with network() as net:
        net.host.do(lambda: asyncio.run(lives()))


# ---------------------------------------------------------------------------------------------------------------------
# WaitTask


@pytest.mark.parametrize("words", RUNS)
def test_wait_task_says_how_a_running_machine_ended(node: Node, words: str) -> None:
    client = node.plugin.client
    task = ChTask(node.place, words=words)
    task.make()

    async def life() -> None:
        await client.start_task(task.config())
        answer = await client.wait_task(task.id)
        assert (answer.result.exit_code, answer.result.signal, answer.err) == RUNS[words]
        assert not answer.result.oom_killed
        assert node.vmms() == []
        found = await client.inspect_task(task.id)
        assert (found.task.state, found.task.result.exit_code) == (pb.EXITED, answer.result.exit_code)
        if last := TOLD.get(words):
            await until(lambda: last in node.told(task), last)
            assert node.told(task)[-1] == last
        await client.stop_task(task.id)  # as Nomad does, although it is over
        await client.destroy_task(task.id)

    node.do(life())


# ---------------------------------------------------------------------------------------------------------------------
# StopTask


@pytest.mark.parametrize("table", [STOPS, PAUSED], ids=["running", "paused"])
def test_stop_task_ends_each_within_its_time_and_five_seconds(node: Node, table: Ends) -> None:
    """All at once, as a drain does it: one that hangs does not cost another its time."""
    client = node.plugin.client
    tasks = {words: ChTask(node.place, words=words) for words in table}

    async def stop(task: ChTask) -> tuple[int, str, list[str]]:
        begin = time.monotonic()
        await client.stop_task(task.id, timeout_s=STOP_S)
        assert time.monotonic() - begin < STOP_S + 5.0 + SLACK_S / 3
        answer = await client.wait_task(task.id)
        return answer.result.exit_code, answer.err, [text for text in node.told(task) if text.startswith("forced off")]

    async def lives() -> None:
        with ExitStack() as reading:
            for task in tasks.values():
                task.make()
                out = reading.enter_context(task.reading("stdout"))
                await client.start_task(task.config())
                if "dead-boot" not in task.words:
                    await until_says(out, READY)
                if table is PAUSED:
                    await client.signal_task(task.id, "SIGSTOP")
            ends = await asyncio.gather(*map(stop, tasks.values()))
            assert dict(zip(tasks, ends, strict=True)) == {words: advised(end) for words, end in table.items()}
        await asyncio.gather(*(client.destroy_task(task.id) for task in tasks.values()))

    node.do(lives())
