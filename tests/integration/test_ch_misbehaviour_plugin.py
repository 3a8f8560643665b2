"""What Nomad hears of a Cloud Hypervisor that misbehaves: real calls to a real plugin process, the VMM is the fake one.

test_ch_misbehaviour.py has the same words beneath the plugin.
"""

import asyncio
import re
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
from tests.fakes import limited_plugin
from tests.fakes.ch.behaviour import WORDS
from tests.fakes.ch.install import tell
from tests.fakes.ch_tasks import PATIENCE_S, ChPlace, ChTask, ch_plugin_at, until_says, vmms
from tests.fakes.plugin_client import Plugin
from tests.integration.networks import network
from tests.integration.nodes import until
from vmlib.process import Identity

T = TypeVar("T")

LIMIT_S = 3.0  # of a call that makes the machine; a user's are longer
REBOOT_S = 2.0
SLACK_S = 15.0  # of a busy host, besides
READY = "chv test guest: ready"

ALSO_TESTED = {
    "vsock-listen",  # does what it should: test_fake_ch
}
REFUSED = "Error from API: The VM could not"
NO_CONSOLE = "Error creating console devices: Error creating console device"
BEFORE_ITS_END = "the VMM ended with status 0 before its guest had come to an end"
SECCOMP = (
    "the VMM was killed by SIGSYS: seccomp allows it no system call 20 in thread http-server: "
    "==== Possible seccomp violation ====\nSyscall number: 20 (arch: 0xc000003e, tid: 1, thread: http-server)\n"
    "Try running with `strace -ff` to identify the cause"
)
NO_HTTP = r"BadStatusLine('\x00ÿ no answer of a server \r\n'), expected an HTTP answer"

# What StartTask answers, and whether Nomad is to try again: whatever ends at its start may have been unlucky.
STARTS = {
    "hang=vmm.ping": ("vmm.ping: no answer from the VMM within 6 s", False),
    "hang=vm.create": ("vm.create: no answer from the VMM within 3 s", False),
    "hang=vm.info": ("vm.info: no answer from the VMM within 5 s", False),
    "hang=vm.boot": ("vm.boot: no answer from the VMM within 3 s", False),
    "slow=vm.boot:60": ("vm.boot: no answer from the VMM within 3 s", False),
    "garbage=vm.create": (f"vm.create: {NO_HTTP}", False),
    "garbage=vm.boot": (f"vm.boot: {NO_HTTP}", False),
    "half=vm.create": ("vm.create: the VMM closed the connection", False),
    "half=vm.boot": ("vm.boot: the VMM closed the connection", False),
    "fail=vm.create": (f"vm.create: {REFUSED} be created: chfake: told so", False),
    "fail=vm.boot": (f"vm.boot: {REFUSED} boot: chfake: told so", False),
    "keep-config": (f"vm.create: {REFUSED} be created: {NO_CONSOLE}: chfake: told so", False),
    "fail=vm.boot:45000": (SECCOMP, True),
    "exit=vmm.ping:3": ("the VMM ended with status 3", True),
    "exit=vm.create": (BEFORE_ITS_END, True),
    "exit=vm.boot": (BEFORE_ITS_END, True),
    "exit=vm.boot:1": ("the VMM ended with status 1", True),
    "ending=vm.create": (BEFORE_ITS_END, True),
    "signal=vm.create:SEGV": ("the VMM was killed by SIGSEGV", True),
    "signal=vm.boot:BUS": ("the VMM was killed by SIGBUS", True),
}

# How a running machine ends, of whose guest these words are: WaitTask's exit code, signal and text.
RUNS = {
    "chfake.exit-after=0.5": (1, 0, BEFORE_ITS_END),
    "chfake.exit-after=0.5:3": (3, 0, "the VMM ended with status 3"),
    "chfake.signal-after=0.5:SEGV": (139, 11, "the VMM was killed by SIGSEGV"),
    "chfake.signal-after=0.5:SYS": (159, 31, "the VMM was killed by SIGSYS"),
    "chfake.reboot-hang reboot-once": (1, 0, "the guest's reboot hung, the VMM was killed after 2 s"),
    "panic": (1, 0, "guest panic: Kernel panic - not syncing: sysrq triggered crash"),
    "chfake.mute sleep=1 poweroff": (0, 0, ""),
    "chfake.slow=vm.boot:1 poweroff": (0, 0, ""),
    "chfake.stderr=vm.boot:3000000 exit=4": (4, 0, ""),
}
# What is tested of a start with an interface.
NICS = {
    "hang=vm.add-net": "vm.add-net: no answer from the VMM within 3 s",
    "fail=vm.add-net": "vm.add-net: Error from API: The network device could not be added to the VM: chfake: told so",
    "garbage=vm.add-net": f"vm.add-net: {NO_HTTP}",
    "exit=vm.add-net": BEFORE_ITS_END,
}
# The last event of those that have one beside the start's.
TOLD = {"panic": "panic: Kernel panic - not syncing: sysrq triggered crash"}

# VMMs that StopTask meets, and how they end: exit code, text, the events of it.
STOP_S = 2.0
IN_TIME = "forced off: the guest did not power off within 2 s"
QUIT, TERM, KILL = (
    f"{IN_TIME}, {how}" for how in ("the VMM was told to quit", "SIGTERM to the VMM", "SIGKILL to the VMM")
)
STOPS = {
    "chfake.ignore-button": (137, QUIT, [QUIT]),
    "chfake.dead-boot": (137, QUIT, [QUIT]),
    "chfake.ignore-button chfake.ending=vmm.shutdown": (137, QUIT, [QUIT]),
    "chfake.ignore-button chfake.fail=vmm.shutdown": (137, TERM, [QUIT, TERM]),
    "chfake.ignore-button chfake.hang=vmm.shutdown": (137, KILL, [QUIT, TERM, KILL]),
    "chfake.hang=vm.power-button": (137, KILL, [QUIT, TERM, KILL]),
    "chfake.garbage=vm.power-button": (0, "", []),
    "chfake.fail=vm.power-button": (137, QUIT, [QUIT]),
}


def test_each_word_that_the_fake_knows_has_a_test() -> None:
    said = " ".join([*(f"chfake.{word}" for word in [*STARTS, *NICS]), *RUNS, *STOPS])
    assert set(re.findall(r"chfake\.([a-z-]+)", said)) | ALSO_TESTED == WORDS


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
        return [who for who in vmms(self.place) if str(who.pid) != self.neighbour_vmm]


@pytest.fixture(scope="module")
def chv_limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return limited_plugin.write(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="module")
def shared_node(chv_limited: Path) -> Iterator[Node]:
    base = Path(tempfile.mkdtemp(prefix="ct-", dir="/tmp"))
    place = ChPlace(base=base)
    place.make()
    with asyncio.Runner() as runner, ExitStack() as ended:
        ended.callback(shutil.rmtree, base)
        ended.callback(place.end_machines)
        opened = ch_plugin_at(chv_limited, place, start=2 * LIMIT_S, add=LIMIT_S, boot=LIMIT_S, reboot=REBOOT_S)
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
        assert (failed.value.details, failed.value.recoverable) == STARTS[word]
        assert took_s < 2 * LIMIT_S + SLACK_S
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
                assert vmms(place) == []
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


def test_stop_task_ends_each_within_its_time_and_five_seconds(node: Node) -> None:
    """All at once, as a drain does it: one that hangs does not cost another its time."""
    client = node.plugin.client
    tasks = {words: ChTask(node.place, words=words) for words in STOPS}

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
            ends = await asyncio.gather(*map(stop, tasks.values()))
            assert dict(zip(tasks, ends, strict=True)) == STOPS
        await asyncio.gather(*(client.destroy_task(task.id) for task in tasks.values()))

    node.do(lives())
