"""Headers that the check refuses as broken, shown to the real qemu-img: it does not take them either."""

import struct
import subprocess
from pathlib import Path

import pytest

from vmlib.disk.image import check_image
from vmlib.errors import SpecError

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "10G"], check=True, timeout=30)
    return path


def check(path: Path) -> None:
    with path.open("rb") as file:
        check_image(file.fileno(), declared="qcow2", key="image", path=path, max_virtual_bytes=1 << 40)


def qemu_takes(path: Path) -> bool:
    command = ["qemu-img", "check", "-q", "-f", "qcow2", str(path)]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def test_both_take_a_new_image(image: Path) -> None:
    check(image)
    assert qemu_takes(image)


@pytest.mark.parametrize(
    ("at", "field", "value", "complaint"),
    [
        (20, ">I", 30, "clusters of 2"),
        (24, ">Q", 1 << 36, "L1 table of size 20, expected 128"),
        (36, ">I", 1, "L1 table of size 1, expected 20"),
        (36, ">I", (4 << 20) + 1, "L1 table of size 4194305"),
        (36, ">I", 0xFFFFFFFF, "L1 table of size 4294967295"),
        (40, ">Q", 0, "L1 table at byte 0"),
        (40, ">Q", 0x30200, "L1 table at byte 197120"),
        (40, ">Q", 1 << 40, "cut short, L1 table"),
        (40, ">Q", (1 << 64) - 65536, "cut short, L1 table"),
        (48, ">Q", 0x10008, "refcount table at byte 65544"),
        (48, ">Q", 1 << 40, "cut short, refcount table"),
        (56, ">I", 0, "refcount table of size 0"),
        (56, ">I", 129, "refcount table of size 129"),
        (60, ">I", 65537, "snapshot table of size 65537"),
        (72, ">Q", 1 << 40, "unknown qcow2 features"),
        (96, ">I", 7, "refcounts of 2"),
        (100, ">I", 80, "broken qcow2 header, 80 bytes long"),
        (100, ">I", 0xFFFFFFF8, "bytes long"),
    ],
)
def test_what_is_refused_as_broken_is_nothing_that_qemu_would_take(
    image: Path, at: int, field: str, value: int, complaint: str
) -> None:
    with image.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(field, value))
    with pytest.raises(SpecError, match=complaint):
        check(image)
    assert not qemu_takes(image)


@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "extended_l2=on",
        "cluster_size=512",
        "cluster_size=2M",
        "preallocation=metadata",
        "refcount_bits=64",
    ],
)
@pytest.mark.parametrize("size", ["1k", "2G"])
def test_no_table_that_qemu_img_writes_is_refused(tmp_path: Path, options: str, size: str) -> None:
    path = tmp_path / "a.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), size]
    subprocess.run(command, check=True, timeout=60)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", str(path)], check=True, timeout=60)
    check(path)
