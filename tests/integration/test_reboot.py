"""The host was rebooted: nothing stale is taken over, what is kept is whole, tasks start clean under Nomad's rules."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver._pb import driver_pb2 as pb
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at
from tests.integration.boots import in_another_boot
from tests.integration.nodes import Node
from vmlib import cgroup
from vmlib.cores.ledger import read_entries
from vmlib.paths import run_key
from vmlib.record import load_machine

DISK = {"name": "data", "size": "8MiB", "persistent": True}


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    with place_at(short_dir) as one:
        yield one


def rebooted(chv: Path, directory: Path) -> Path:
    """The same executable, in another boot."""
    wrapper = directory / "chv-rebooted"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(in_another_boot(directory, str(chv)))} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


async def crash(plugin: Plugin, place: Place, chv: Path) -> None:
    """The power fails: no process is left, and nothing of what lies in memory."""
    node = Node(base=place.base, guest=place.base, chv=chv, hypervisor="fake")
    for pid in [plugin.pid, *(pid for pids in node.processes().values() for pid in pids)]:
        os.kill(pid, signal.SIGKILL)
    await plugin.kill()
    for run in list(place.layout.runs.iterdir()):
        for path, _ in cgroup.marked(run.name):
            cgroup.kill_all(path)
            cgroup.remove(path)
    shutil.rmtree(place.layout.run_dir)


async def start(plugin: Plugin, task: FakeTask) -> pb.TaskHandle:
    task.make()
    return (await plugin.client.start_task(task.config())).handle


def a_task(place: Place, name: str) -> FakeTask:
    # Beside one core for housekeeping a small host has one to give.
    return FakeTask(place, words="tick", name=name, options={"placement": "exclusive", "disk": [DISK]})


async def test_a_task_ends_as_rebooted_and_starts_clean_with_its_disk(chv: Path, place: Place, short_dir: Path) -> None:
    task = a_task(place, "web")
    async with plugin_at(chv, place) as plugin:
        handle = await start(plugin, task)
        before = load_machine(place.layout.machine(f"{task.alloc_id}/web").record)
        await crash(plugin, place, chv)
    assert before is not None
    (disk,) = place.layout.disks.glob("*/disk.raw")
    disk.write_bytes(b"precious".ljust(disk.stat().st_size))
    async with plugin_at(rebooted(chv, short_dir), place) as plugin:
        # What an agent does with a task that it had: it is told of an end, and its restart policy says what follows.
        await plugin.client.recover_task(handle)
        ended = await plugin.client.wait_task(task.id)
        assert (ended.result.exit_code, ended.result.signal) == (1, 0)
        assert "the host was rebooted" in ended.err
        status = (await plugin.client.inspect_task(task.id)).task
        assert status.state == pb.EXITED
        await plugin.client.destroy_task(task.id)
        task.start = "00000002"
        await start(plugin, task)
        (vmm,) = Node(base=place.base, guest=place.base, chv=chv).processes()["vmm"]
        assert vmm != before.vmm_pid
        assert [entry.id for entry in read_entries(place.layout.ledger)] == [task.id]
        assert [path.name for path in place.layout.runs.iterdir()] == [run_key(task.id)]
        await plugin.client.destroy_task(task.id)
        await plugin.kill()
    assert disk.read_bytes().startswith(b"precious")


async def test_a_pid_that_lives_again_is_nobodys_machine(chv: Path, place: Place, short_dir: Path) -> None:
    """The run directory survived, and its numbers fit living processes: those of another boot."""
    task = a_task(place, "web")
    async with plugin_at(chv, place) as plugin:
        handle = await start(plugin, task)
        await plugin.kill()
    (vmm,) = place.vmms()
    async with plugin_at(rebooted(chv, short_dir), place) as plugin:
        await plugin.client.recover_task(handle)
        assert (await plugin.client.wait_task(task.id)).result.exit_code == 1
        await plugin.kill()
    assert place.vmms() == [vmm]  # not signalled


async def test_an_alloc_that_is_gone_after_the_reboot_is_swept(chv: Path, place: Place, short_dir: Path) -> None:
    task = a_task(place, "web")
    async with plugin_at(chv, place) as plugin:
        await start(plugin, task)
        await crash(plugin, place, chv)
    task.remove()
    (disk,) = place.layout.disks.glob("*/disk.raw")
    # As the embedded host's plugin, which has no minute to wait for.
    sweep = (
        "import sys; from pathlib import Path; from vmlib.machine import Machines; from vmlib.sweep import Sweeper\n"
        "from vmlib.settings import HostSettings; from vmlib.paths import Layout\n"
        f"layout = Layout(Path({str(place.layout.data_dir)!r}), Path({str(place.layout.run_dir)!r}))\n"
        "machines = Machines(HostSettings(layout=layout), None, None)\n"
        "print(*Sweeper(machines=machines, owner='nomad', gone_s=0, orphan_grace_s=0).sweep(0.0))\n"
        "machines.cores.reconcile()\n"
    )
    argv = in_another_boot(short_dir, sys.executable, "-c", sweep)
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2])
    out, _ = await child.communicate()
    assert out.decode().split() == [f"{task.alloc_id}/web"]
    assert read_entries(place.layout.ledger) == ()
    assert not list(place.layout.machines.iterdir())
    assert disk.exists()
