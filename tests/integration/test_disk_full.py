"""The host's disk is full at whatever a start writes: one clear error, tried again, and nothing partial stays.

Each job is started with no room at all and then with a little more each time, until there is enough. So every write on
its way is once the one for which there is none.
"""

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driver.devhost.host import DevHost, StartFailedError
from tests.integration.nodes import NOTHING, READY, Node, until_says
from vmlib.postflight import persistent_disks

PREFIX = "rpc error: code = FailedPrecondition desc = "
KIB, MIB = 1 << 10, 1 << 20


@dataclass(slots=True)
class SmallDisk:
    """A data_dir on a filesystem of its own."""

    path: Path
    seen: list[str] = field(default_factory=list)  # what the starts have said

    def leave(self, free_bytes: int) -> None:
        """Fill it until no more than that is free."""
        filler = self.path / "filler"
        filler.unlink(missing_ok=True)
        with filler.open("wb") as file:
            for _ in range(10):
                room = os.statvfs(self.path)
                try:
                    os.posix_fallocate(file.fileno(), 0, max(room.f_bavail * room.f_frsize - free_bytes, 1))
                    return
                except OSError:
                    continue  # the plugin has written something of its own meanwhile
        pytest.fail(f"{self.path} is never quiet")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())


def mounted(node: Node, size: str) -> Iterator[SmallDisk]:
    path = node.layout.data_dir
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    yield SmallDisk(path)
    (path / "filler").unlink(missing_ok=True)
    node.end_machines()
    shutil.rmtree(path / "disks", ignore_errors=True)
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small(fake_node: Node) -> Iterator[SmallDisk]:
    yield from mounted(fake_node, "8m")


@pytest.fixture
def small_for_qemu(node: Node) -> Iterator[SmallDisk]:
    yield from mounted(node, "8m")


async def start_with_more_each_time(node: Node, host: DevHost, small: SmallDisk, *, step: int) -> None:
    """Until it works; looks at each failure."""
    for free in range(0, 8 * MIB, step):
        small.leave(free)
        try:
            await host.start()
        except StartFailedError as exc:
            text, recoverable = str(exc), exc.recoverable
        else:
            break
        small.seen.append(text)
        assert recoverable, text
        assert "\n" not in text
        assert "no space left" in text.lower(), text
        assert str(node.layout.data_dir) in text, text  # it says where
        assert node.processes() == NOTHING
        assert node.runs() == []
        left = small.files()
        assert not [name for name in left if Path(name).name.startswith(".") or name.endswith("journal")], left
        assert not [disk for disk in persistent_disks(node.layout).list() if disk.holder is not None]
        # The next one begins anew: no part that the last one had room for makes it easier.
        (small.path / "filler").unlink()
        node.end_machines()
    else:
        pytest.fail(f"never enough room: {small.seen[-1]}")


IMAGE = 'image = "{guest}/disk.qcow2"\n'
KERNEL = 'kernel = "{images}/kernel"\n'
SOURCE = 'disk {{\n name = "d"\n source = "{images}/data.raw"\n }}'


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("boot", "config", "words"),
    [
        (KERNEL, 'hostname = "h"', "seed disk"),
        (IMAGE, "", "root disk"),
        ('image = "{images}/data.raw"\n root_mode = "copy"', "", "root disk"),
        ('image = "{images}/data.raw.gz"', "", "image cache"),
        (KERNEL, 'disk {{\n name = "d"\n size = "1GiB"\n format = "qcow2"\n }}', "disk[0] "),
        (KERNEL, SOURCE, "disk[0] "),
        (
            KERNEL,
            'disk {{\n name = "d"\n size = "1GiB"\n format = "qcow2"\n persistent = true\n }}',
            "persistent disk",
        ),
        ('kernel = "{images}/large"', "", "kernel "),
        ('kernel = "{images}/kernel"\n initrd = "{images}/large"', "", "initrd "),
    ],
    ids=["seed", "overlay", "copy", "cache", "new-disk", "copied-disk", "persistent", "kernel", "initrd"],
)
async def test_a_full_disk_is_one_clear_error_at_every_step_and_leaves_nothing(
    fake_node: Node, small: SmallDisk, boot: str, config: str, words: str
) -> None:
    (fake_node.images / "data.raw").write_bytes(b"data" * (64 * KIB))
    (fake_node.images / "data.raw.gz").write_bytes(gzip.compress(os.urandom(256 * KIB)))
    (fake_node.images / "large").write_bytes(b"\x7fELF" * (32 * KIB))
    places = {"guest": fake_node.guest, "images": fake_node.images}
    job = fake_node.job(boot=boot.format(**places), config=config.format(**places))
    async with fake_node.host(job) as host:
        await start_with_more_each_time(fake_node, host, small, step=12 * KIB)
        await until_says(host, READY)
    assert any(words in text for text in small.seen), small.seen


@pytest.mark.needs("root")
async def test_a_page_more_each_time_is_enough_for_no_half_written_record(fake_node: Node, small: SmallDisk) -> None:
    """All that is written of a machine without disks: version, mark, journal, ledger, boot files, record."""
    async with fake_node.host(fake_node.job()) as host:
        await start_with_more_each_time(fake_node, host, small, step=4 * KIB)
        await until_says(host, READY)
    named = {Path(text.removeprefix(PREFIX).partition(":")[0]).name for text in small.seen}
    # Not all of them each time: the plugin writes things of its own there, at its own time.
    assert len(named & {"version", "mark.json", "journal", "ledger.json", "kernel", "machine.json"}) >= 3, small.seen


@pytest.mark.needs("root", "uefi")
async def test_there_is_no_room_for_the_firmwares_variables(node: Node, small_for_qemu: SmallDisk) -> None:
    job = node.job(boot=f'image = "{node.guest}/disk.qcow2"\n firmware = "uefi"')
    async with node.host(job) as host:
        await start_with_more_each_time(node, host, small_for_qemu, step=128 * KIB)
    assert any("firmware variables" in text for text in small_for_qemu.seen), small_for_qemu.seen
