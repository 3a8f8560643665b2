"""Root disks, seeds and networks of a job, from its file to what its guest sees."""

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost, StartFailedError
from tests.integration.nodes import READY, Node, stop, told, until, until_says

MIB = 1 << 20
USER_NETWORK = 'network_interface {\n network = "user0"\n }'
# Beyond what the image holds: the guest does not mind what is there.
MARK_AT = 40 * MIB
MARK = f"-P 0xc5 {MARK_AT} 64k"


def qemu_io(disk: Path, command: str) -> str:
    """`qemu-io`'s words; it says of a pattern that is not there."""
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2" if disk.suffix == ".qcow2" else "raw", "-c", command, str(disk)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout + done.stderr


def virtual_size(disk: Path) -> int:
    done = subprocess.run(["qemu-img", "info", "--output=json", str(disk)], capture_output=True, check=True)
    return int(json.loads(done.stdout)["virtual-size"])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def root_disk(node: Node) -> Path:
    (found,) = [path for path in node.layout.machines.glob("*/*/disk/root-*") if path.suffix in (".raw", ".qcow2")]
    return found


def said(host: DevHost, pattern: str) -> str:
    found = re.search(pattern, host.console(), re.MULTILINE)
    assert found is not None, host.console()
    return found[1]


# ---------------------------------------------------------------------------------------------------------------------
# real guests


async def test_a_guest_on_an_overlay_sees_its_size_its_seed_and_its_network(node: Node) -> None:
    image = node.images / "disk.qcow2"
    shutil.copyfile(node.guest / "disk.qcow2", image)
    before = digest(image)
    user_data = "#words say=from-user-data http=8080\n"
    job = node.job(
        boot=f'image = "{image}"\n root_size = "64MiB"',
        config=f'hostname = "web-1"\n user_data = {json.dumps(user_data)}\n {USER_NETWORK}',
        group='network {\n port "http" {\n to = 8080\n }\n }',
        task='env {\n GREETING = "it\'s $me"\n }',
    )
    async with node.host(job) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, "http on port 8080")
        port, _ = host.alloc.ports["http"]
        assert await asyncio.to_thread(fetch, port) == "hello from web-1\n"
        assert said(host, r"^disk vda (\d+)") == str(64 * MIB)
        assert said(host, r"^seed instance-id (\S+)") == f"{host.alloc.id}-vm"
        assert said(host, r"^seed file user-data (\w+)") == hashlib.sha256(user_data.encode()).hexdigest()
        assert said(host, r"^seed file nomad.env (\w+)")
        assert said(host, r"^address eth0 (\S+)").startswith("10.0.2.15")
        assert "say from-user-data" in host.console()
        assert host.console("stderr") == ""
        host.kill()
        assert await life == ExitResult()
    assert digest(image) == before


async def test_a_guest_on_a_copy_of_an_artifact_with_user_data_of_an_artifact(node: Node) -> None:
    jobs = node.base / "jobs"
    shutil.copyfile(node.guest / "disk.raw", jobs / "guest.img")
    (jobs / "cloud.txt").write_text("#words exit=4\n")
    job = node.job(
        boot='image = "${NOMAD_TASK_DIR}/guest.img"\n image_format = "raw"\n root_mode = "copy"',
        config='user_data = "local/cloud.txt"',
        task='artifact {\n source = "guest.img"\n }\n artifact {\n source = "cloud.txt"\n }',
    )
    async with node.host(job) as host:
        assert await host.run() == ExitResult(exit_code=4)
        assert said(host, r"^disk vda (\d+)") == str((node.guest / "disk.raw").stat().st_size)
        assert said(host, r"^seed file user-data (\w+)") == hashlib.sha256(b"#words exit=4\n").hexdigest()


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


# ---------------------------------------------------------------------------------------------------------------------
# what becomes of the disks


@pytest.mark.parametrize(
    ("image", "mode", "kept"),
    [
        ("disk.qcow2", "overlay", "root-overlay.qcow2"),
        ("disk.raw", "overlay", "root-overlay.qcow2"),
        ("disk.qcow2", "copy", "root-copy.qcow2"),
        ("disk.raw", "copy", "root-copy.raw"),
    ],
)
async def test_a_root_disk_keeps_what_was_written_over_restarts_of_the_alloc(
    fake_node: Node, image: str, mode: str, kept: str
) -> None:
    source = fake_node.guest / image
    before = digest(source)
    boot = f'image = "{source}"\n root_mode = "{mode}"\n root_size = "48MiB"'
    async with fake_node.host(fake_node.job(boot=boot)) as host:
        await host.start()
        await until_says(host, READY)
        disk = root_disk(fake_node)
        assert (disk.name, virtual_size(disk)) == (kept, 48 * MIB)
        await stop(host)
        assert "Pattern verification failed" in qemu_io(disk, f"read {MARK}")
        qemu_io(disk, f"write {MARK}")
        await host.start()
        await until_says(host, READY, count=2)
        assert root_disk(fake_node) == disk
        await stop(host)
        assert "Pattern verification failed" not in qemu_io(disk, f"read {MARK}")
    assert digest(source) == before


async def test_the_image_cannot_be_another_one_at_a_restart_of_the_alloc(fake_node: Node) -> None:
    image = fake_node.images / "disk.qcow2"
    shutil.copyfile(fake_node.guest / "disk.qcow2", image)
    async with fake_node.host(fake_node.job(boot=f'image = "{image}"')) as host:
        await host.start()
        await until_says(host, READY)
        await stop(host)
        image.unlink()
        shutil.copyfile(fake_node.guest / "disk.qcow2", image)
        with pytest.raises(StartFailedError, match="image"):
            await host.start()


async def test_two_allocs_on_one_image_do_not_see_each_other(fake_node: Node) -> None:
    job = fake_node.job(boot=f'image = "{fake_node.guest}/disk.qcow2"')
    async with fake_node.host(job) as first, fake_node.host(job) as second:
        await asyncio.gather(first.start(), second.start())
        await asyncio.gather(until_says(first, READY), until_says(second, READY))
        disks = sorted(fake_node.layout.machines.glob("*/*/disk/root-overlay.qcow2"))
        assert len({disk.stat().st_ino for disk in disks}) == 2


@pytest.mark.parametrize("config", ["", 'network_interface {\n network = "nowhere"\n }'])
async def test_a_start_that_fails_after_the_disk_was_made_can_be_tried_again(fake_node: Node, config: str) -> None:
    """The disk is the alloc's, not the start's."""
    (fake_node.images / "bad").write_text("no kernel")
    bad = f'image = "{fake_node.guest}/disk.qcow2"\n kernel = "{fake_node.images}/bad"'
    good = f'image = "{fake_node.guest}/disk.qcow2"\n kernel = "{fake_node.images}/kernel"'
    async with fake_node.host(fake_node.job(boot=bad, config=config)) as host:
        with pytest.raises(StartFailedError, match=r"bad|nowhere"):
            await host.start()
        assert fake_node.runs() == []
        host.job = fake_node.host(fake_node.job(boot=good, name="again")).job
        await host.start()
        await until_says(host, READY)


# ---------------------------------------------------------------------------------------------------------------------
# ports


async def test_ports_without_an_interface_are_a_lint(fake_node: Node) -> None:
    job = fake_node.job(group='network {\n port "http" {\n to = 80\n }\n }')
    async with fake_node.host(job) as host:
        await host.start()
        await until(lambda: any(one.startswith("lint: ") for one in told(host)), "a lint", host=host)
        lints = [one for one in told(host) if one.startswith("lint: ")]
        assert lints == ["lint: ports http lead nowhere: the machine has no network_interface"]
