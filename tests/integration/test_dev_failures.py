"""What goes wrong and what is forced, as a user sees it: the stop ladder, signals, refused jobs, full disks, logs."""

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver.devhost.client import RpcError
from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost, StartFailedError
from driver.devhost.jobfile import read_job
from tests.integration.misbehaviours import ADVICE
from tests.integration.nodes import (
    NOTHING,
    READY,
    Node,
    kinds,
    shown,
    ticks,
    told,
    until,
    until_says,
    until_ticks_on,
    until_told,
)
from vmlib import process
from vmlib.keeper.client import Connection


@contextlib.asynccontextmanager
async def running(node: Node, words: str = "", **job: Any) -> AsyncIterator[tuple[DevHost, "asyncio.Task[ExitResult]"]]:
    """A host with its task started and its guest up, and the task's life."""
    async with node.host(node.job(words, **job)) as host:
        life = asyncio.create_task(host.run(), name="life")
        try:
            await until_says(host, READY)
            yield host, life
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------------
# stop


async def test_a_guest_that_ignores_the_button_is_forced_off_within_five_seconds_after_its_time(node: Node) -> None:
    async with running(node, "ignore-acpi", task='kill_timeout = "3s"') as (host, life):
        clock = asyncio.get_running_loop()
        host.kill()
        asked = clock.time()
        result = await life
        assert 3.0 <= clock.time() - asked < 8.0
        sentence = f"forced off: the guest did not power off within 3 s, the VMM was told to quit{ADVICE}"
        assert result == ExitResult(exit_code=137, message=sentence)
        assert told(host)[2:] == ["power button pressed", sentence]
        assert kinds(host) == ["machine started", "cores", "power button", "forced off"]
        assert f"chv: {sentence}" in host.console("stderr")


async def test_a_guest_that_needs_most_of_its_time_is_left_alone(fake_node: Node) -> None:
    async with running(fake_node, "slow-stop=5", task='kill_timeout = "7s"') as (host, life):
        host.kill()
        assert await life == ExitResult()
        assert kinds(host) == ["machine started", "cores", "power button"]


async def test_a_paused_machine_is_resumed_and_powers_itself_off(node: Node) -> None:
    async with running(node, "tick") as (host, life):
        client = await host.client()
        await client.signal_task(host.task_id, "SIGSTOP")
        await until_told(host, "paused")
        still = ticks(host)
        await client.signal_task(host.task_id, "CONT")
        await until_told(host, "resumed")
        await until(lambda: len(ticks(host)) > len(still) + 2, "the guest to go on", host=host)
        await client.signal_task(host.task_id, "SIGSTOP")
        await until(lambda: kinds(host).count("paused") == 2, "another pause", host=host)
        host.kill()
        assert await life == ExitResult()
        expected = ["machine started", "cores", "paused", "resumed", "paused", "resumed", "power button"]
        assert kinds(host) == expected


async def test_a_paused_machine_says_so_and_stands_still(fake_node: Node) -> None:
    async with running(fake_node, "tick") as (host, _):
        await until_ticks_on(host)
        client = await host.client()
        await client.signal_task(host.task_id, "SIGSTOP")
        await until_told(host, "paused")
        still = ticks(host)
        await asyncio.sleep(0.7)  # three ticks, for a guest that runs
        assert ticks(host) == still


async def test_a_vmm_that_does_not_answer_gets_no_more_time_than_one_that_does(fake_node: Node) -> None:
    async with running(fake_node, task='kill_timeout = "2s"') as (host, life):
        assert process.send_signal(fake_node.vmm, signal.SIGSTOP)
        clock = asyncio.get_running_loop()
        host.kill()
        asked = clock.time()
        result = await life
        assert 2.0 <= clock.time() - asked < 7.5
        assert result == ExitResult(
            exit_code=137, message=f"forced off: the guest did not power off within 2 s, SIGKILL to the VMM{ADVICE}"
        )
        assert kinds(host) == ["machine started", "cores", *["forced off"] * 3]


async def test_kill_signal_sigkill_does_not_wait_for_the_guest(fake_node: Node) -> None:
    async with running(fake_node, "ignore-acpi", task='kill_signal = "SIGKILL"') as (host, life):
        clock = asyncio.get_running_loop()
        host.kill()
        asked = clock.time()
        result = await life
        assert clock.time() - asked < 5.0
        sentence = "forced off: the guest had no time to power off, the VMM was told to quit"
        assert result == ExitResult(exit_code=137, message=sentence)
        assert kinds(host) == ["machine started", "cores", "forced off"]


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGINT", "SIGSTOP", "SIGCONT", "SIGHUP", "SIGUSR1", "SIGWINCH", "nonsense"]
)
async def test_whatever_else_the_kill_signal_is_the_guest_is_asked(fake_node: Node, name: str) -> None:
    """Nomad takes any text for one; a stop that is refused would be tried for minutes."""
    said: list[str] = []
    host = fake_node.host(fake_node.job(task=f'kill_signal = "{name}"'))
    host.supervisor.on_log = lambda line: said.append(str(line))
    async with host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        host.kill()
        assert await life == ExitResult()
        assert kinds(host) == ["machine started", "cores", "power button"]
    odd = name not in ("SIGTERM", "SIGINT")
    assert any(f"kill_signal {name} means no stop to a machine" in line for line in said) == odd


# ---------------------------------------------------------------------------------------------------------------------
# signals

LIST = "SIGTERM SIGINT (power button), SIGSTOP (pause), SIGCONT (resume), SIGKILL (kill)"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "sigterm", "TERM"])
async def test_a_signal_that_asks_for_the_end_presses_the_power_button(fake_node: Node, name: str) -> None:
    async with running(fake_node) as (host, life):
        await (await host.client()).signal_task(host.task_id, name)
        assert await life == ExitResult()
        assert kinds(host) == ["machine started", "cores", "power button"]


async def test_sigkill_ends_the_machine_as_that_signal_and_others_are_refused_with_the_list(fake_node: Node) -> None:
    async with running(fake_node) as (host, life):
        client = await host.client()
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
            with pytest.raises(RpcError) as refused:
                await client.signal_task(host.task_id, name)
            text = f"signal {name}: is for the guest agent, which does not answer; "
            where = f"it runs what is executable in /etc/chv/signals/{name}.d/ of the guest; without it: {LIST}"
            assert str(refused.value) == f"rpc error: code = Unimplemented desc = {text}{where}"
        for name in ("SIGWINCH", "", "9", "nonsense"):
            with pytest.raises(RpcError) as refused:
                await client.signal_task(host.task_id, name)
            text = f"signal {name}: means nothing to a machine, expected one of {LIST}"
            assert str(refused.value) == f"rpc error: code = InvalidArgument desc = {text}"
        await client.signal_task(host.task_id, "SIGKILL")
        assert await life == ExitResult(exit_code=137, signal=9, message="the VMM was killed by SIGKILL")


# ---------------------------------------------------------------------------------------------------------------------
# jobs that cannot work


async def start_failure(host: DevHost, job: Path, change: Callable[[Any], None] | None = None) -> tuple[str, bool]:
    """The alloc's event for a start that is refused, and whether Nomad tries again."""
    host.job = read_job(job)
    if change is not None:
        config = host.alloc.task_config(host.alloc.new_task_id(), host.encode_config())
        change(config)
        client = await host.client()
        with pytest.raises(RpcError) as refused:
            await client.start_task(config)
        return str(refused.value), refused.value.recoverable
    with pytest.raises(StartFailedError) as failed:
        await host.start()
    return str(failed.value), failed.value.recoverable


async def test_refusals_as_the_alloc_shows_them(node: Node, golden: Callable[[str, str], None]) -> None:
    (node.images / "text.raw").write_text("no disk at all")
    (node.images / "text.qcow2").write_text("no disk at all")
    shutil.copyfile(node.guest / "disk.qcow2", node.images / "small.qcow2")
    (node.images / "out").symlink_to("/etc")
    kernel = f'kernel = "{node.guest}/vmlinuz"'

    def with_namespace(config: Any) -> None:
        config.network_isolation_spec.path = "/run/netns/group"

    cases: dict[str, tuple[Path, Callable[[Any], None] | None]] = {}

    def case(title: str, boot: str = kernel, change: Callable[[Any], None] | None = None, **job: Any) -> None:
        cases[title] = (node.job(name=f"case{len(cases)}", boot=boot, **job), change)

    case("nothing to boot", boot="")
    case("several at once", config='vcpus = 0\n root_size = "10G"\n hostname = "-x-"\n on_panic = "dance"')
    case(
        "a device that the operator gives to nobody",
        config='vfio = ["0000:3b:00.0"]\n numa = "strict"\n disk {\n name = "data"\n size = "1GiB"\n }',
    )
    case("who would wait for nobody", boot='image = "nfs://vms/a.raw"\n agent = false\n wait_for = "agent"')
    case("a group whose namespace is gone", change=with_namespace)
    case("the network of a group that has none", config='network_interface {\n network = "alloc"\n }')
    keys = 'network = "user0"\n address = ["192.0.2.0/24", "192.0.2.7"]\n gateway = "10.0.0.1"'
    case("addresses that cannot be", config=f"network_interface {{\n {keys}\n }}")
    case("a network that the operator did not name", config='network_interface {\n network = "lan"\n }')
    case("an image outside image_paths", boot='image = "/etc/secret.raw"')
    case("an image by a link that leads out", boot=f'image = "{node.images}/out/passwd"\n image_format = "raw"')
    case("a path with dots", boot='image = "local/../../../etc/passwd"\n image_format = "raw"')
    case("a missing kernel", boot='kernel = "local/vmlinuz"')
    case("a missing image of the operator's", boot=f'image = "{node.images}/none.raw"')
    case("an image that is none", boot=f'image = "{node.images}/text.qcow2"')
    case("a format that is not the image's", boot=f'image = "{node.images}/small.qcow2"\n image_format = "raw"')
    case("a disk that would have to shrink", boot=f'image = "{node.images}/small.qcow2"\n root_size = "8MiB"')
    case("firmware that is no word", boot=f'image = "{node.images}/small.qcow2"\n firmware = "UEFI"')
    case("firmware that is none", boot=f'image = "{node.images}/small.qcow2"\n firmware = "{node.images}/text.raw"')
    case("a kernel that is none", boot=f'kernel = "{node.images}/text.raw"')
    case("user data of another kind", config='user_data = "echo hello\\necho more"')
    case("too many words for a kernel", boot=f'{kernel}\n cmdline = "{"x" * 2048}"')

    async with node.host(node.job()) as host:
        text = ""
        for title, (job, change) in cases.items():
            words, recoverable = await start_failure(host, job, change)
            again = "is tried again" if recoverable else "is not tried again"
            text += f"# {title} ({again})\n{words}\n\n"
        assert node.processes() == NOTHING
        assert node.runs() == []
    for here, name in ((str(node.base), "BASE"), (str(node.guest), "GUEST"), (host.alloc.id, "ALLOC")):
        text = text.replace(here, name)
    golden("refusals.txt", text.rstrip() + "\n")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("agent = false", "no guest agent (agent = false, or not Linux): use SSH, or the command `console`"),
        ("", "the guest agent does not answer (cloud-init, python3?): use SSH or `console`"),
    ],
)
async def test_exec_says_what_to_use_instead(fake_node: Node, config: str, sentence: str) -> None:
    async with running(fake_node, config=config) as (host, _):
        with pytest.raises(RpcError) as one:
            await (await host.client()).exec_task(host.task_id, ["/bin/true"])
        assert str(one.value) == f"rpc error: code = Unimplemented desc = {sentence}"
        assert not one.value.recoverable


# ---------------------------------------------------------------------------------------------------------------------
# many starts, some of which fail


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_twenty_starts_and_stops_in_a_row_leave_nothing_but_the_machines_directory(fake_node: Node) -> None:
    fake_node.hypervisor = "auto"
    fake_node.write_agent_file()
    pinned = f'kernel = "{fake_node.images}/kernel"\n hypervisor = "fake"'
    good = fake_node.job(boot=pinned, name="good")
    missing = fake_node.job(boot='kernel = "local/none"\n hypervisor = "fake"', name="missing")
    bad = fake_node.job(boot=pinned, config="vcpus = 0", name="bad")
    with taken_port() as port:
        web = fake_node.job(
            boot=f'kernel = "{fake_node.guest}/vmlinuz"\n hypervisor = "qemu"',
            config='network_interface {\n network = "user0"\n }',
            group='network {\n port "http" {\n to = 80\n }\n }',
            name="web",
        )
        async with fake_node.host(web) as host:
            host._alloc = replace(host.alloc, ports={"http": (port, 80)})  # taken between placement and start
            for round_ in range(5):
                text, recoverable = await start_failure(host, missing)
                assert "kernel" in text
                assert not recoverable
                text, recoverable = await start_failure(host, bad)
                assert "vcpus" in text
                assert not recoverable
                if round_ == 0:
                    text, recoverable = await start_failure(host, web)
                    assert re.search(rf"port.*{port}", text)
                    assert recoverable
                else:
                    host.job = replace(read_job(good), ports=())
                    await host.start()
                    await host.destroy()
                told_so = fake_node.job(boot=f'{pinned}\n cmdline = "say=round-{round_}"', name="stopped")
                host.job = replace(read_job(told_so), ports=())
                await host.start()
                await until_says(host, f"say round-{round_}")  # earlier, it would miss the power button
                client = await host.client()
                await client.stop_task(host.task_id, timeout_s=20)
                await client.destroy_task(host.task_id)
            assert fake_node.processes() == NOTHING
            assert fake_node.runs() == []
            assert fake_node.machines() == [f"{host.alloc.id}/vm"]
            kept = sorted(path.name for path in (fake_node.layout.machines / host.alloc.id / "vm").iterdir())
            assert set(kept) <= {"boot", "exit.json", "lock", "mark.json"}


@pytest.fixture
def small_disk(fake_node: Node) -> Iterator[Path]:
    """A data_dir on a file system of 256 KiB."""
    path = fake_node.layout.data_dir
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(directory: Path) -> Path:
    """Not a byte more goes onto that file system."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


async def test_a_full_disk_is_said_and_tried_again_and_leaves_nothing(fake_node: Node, small_disk: Path) -> None:
    large = fake_node.job(boot=f'kernel = "{fake_node.guest}/vmlinuz"', name="large")
    async with fake_node.host(fake_node.job()) as host:
        text, recoverable = await start_failure(host, large)
        assert "no space left" in text
        assert recoverable
        assert fake_node.runs() == []

        filler = fill(small_disk)
        text, recoverable = await start_failure(host, fake_node.job())
        assert "no space left" in text.lower()
        assert recoverable
        assert fake_node.runs() == []

        filler.unlink()
        await host.start()
        await until_says(host, READY)
        # The end of a machine is known even when it cannot be written down there.
        filler = fill(small_disk)
        waiting = asyncio.create_task(host.wait())
        host.kill()
        assert await waiting == ExitResult()
        await host.destroy()
        assert fake_node.processes() == NOTHING
        filler.unlink()
        fake_node.end_machines()


# ---------------------------------------------------------------------------------------------------------------------
# a reader of the logs that stands still

_LOSS = re.compile(rb"\nchv: lost (\d+) bytes\n")


def lost_so_far(node: Node) -> int:
    with Connection.open(node.run.control) as connection:
        return int(connection.ask("status")["lost_stdout_bytes"])


async def test_what_a_reader_that_stands_still_loses_is_counted_to_the_byte(fake_node: Node) -> None:
    lines, size = 60_000, 101  # with the carriage return of a serial console
    async with running(fake_node, f"sleep=1 flood={lines * 100} tick") as (host, _):
        host.logmon.hold()
        await until(lambda: lost_so_far(fake_node) > 2_000_000, "the guest to go on without a reader", host=host)
        host.logmon.release()
        await until_says(host, "tick 3")
        written = host.alloc.paths.log("stdout").read_bytes()
        losses = [int(number) for number in _LOSS.findall(written)]
        assert sum(losses) == lost_so_far(fake_node)
        whole = _LOSS.sub(b"", written)
        flood = whole[whole.index(b"flood 0000001") : whole.index(b"flood end")]
        assert len(flood) + sum(losses) == lines * size


async def test_a_reader_that_stands_still_for_thirty_seconds_does_not_stall_a_real_guest(node: Node) -> None:
    async with running(node, "sleep=1 flood", type="service") as (host, life):
        await until_says(host, "flood 0000001")
        host.logmon.hold()
        before = 0
        for _ in range(6):
            await asyncio.sleep(5)
            lost = lost_so_far(node)
            assert lost > before or before == 0
            before = lost
        assert before > 0
        host.logmon.release()
        await until(lambda: _LOSS.search(host.console().encode()), "the loss to be counted in the log", host=host)
        host.kill()
        assert await life == ExitResult()
        assert "forced off" not in kinds(host)
        assert shown(host)[-2:] == ["Terminated: Exit Code: 0", "Killed: Task successfully killed"]
