"""Single calls to the driver over the wire, also those that come twice, too late, or for a task that nobody knows."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from driver.devhost.events import ExitResult
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at
from tests.integration.nodes import PATIENCE_S, Node, kinds, open_files, told, until, until_says
from vmlib import process

NODE_ATTRIBUTES = ("driver.chv", "driver.chv.version", "driver.chv.qemu.version", "driver.chv.accel")

ONLINE = Path("/sys/devices/system/cpu/online").read_text().strip()


@contextlib.asynccontextmanager
async def plugin_and_task(chv: Path, base: Path, words: str = "") -> AsyncIterator[tuple[Plugin, FakeTask]]:
    """A plugin without an agent, and a task whose guest is told `words`, not started yet."""
    with place_at(base) as place:
        (base / "tmp").mkdir()
        task = FakeTask(Place(base=base), words=words)
        task.make()
        async with plugin_at(chv, place) as plugin:
            with task.reading("stdout"), task.reading("stderr"):
                yield plugin, task


def vmms(place: Place) -> list[int]:
    return [who.pid for who in place.vmms()]


# ---------------------------------------------------------------------------------------------------------------------
# start, wait, stop, destroy


async def test_start_task_twice_with_one_id_starts_one_machine(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        calls = [plugin.client.start_task(task.config()) for _ in range(3)]
        answers = await asyncio.gather(*calls)
        answers.append(await plugin.client.start_task(task.config()))
        assert {answer.result for answer in answers} == {pb.StartTaskResponse.SUCCESS}
        assert len({answer.handle.driver_state for answer in answers}) == 1
        assert len(vmms(task.place)) == 1
        await plugin.client.destroy_task(task.id)
        assert not task.place.layout.runs.exists() or list(task.place.layout.runs.iterdir()) == []


async def test_the_handle_holds_all_that_recover_needs(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        handle = (await plugin.client.start_task(task.config())).handle
        assert (handle.version, handle.state, handle.config.id) == (1, pb.RUNNING, task.id)
        await plugin.kill()
        handle.config.msgpack_driver_config = b""
        async with plugin_at(chv, task.place) as again:
            clock = asyncio.get_running_loop()
            before = clock.time()
            await asyncio.gather(*(again.client.recover_task(handle) for _ in range(3)))
            assert clock.time() - before < 1.0
            assert len(vmms(task.place)) == 1
            await again.client.destroy_task(task.id)


async def test_every_caller_of_wait_gets_the_end_also_after_it(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir, "sleep=1 exit=7") as (plugin, task):
        await plugin.client.start_task(task.config())
        waits = [asyncio.create_task(plugin.client.wait_task(task.id)) for _ in range(5)]
        gives_up = asyncio.create_task(plugin.client.wait_task(task.id))
        await asyncio.sleep(0.1)
        gives_up.cancel()
        answers = [*await asyncio.gather(*waits), await plugin.client.wait_task(task.id)]
        assert [(one.result.exit_code, one.result.signal, one.err) for one in answers] == [(7, 0, "")] * 6
        # Nomad stops and destroys what has ended already.
        await plugin.client.stop_task(task.id, timeout_s=5)
        await plugin.client.destroy_task(task.id)
        with pytest.raises(RpcError, match="NotFound"):
            await plugin.client.wait_task(task.id)


async def test_destroy_needs_force_for_a_task_that_runs_and_answers_who_waits(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        await plugin.client.start_task(task.config())
        waiting = asyncio.create_task(plugin.client.wait_task(task.id))
        with pytest.raises(RpcError, match="still runs"):
            await plugin.client.destroy_task(task.id, force=False)
        assert len(vmms(task.place)) == 1
        await plugin.client.destroy_task(task.id)
        async with asyncio.timeout(PATIENCE_S):
            result = (await waiting).result
        assert (result.exit_code, result.signal) == (137, 9)


@pytest.mark.parametrize("task_id", ["", "x", "a/b", "gone/vm/0123abcd", "../../etc/passwd/0123abcd", "a/b/c/0123abcd"])
async def test_a_task_that_nobody_knows(chv: Path, short_dir: Path, task_id: str) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        client = plugin.client
        await client.stop_task(task_id)
        await client.destroy_task(task_id)
        await client.destroy_task(task_id, force=False)
        for call in (client.wait_task(task_id), client.inspect_task(task_id), client.signal_task(task_id, "SIGTERM")):
            with pytest.raises(RpcError, match="NotFound"):
                await call
        with pytest.raises(RpcError, match="NotFound"):
            async with aclosing(client.task_stats(task_id)) as samples:
                await anext(samples)
        handle = pb.TaskHandle(config=pb.TaskConfig(id=task_id))
        with pytest.raises(RpcError, match="FailedPrecondition") as refused:
            await client.recover_task(handle)
        assert not refused.value.recoverable
        left = [path.name for path in task.place.layout.data_dir.rglob("*") if path.is_file()]
        assert left == []


async def test_a_new_start_of_the_task_is_not_ended_by_destroy_with_an_old_id(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        old = task.id
        await plugin.client.start_task(task.config())
        await plugin.client.destroy_task(old)
        task.start = "0123abcd"
        await plugin.client.start_task(task.config())
        (vmm,) = vmms(task.place)
        await plugin.client.destroy_task(old)
        await plugin.client.stop_task(old)
        assert vmms(task.place) == [vmm]
        await plugin.client.destroy_task(task.id)


# ---------------------------------------------------------------------------------------------------------------------
# looking


async def test_inspect_task_tells_of_the_machine_before_and_after_its_end(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir, "sleep=1 exit=3") as (plugin, task):
        await plugin.client.start_task(task.config())
        (vmm,) = vmms(task.place)
        found = await plugin.client.inspect_task(task.id)
        assert dict(found.driver.attributes) == {
            "hypervisor": "fake",
            "reason": "fake: pinned by the job",
            "pid": str(vmm),
            "vcpus": "1",
            "memory_mib": "64",
            "placement": "shared",
            "level": "shared",
            "cores_repaired": "0",
        }
        assert (found.task.id, found.task.name, found.task.state) == (task.id, "fake", pb.RUNNING)
        assert found.task.started_at.seconds > 1_700_000_000
        assert found.task.completed_at.seconds < 0  # Go's zero time: anything else would be a date
        await plugin.client.wait_task(task.id)
        found = await plugin.client.inspect_task(task.id)
        assert (found.task.state, found.task.result.exit_code) == (pb.EXITED, 3)
        assert found.task.completed_at.seconds >= found.task.started_at.seconds


async def test_stats_are_of_vmm_and_keeper_and_their_sum_and_never_end_by_themselves(
    chv: Path, short_dir: Path
) -> None:
    async with plugin_and_task(chv, short_dir, "sleep=1 poweroff") as (plugin, task):
        await plugin.client.start_task(task.config())
        samples: list[pb.TaskStats] = []
        async with aclosing(plugin.client.task_stats(task.id, interval_s=0.2)) as stream:
            following = asyncio.create_task(_collect(stream, samples))
            await plugin.client.wait_task(task.id)
            done, _ = await asyncio.wait([following], timeout=0.5)
            assert not done
            await plugin.client.destroy_task(task.id)
            async with asyncio.timeout(PATIENCE_S):
                await following
        assert len(samples) >= 3
        for one in samples:
            parts = one.resource_usage_by_pid
            assert (one.id, set(parts)) == (task.id, {"vmm", "keeper", "guest", "vcpu0"})
            total, both = one.agg_resource_usage, (parts["vmm"], parts["keeper"])
            assert total.memory.rss == sum(part.memory.rss for part in both) > 1 << 20
            assert total.cpu.percent == pytest.approx(sum(part.cpu.percent for part in both))
            assert one.timestamp.seconds > 1_700_000_000
            assert parts["guest"].memory.usage == 64 << 20
            assert list(parts["guest"].memory.measured_fields) == [pb.MemoryUsage.USAGE]
            assert not parts["vcpu0"].memory.measured_fields
        assert samples[0].agg_resource_usage.cpu.percent == 0


async def test_two_streams_of_one_task_and_one_that_its_caller_left(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        await plugin.client.start_task(task.config())
        async with aclosing(plugin.client.task_stats(task.id, interval_s=0.2)) as stream:
            for _ in range(2):
                async with aclosing(plugin.client.task_stats(task.id, interval_s=0.2)) as other:
                    await anext(other)
                    await anext(other)
                await anext(stream)
        async with aclosing(plugin.client.task_stats(task.id, interval_s=0.2)) as stream:
            await anext(stream)


async def test_a_keeper_that_is_replaced_ends_no_stats_and_makes_no_odd_number(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        await plugin.client.start_task(task.config())
        run = task.place.layout.run(task.id)
        keeper = process.load_identity(run.keeper)
        assert keeper is not None
        async with aclosing(plugin.client.task_stats(task.id, interval_s=0.1)) as stream:
            await anext(stream)
            assert process.send_signal(keeper, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while process.load_identity(run.keeper) in (keeper, None):
                    check(await anext(stream))
                for _ in range(5):
                    check(await anext(stream))


def check(sample: pb.TaskStats) -> None:
    """That nobody is shown nonsense."""
    for used in (sample.agg_resource_usage, *sample.resource_usage_by_pid.values()):
        for value in (used.cpu.percent, used.cpu.user_mode, used.cpu.system_mode):
            assert 0 <= value <= 100 * (os.cpu_count() or 1) + 10


async def _collect(stream: AsyncIterator[pb.TaskStats], into: list[pb.TaskStats]) -> None:
    into.extend([one async for one in stream])


async def test_fingerprint_answers_at_once_and_stays_open(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, _), aclosing(plugin.client.fingerprint()) as stream:
        clock = asyncio.get_running_loop()
        before = clock.time()
        first = await anext(stream)
        assert clock.time() - before < 1.0
        assert first.health == pb.FingerprintResponse.HEALTHY
        second = await anext(stream)  # with what the probes have found
        assert set(NODE_ATTRIBUTES) <= set(second.attributes)
        assert second.attributes["driver.chv"].bool_val
        more = asyncio.ensure_future(anext(stream))
        done, _ = await asyncio.wait([more], timeout=1.0)
        assert not done
        more.cancel()
        await asyncio.gather(more, return_exceptions=True)


async def test_a_node_without_a_hypervisor_says_so_in_its_health(chv: Path, short_dir: Path) -> None:
    config = {"data_dir": f"{short_dir}/data", "run_dir": f"{short_dir}/run", "qemu": {"binary": "/nowhere/qemu"}}
    async with plugin_and_task(chv, short_dir) as (plugin, _):
        await plugin.client.set_config(msgspec.msgpack.encode(config))
        async with asyncio.timeout(PATIENCE_S), aclosing(plugin.client.fingerprint()) as stream:
            while (found := await anext(stream)).health != pb.FingerprintResponse.UNHEALTHY:
                pass
        assert found.health_description == "qemu: /nowhere/qemu is not installed"
        assert "driver.chv.qemu.version" not in found.attributes


async def test_a_device_that_jobs_may_take_but_that_is_not_there_is_told_and_no_attribute(
    chv: Path, short_dir: Path
) -> None:
    address = "ffff:ff:1f.7"
    config = {"data_dir": f"{short_dir}/data", "run_dir": f"{short_dir}/run", "vfio_allow": [address]}
    async with plugin_and_task(chv, short_dir) as (plugin, _):
        await plugin.client.set_config(msgspec.msgpack.encode(config))
        async with asyncio.timeout(PATIENCE_S), aclosing(plugin.client.fingerprint()) as stream:
            while "vfio" not in (found := await anext(stream)).health_description:
                pass
        assert found.health == pb.FingerprintResponse.HEALTHY
        assert f"vfio {address}: this host has no such PCI device" in found.health_description
        assert "driver.chv.vfio" not in found.attributes


async def test_events_that_came_before_the_first_stream_are_kept_and_all_streams_get_the_next(
    chv: Path, short_dir: Path
) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        await plugin.client.start_task(task.config())
        (vmm,) = vmms(task.place)
        async with aclosing(plugin.client.task_events()) as first, aclosing(plugin.client.task_events()) as second:
            events = [await anext(first), await anext(first)]
            assert [event.message for event in events] == [
                f"machine started: fake: pinned by the job, pid {vmm}",
                f"cores: shared, 1 vCPU over CPU {ONLINE}",
            ]
            assert dict(events[0].annotations) == {
                "kind": "machine started",
                "hypervisor": "fake",
                "pid": str(vmm),
            }
            for event in events:
                assert (event.task_id, event.alloc_id, event.task_name) == (task.id, task.alloc_id, "fake")
                assert event.timestamp.seconds > 1_700_000_000
            other = asyncio.ensure_future(anext(second))
            await asyncio.sleep(0.2)
            await plugin.client.signal_task(task.id, "SIGSTOP")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(first)).message == (await other).message == "paused"
        await plugin.client.destroy_task(task.id)


async def test_the_config_of_the_operator_is_refused_with_every_complaint(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, _):
        config = b"\x83\xa7run_dir\xa3run\xa7vm_uids\xa2no\xaavfio_allow\x91\xa10"
        texts = []
        for _ in range(2):
            with pytest.raises(RpcError) as refused:
                await plugin.client.set_config(config)
            texts.append(refused.value.details)
        assert texts[0] == texts[1]
        for key in ("run_dir", "vm_uids", "vfio_allow"):
            assert key in texts[0]


async def test_a_reboot_is_one_event_and_the_task_goes_on(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job("reboot-once sleep=1 poweroff")) as host:
        assert await host.run() == ExitResult()
        assert kinds(host) == ["machine started", "cores", "rebooted"]
        assert told(host)[2] == "rebooted by the guest"
        assert "rebooted" in host.console()


async def test_on_reboot_exit_ends_the_task_with_zero(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job("reboot-once", config='on_reboot = "exit"')) as host:
        assert await host.run() == ExitResult()


@pytest.mark.parametrize("on_panic", ["exit", "restart"])
async def test_a_guest_panic(fake_node: Node, on_panic: str) -> None:
    async with fake_node.host(fake_node.job("sleep=1 panic", config=f'on_panic = "{on_panic}"')) as host:
        life = asyncio.create_task(host.run())
        words = "Kernel panic - not syncing: sysrq triggered crash"
        if on_panic == "exit":
            assert await life == ExitResult(exit_code=1, message=f"guest panic: {words}")
            assert kinds(host) == ["machine started", "cores", "panic"]
        else:
            await until_says(host, "chv test guest: ready", count=2)
            assert not life.done()
            assert kinds(host)[2] == "panic"
            host.kill()
            await life
        assert told(host)[2] == f"panic: {words}"


async def test_a_plugin_that_is_told_to_end_leaves_its_machines(chv: Path, short_dir: Path) -> None:
    async with plugin_and_task(chv, short_dir) as (plugin, task):
        await plugin.client.start_task(task.config())
        (vmm,) = vmms(task.place)
        await plugin.process.stop(driver_shutdown=True)
        os.kill(vmm, 0)
        async with plugin_at(chv, task.place) as again:
            await again.client.destroy_task(task.id)
            await until(lambda: vmms(task.place) == [], "the machine to be gone")


async def test_what_is_secret_in_a_job_is_in_no_log_no_event_and_no_argument(fake_node: Node) -> None:
    job = fake_node.job(
        config='user_data = "#cloud-config\\npassword: hunter2\\n"\n ssh_authorized_keys = ["ssh-ed25519 hunter2 me"]',
        task='env {\n PASSWORD = "hunter2"\n }',
    )
    said: list[str] = []
    async with fake_node.host(job) as host:
        host.supervisor.on_log = lambda line: said.append(str(line))
        life = asyncio.create_task(host.run())
        await until_says(host, "chv test guest: ready")
        said += await asyncio.to_thread(all_that_others_may_see, fake_node)
        holders = await asyncio.to_thread(files_with, fake_node, b"hunter2")
        host.kill()
        await life
        said += [event.message + str(event.details) for event in host.events]
        said.append(host.console("stderr"))
    assert said
    assert not [text for text in said if "hunter2" in text]
    assert [path.name for path in holders] == ["seed.iso"]


def all_that_others_may_see(node: Node) -> list[str]:
    """Arguments and environments of all that runs there: plugin, keeper, VMM, and whoever starts them."""
    said = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):  # ended meanwhile
            words = [
                Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace") for name in ("cmdline", "environ")
            ]
            base = f"{node.base}/"
            if base in "".join(words) or any(link.startswith(base) for link in open_files(pid)):
                said += words
    assert len(said) >= 2 * len(("plugin", "keeper", "VMM"))
    return said


def files_with(node: Node, text: bytes) -> list[Path]:
    """Of ours, and not one that everybody may read."""
    roots = (node.layout.data_dir, node.layout.run_dir, node.allocs, node.base / "tmp")
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and path.name != "kernel"]
    found = [path for path in files if text in path.read_bytes()]
    assert [path for path in found if path.stat().st_mode & 0o077] == []
    return found
