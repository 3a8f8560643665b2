"""Everything of ours is killed at once, again and again, while machines start and stop: what nobody owns is swept, and
nothing else is touched. `make soak` does it oftener. CHV_SOAK_ROUNDS and CHV_SOAK_SEED say how often and which.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driver.devhost.client import PluginClient, RpcError
from tests.fakes.plugin_client import FakeTask, Place, place_at, plugin_at
from tests.guest.build import Guest
from tests.integration.machines import Host, Running, host_for
from tests.integration.networks import Network, network
from tests.integration.nodes import Node
from vmlib import cgroup
from vmlib.cores.ledger import read_entries
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.net.names import read_mark
from vmlib.paths import run_key
from vmlib.postflight import persistent_disks
from vmlib.record import load_machine
from vmlib.sweep import Sweeper

ROUNDS = int(os.environ.get("CHV_SOAK_ROUNDS", "20"))
SEED = int(os.environ.get("CHV_SOAK_SEED") or random.SystemRandom().randrange(1 << 32))
TASKS = 4
LONGEST_S = 1.2  # from the first start of a round to the kill
_DISK = {"name": "data", "size": "8MiB", "persistent": True}


@dataclass
class World:
    """One node, the tasks on it, and what stands beside them and is not to be touched."""

    host: Host  # the bystander's
    node: Node
    place: Place
    bystander: Running
    net: Network
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    tasks: list[FakeTask] = field(default_factory=list)
    killed: int = 0  # keepers, VMMs and launchers

    @property
    def machines(self) -> Machines:
        return self.host.machines

    @property
    def alike(self) -> str:
        """The name of what only looks like a start of ours."""
        return run_key(f"{self.host.directory}/look-alike")

    @property
    def spared(self) -> set[int]:
        return {self.bystander.vmm, self.bystander.keeper.pid}

    def task(self, number: int) -> FakeTask:
        # Of every two one wants the same disk as in the last round.
        return FakeTask(self.place, words="tick", name=f"t{number}", options={"disk": [_DISK]} if number % 2 else {})

    def sweep(self, *, dry_run: bool = False) -> list[str]:
        one = Sweeper(machines=self.machines, owner="nomad", gone_s=0.0, orphan_grace_s=0.0, dry_run=dry_run)
        return sorted(self.net.host.do(lambda: one.sweep(time.monotonic())))

    def ours(self) -> list[int]:
        return [pid for pids in self.node.processes().values() for pid in pids if pid not in self.spared]

    def kill_all(self, plugin: int) -> None:
        """In any order; what was being started meanwhile is killed as well."""
        victims = [plugin, *self.ours()]
        while victims:
            self.rng.shuffle(victims)
            self.killed += len(victims)
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            victims = self.ours()


async def live(world: World, client: PluginClient, task: FakeTask) -> None:
    """Starts and stops, until the plugin is gone."""
    with contextlib.suppress(RpcError, OSError):
        while True:
            await client.start_task(task.config())
            await asyncio.sleep(world.rng.random() / 2)
            if world.rng.random() < 0.5:
                await client.stop_task(task.id, timeout_s=world.rng.choice((0.0, 5.0)))
                await client.destroy_task(task.id)
                task.start = f"{world.rng.randrange(1 << 32):08x}"


async def kill_in_the_middle(world: World, chv: Path) -> None:
    async with plugin_at(chv, world.place) as plugin:
        lives = [asyncio.create_task(live(world, plugin.client, task)) for task in world.tasks]
        await asyncio.sleep(world.rng.random() * LONGEST_S)
        world.kill_all(plugin.pid)
        for one in lives:
            one.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        await plugin.kill()


def expect_swept(world: World) -> None:
    """Of tasks whose alloc is gone there is nothing, and all else is as it was."""
    layout = world.place.layout
    wanted = {f"{task.alloc_id}/{task.name}" for task in world.tasks}
    left = {mark.name for mark in world.machines.marks()} - {world.bystander.spec.name}
    assert left <= wanted
    known = {run_key(world.bystander.machine.id), world.alike, *_starts(world, left)}
    assert {path.name for path in layout.runs.iterdir()} <= known
    marks = [read_mark(mark) for _, mark in cgroup.marked()]
    assert {mark[1].name for mark in marks if mark is not None and mark[1].parent == layout.runs} <= known
    assert world.ours() == []
    world.machines.cores.reconcile()
    assert [entry.id for entry in read_entries(layout.ledger)] == [world.bystander.machine.id]
    assert [disk for disk in persistent_disks(layout).list() if disk.holder is not None] == []
    assert world.bystander.machine.running()


def _starts(world: World, names: set[str]) -> Iterator[str]:
    """What journals and records of these machines name."""
    for name in names:
        paths = world.place.layout.machine(name)
        if paths.journal.exists():
            for word in paths.journal.read_text().split('"'):
                if word.startswith(str(world.place.layout.runs)):
                    yield Path(word).name
        if (record := load_machine(paths.record)) is not None:
            yield Path(record.run_dir).name


@contextlib.contextmanager
def look_alikes(world: World) -> Iterator[None]:
    """Of somebody else's: a cgroup with a process, a link, a mount and a run directory that resemble ours."""
    key, layout = world.alike, world.place.layout
    group, run_dir, mount = cgroup.read_layout().tops[0] / key / "vmm", layout.runs / key, layout.nfs / key / "vms"
    for path in (run_dir, mount):
        path.mkdir(parents=True)
    (run_dir / "vmm").write_text("{}")
    cgroup.create([group])
    link = f"chv{key[:10]}00"
    index, alias = world.net.host.add_bridge(link), "chv nomad /elsewhere/m/x"
    world.net.host.ask(lambda ipr: ipr.link("set", index=index, ifalias=alias))
    subprocess.run(["mount", "-t", "tmpfs", "chv", str(mount)], check=True)
    child = subprocess.Popen(["qemu-system-x86_64", "3600"], executable="/bin/sleep", cwd="/")
    try:
        cgroup.join(group, child.pid)
        yield
        assert child.poll() is None
        assert cgroup.pids(group) == (child.pid,)
        assert link in world.net.host.names()
        assert os.path.ismount(mount)
        assert (run_dir / "vmm").exists()
    finally:
        child.kill()
        child.wait()
        cgroup.remove(group)
        subprocess.run(["umount", str(mount)], check=True)
        for path in (mount, mount.parent, mount.parent.parent):
            path.rmdir()
        (run_dir / "vmm").unlink()
        run_dir.rmdir()


def without_torn(names: list[str]) -> list[str]:
    return [name for name in names if not Path(name).name.startswith(".")]


def torn(world: World) -> list[Path]:
    return list(world.place.layout.data_dir.rglob(".*"))


@pytest.fixture
def world(guest: Guest, chv: Path, short_dir: Path) -> Iterator[World]:
    with host_for(short_dir, guest.directory, "fake") as host, network() as net, place_at(short_dir) as place:
        node = Node(base=short_dir, guest=guest.directory, chv=chv, hypervisor="fake")
        bystander = host.start("tick", task="bystander")
        yield World(host, node, place, bystander, net)


@pytest.mark.timeout(60 + 15 * ROUNDS)
async def test_after_all_was_killed_the_sweep_leaves_nothing_and_touches_nobody(world: World, chv: Path) -> None:
    print(f"CHV_SOAK_SEED={SEED} CHV_SOAK_ROUNDS={ROUNDS}")
    with look_alikes(world):
        for number in range(ROUNDS):
            while len(world.tasks) < TASKS:
                world.tasks.append(world.task(len(world.tasks)))
            for task in world.tasks:
                task.make()
            await kill_in_the_middle(world, chv)
            # Some allocs come to their end while nobody is there; the others' tasks start again in the next round.
            gone = [task for task in world.tasks if world.rng.random() < 0.6 or number == ROUNDS - 1]
            for task in gone:
                task.remove()
                world.tasks.remove(task)
            would = world.sweep(dry_run=True)
            # What was cut short in an earlier round may become old enough at any moment.
            assert without_torn(world.sweep()) == without_torn(would), f"round {number}, seed {SEED}"
            expect_swept(world)
            assert without_torn(world.sweep()) == []
            world.bystander.pump()
    for path in torn(world):
        os.utime(path, (0, 0))
    world.sweep()
    assert torn(world) == []
    ticks = [int(line.split()[1]) for line in world.bystander.out.lines if line.startswith("tick ")]
    assert ticks == list(range(1, len(ticks) + 1))
    assert world.killed > 3 * ROUNDS
    reap()
