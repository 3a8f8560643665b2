"""What a VMM's resource limits come to."""

import os
import struct
from dataclasses import replace
from pathlib import Path

from vmlib.limits import vmm_limits
from vmlib.resources import Credentials, DiskAttachment, OpenFile, Resources
from vmlib.spec import MachineSpec

GIB = 1 << 30
SPEC = MachineSpec(id="a", name="a/b", owner="dev", vcpus=2, memory_mib=1024)
NONE = Resources(run_dir=Path("/run"), credentials=Credentials(uid=1, gid=1))


def disk(
    path: Path, *, size: int = 0, qcow2_of: int = 0, remote: bool = False, readonly: bool = False
) -> DiskAttachment:
    with path.open("wb") as file:
        if qcow2_of:
            file.write(b"QFI\xfb" + bytes(20) + struct.pack(">Q", qcow2_of))
        file.truncate(max(size, 512))
    fd = -1 if remote else os.open(path, os.O_RDONLY)
    file_ = OpenFile(fd=fd, path=path, remote=remote)
    return DiskAttachment(name=path.name, file=file_, format="qcow2" if qcow2_of else "raw", readonly=readonly)


def file_size(*disks: DiskAttachment, image_max: int = 100 * GIB) -> int:
    try:
        return vmm_limits(SPEC, replace(NONE, disks=disks), image_max_bytes=image_max)["fsize"]
    finally:
        for one in disks:
            if one.file.fd >= 0:
                os.close(one.file.fd)


def with_room(size: int) -> int:
    return size + size // 8 + (256 << 20)


def test_the_largest_file_is_the_ram_or_a_disk_that_may_be_written(tmp_path: Path) -> None:
    assert file_size() == with_room(GIB)
    assert file_size(disk(tmp_path / "small", size=GIB // 2)) == with_room(GIB)
    assert file_size(disk(tmp_path / "raw", size=4 * GIB), disk(tmp_path / "iso", size=9 * GIB, readonly=True)) == (
        with_room(4 * GIB)
    )


def test_an_overlay_may_grow_to_all_that_its_disk_holds(tmp_path: Path) -> None:
    assert file_size(disk(tmp_path / "overlay", qcow2_of=20 * GIB)) == with_room(20 * GIB)
    assert file_size(disk(tmp_path / "spoilt", size=12)) == with_room(GIB)


def test_a_file_on_a_server_is_not_touched(tmp_path: Path) -> None:
    assert file_size(disk(tmp_path / "far", remote=True)) == with_room(100 * GIB)


def test_a_machine_with_many_queues_may_open_as_many_files() -> None:
    few = vmm_limits(SPEC, NONE, image_max_bytes=1)["nofile"]
    many = vmm_limits(replace(SPEC, vcpus=254), NONE, image_max_bytes=1)["nofile"]
    assert (few, many) == (4096, 1024 + 254 * 8 * 4)
