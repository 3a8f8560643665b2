"""A new release takes over the machines of the last one while they run, and the last one those of the new; a release
that finds a later data directory says so in one sentence and touches nothing.
"""

import asyncio
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost.client import RpcError
from tests.fakes.plugin_client import FakeTask, Place, Plugin, place_at, plugin_at
from vmlib import process
from vmlib.cores.ledger import read_entries
from vmlib.paths import RunPaths
from vmlib.process import Identity

CHECKOUT = Path(__file__).parents[2]
# Before there were versions, so there is no way back to it. To be moved when what is on disk changes (docs/upgrade.md).
LAST_FORMAT = "eb27cc7399143adb63ab75a601cfd71d15b3467f"
MORE = {"of_tomorrow": {"x": 1}}
DISK = {"name": "data", "size": "8MiB", "persistent": True}


def whole_history() -> bool:
    asked = ["git", "rev-parse", "--is-shallow-repository"]
    return subprocess.run(asked, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout == "false\n"


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable of the release that changed the format last."""
    tree = tmp_path_factory.mktemp("last")
    archive = tree / "tree.tar"
    done = subprocess.run(
        ["git", "archive", "-o", str(archive), LAST_FORMAT, "driver", "vmlib"],
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0 and not whole_history():
        pytest.skip("this is no clone with all of its history")
    assert done.returncode == 0, done.stderr.decode()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tree)], check=True)
    chv = tree / "chv"
    chv.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[0] = {str(tree)!r}\nfrom driver.main import main\nsys.exit(main())\n"
    )
    chv.chmod(0o755)
    return chv


@pytest.fixture
def place(short_dir: Path) -> Iterator[Place]:
    with place_at(short_dir) as one:
        yield one


@asynccontextmanager
async def started(chv: Path, place: Place, task: FakeTask) -> AsyncIterator[tuple[Plugin, pb.TaskHandle]]:
    task.make()
    async with plugin_at(chv, place) as plugin:
        yield plugin, (await plugin.client.start_task(task.config())).handle


def keeper_of(place: Place) -> Identity:
    (run,) = place.layout.runs.iterdir()
    who = process.load_identity(RunPaths(run).keeper)
    assert who is not None
    return who


async def expect_taken_over(chv: Path, place: Place, task: FakeTask, handle: pb.TaskHandle, vmm: Identity) -> None:
    """Recovered, watched by a keeper of its own even when the old one is killed, stopped, and taken back whole."""
    async with plugin_at(chv, place) as plugin:
        await plugin.client.recover_task(handle)
        ended = asyncio.create_task(plugin.client.wait_task(task.id))
        assert place.vmms() == [vmm]
        assert (await plugin.client.inspect_task(task.id)).task.state == pb.RUNNING
        old = keeper_of(place)
        events = plugin.client.task_events()
        assert process.send_signal(old, signal.SIGKILL)
        # One that has been started may not listen to the VMM yet; it says when it does.
        async with asyncio.timeout(30):
            async for event in events:
                if event.message.startswith("keeper replaced"):
                    break
        assert keeper_of(place) != old
        await plugin.client.stop_task(task.id, timeout_s=20)
        assert (await ended).result.exit_code == 0
        await plugin.client.destroy_task(task.id)
        assert list(place.layout.runs.iterdir()) == []
        assert read_entries(place.layout.ledger) == ()
        # The next start finds what this one has left.
        task.start = "00000002"
        await plugin.client.start_task(task.config())
        await plugin.client.destroy_task(task.id)
        assert list(place.layout.runs.iterdir()) == []


async def test_a_machine_is_taken_over_while_it_runs(last: Path, chv: Path, place: Place) -> None:
    task = FakeTask(place, words="tick", options={"disk": [DISK]})
    async with started(last, place, task) as (plugin, handle):
        (vmm,) = place.vmms()
        await plugin.kill()
    await expect_taken_over(chv, place, task, handle, vmm)


async def test_one_of_a_later_release_of_this_version_is_taken_back(chv: Path, place: Place) -> None:
    task = FakeTask(place, words="tick", options={"disk": [DISK]})
    async with started(chv, place, task) as (plugin, handle):
        (vmm,) = place.vmms()
        await plugin.kill()
    grown = {path.name for directory in (place.layout.data_dir, place.layout.run_dir) for path in with_more(directory)}
    assert grown >= {"mark.json", "machine.json", "journal", "ledger.json", "disk.json", "holder.json", "vmm", "keeper"}
    handle.driver_state = json.dumps(json.loads(handle.driver_state) | MORE).encode()
    await expect_taken_over(chv, place, task, handle, vmm)


def with_more(directory: Path) -> Iterator[Path]:
    """Add what a later release may to each file there that is JSON, or lines of it."""
    for path in directory.rglob("*"):
        if path.is_file() and (text := path.read_text(errors="replace")).startswith("{"):
            # As compact as it was: the ledger has a checksum of a part of it.
            lines = [json.dumps(json.loads(line) | MORE, separators=(",", ":")) for line in text.splitlines()]
            path.write_text("".join(f"{line}\n" for line in lines))
            yield path


async def test_one_that_was_stopped_starts_with_its_disks(last: Path, chv: Path, place: Place) -> None:
    task = FakeTask(place, words="poweroff", options={"disk": [DISK]})
    async with started(last, place, task) as (plugin, handle):
        await plugin.client.wait_task(task.id)
        await plugin.kill()
    (disk,) = place.layout.disks.glob("*/disk.raw")
    disk.write_bytes(b"precious".ljust(disk.stat().st_size))
    async with plugin_at(chv, place) as plugin:
        await plugin.client.recover_task(handle)
        assert (await plugin.client.wait_task(task.id)).result.exit_code == 0
        task.start = "00000002"
        await plugin.client.start_task(task.config())
        await plugin.client.destroy_task(task.id)
    assert disk.read_bytes().startswith(b"precious")


async def test_health_names_a_damaged_file_until_it_is_gone(chv: Path, place: Place) -> None:
    damaged = place.layout.data_dir / "ledger.json.corrupt-20260101T000000Z-0000"
    damaged.touch()
    nobodys = place.layout.machine("some-alloc/vm")
    nobodys.root.mkdir(parents=True)
    nobodys.mark.write_bytes(b"{")
    async with plugin_at(chv, place) as plugin:
        async for answer in plugin.client.fingerprint():
            if "damaged" in answer.health_description:
                assert f"damaged files were set aside: {damaged}: look" in answer.health_description
                assert f"nobody knows whose machine it was: {nobodys.root}: look" in answer.health_description
                assert answer.health == pb.FingerprintResponse.HEALTHY
                break
        await plugin.kill()
    damaged.unlink()
    shutil.rmtree(nobodys.root.parent)


async def test_a_later_data_directory_is_refused_in_a_sentence_and_not_touched(chv: Path, place: Place) -> None:
    task, other = FakeTask(place, words="tick"), FakeTask(place, words="tick")
    other.make()
    async with started(chv, place, task) as (plugin, handle):
        await plugin.kill()
    place.layout.version.write_text("2\n")
    task.remove()  # so that a sweep would want the machine
    before, vmms = tree_of(place), place.vmms()
    says = f"{place.layout.version} says 2, expected 1"
    async with plugin_at(chv, place) as plugin:
        answer = await anext(plugin.client.fingerprint())
        assert answer.health == pb.FingerprintResponse.UNHEALTHY
        assert answer.health_description.startswith(says)
        client = plugin.client
        for call in (
            client.start_task(other.config()),
            client.recover_task(handle),
            client.stop_task(task.id),
            client.destroy_task(task.id),
        ):
            with pytest.raises(RpcError, match=says):
                await call
        await asyncio.sleep(5)  # a look at the cores, and a sweep
        await plugin.kill()
    assert (tree_of(place), place.vmms()) == (before, vmms)
    place.layout.version.write_text("1\n")


def tree_of(place: Place) -> dict[str, str]:
    """Every file and what is in it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for top in (place.layout.data_dir, place.layout.run_dir)
        for path in sorted(top.rglob("*"))
        if not path.name.startswith(("keeper.log", "state.json"))
    }
