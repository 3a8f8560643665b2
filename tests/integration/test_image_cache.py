"""Images that jobs bring along, from the job's file to what is on the node's disk."""

import asyncio
import gzip
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost, StartFailedError
from tests.guest import build
from tests.integration.nodes import READY, Node, stop, told, until, until_says

MIB = 1 << 20


def cached(node: Node) -> list[Path]:
    return sorted((node.layout.cache / "images").glob("*"))


async def test_a_guest_boots_from_a_packed_image_and_the_next_one_finds_it_unpacked(node: Node) -> None:
    packed = node.images / "disk.qcow2.xz"
    packed.write_bytes(lzma.compress((node.guest / "disk.qcow2").read_bytes(), preset=0))
    inodes, image = set(), Path()
    for _ in range(2):
        job = node.job(boot=f'image = "{packed}"', config='user_data = "#words exit=3\\n"')
        async with node.host(job) as host:
            assert await host.run() == ExitResult(exit_code=3)
            (image,) = cached(node)
            inodes.add(image.stat().st_ino)
    assert len(inodes) == 1
    assert image.read_bytes() == (node.guest / "disk.qcow2").read_bytes()


async def test_a_machine_stands_on_its_own_feet_once_its_image_is_in_the_cache(fake_node: Node) -> None:
    """Neither the job's file nor the cache's is needed for a restart of the alloc."""
    async with fake_node.host(fake_node.job(boot='image = "local/disk.qcow2"')) as host:
        mine = host.alloc.paths.task_dir / "local/disk.qcow2"
        shutil.copyfile(fake_node.guest / "disk.qcow2", mine)
        await host.start()
        await until_says(host, READY)
        (image,) = cached(fake_node)
        assert image.read_bytes() == (fake_node.guest / "disk.qcow2").read_bytes()
        (base,) = fake_node.layout.machines.glob("*/*/disk/root-base.qcow2")
        assert base.samefile(image)
        await stop(host)
        image.unlink()
        mine.unlink()
        await host.start()
        await until_says(host, READY, count=2)
        assert base.exists()
        assert cached(fake_node) == []
        await stop(host)


async def test_twelve_allocs_that_start_at_once_unpack_their_image_once(fake_node: Node) -> None:
    packed = fake_node.images / "disk.raw.gz"
    packed.write_bytes(gzip.compress((fake_node.guest / "disk.raw").read_bytes(), 1))
    job = fake_node.job(boot=f'image = "{packed}"')
    hosts = [fake_node.host(job) for _ in range(12)]
    async with asyncio.TaskGroup() as all_of_them:
        for host in hosts:
            all_of_them.create_task(_a_life(host))
    assert len(cached(fake_node)) == 1


async def _a_life(host: DevHost) -> None:
    async with host:
        await host.start()
        await until_says(host, READY)
        await stop(host)


async def test_long_unpacking_is_told_in_task_events(fake_node: Node) -> None:
    piece = gzip.compress(bytes(64 * MIB), 1)
    packed = fake_node.images / "large.raw.gz"
    packed.write_bytes(piece * 256)  # 16 GiB of nothing, which are seconds
    job = fake_node.job(boot=f'image = "{packed}"')
    async with fake_node.host(job) as host:
        await host.start()
        await until(lambda: any("unpacked in" in one for one in told(host)), "the end of it", host=host)
        words = [one for one in told(host) if one.startswith("image: ")]
        assert words[0].startswith("image: 'large.raw.gz' is being unpacked, ")
        assert words[-1].startswith("image: 'large.raw.gz' unpacked in ")
        (image,) = cached(fake_node)
        assert image.stat().st_size == 16 << 30
        assert image.stat().st_blocks == 0
        await stop(host)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("cut.raw.gz", lambda: gzip.compress(os.urandom(MIB))[:-100], "gz data cut short after"),
        ("bomb.raw.gz", lambda: gzip.compress(b"x" * (1 << 28), 9), "expected at most 250 times as many"),
        ("wrong.raw.xz", lambda: gzip.compress(bytes(MIB)), "xz-compressed, but its header says gzip-compressed"),
        ("twice.raw.gz", lambda: gzip.compress(gzip.compress(bytes(MIB))), "but its header says gzip-compressed"),
        ("inner.raw.gz", lambda: gzip.compress(b"QFI\xfb" + bytes(MIB)), "declared raw, but its header says qcow2"),
        ("none.qcow2.gz", lambda: gzip.compress(b"QFI\xfb" + bytes(10)), "qcow2 header cut short"),
        ("empty.raw.gz", bytes, "empty file, expected an image that is gzip-compressed"),
    ],
    ids=lambda value: value.partition(".")[0] if isinstance(value, str) and value.endswith((".gz", ".xz")) else "",
)
async def test_a_hostile_packed_image_is_refused_by_key_and_reason_and_nothing_stays(
    fake_node: Node, name: str, content: Callable[[], bytes], complaint: str
) -> None:
    (fake_node.images / name).write_bytes(content())
    for where in ("image", "disk[0].source"):
        boot = f'image = "{fake_node.images}/{name}"'
        config = ""
        if where != "image":
            boot = f'image = "{fake_node.guest}/disk.qcow2"'
            config = f'disk {{\n name = "data"\n source = "{fake_node.images}/{name}"\n }}'
        async with fake_node.host(fake_node.job(boot=boot, config=config)) as host:
            with pytest.raises(StartFailedError) as refused:
                await host.start()
        assert f"{where} = " in str(refused.value)
        assert complaint in str(refused.value)
        assert not refused.value.recoverable
    assert cached(fake_node) == []
    assert fake_node.runs() == []


# -- direct ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["disk.qcow2", "disk.raw"])
async def test_a_guest_on_the_image_itself_writes_to_it_and_has_it_alone(node: Node, image: str) -> None:
    mine = node.images / image
    shutil.copyfile(node.guest / image, mine)

    def boot(words: str, mode: str) -> str:
        kernel = f'kernel = "{node.guest}/vmlinuz"\n initrd = "{node.guest}/initrd.img"'
        return f'{kernel}\n cmdline = "{build.CMDLINE} {words}"\n image = "{mine}"\n {mode}'

    direct = 'root_mode = "direct"\n root_size = "64MiB"'
    first = node.host(node.job(boot=boot("write=:kept", direct)))
    other = node.host(node.job(boot=boot("", direct), name="other"))
    above = node.host(node.job(boot=boot("read=", ""), name="above"))
    async with first, other, above:
        await first.start()
        await until_says(first, "wrote")
        for host in (other, above):
            with pytest.raises(StartFailedError, match=r"image = .*: (in use by|another machine writes)") as busy:
                await host.start()
            assert busy.value.recoverable
        await stop(first)
        await above.start()
        await until_says(above, "kept")
        assert f"disk vda {64 * MIB}" in above.console()
        with pytest.raises(StartFailedError, match=r"image = .*: in use by another machine") as busy:
            await other.start()
        await stop(above)
    assert list(node.layout.machines.glob("*/*/disk/root-copy*")) == []
