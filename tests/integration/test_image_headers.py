"""The header check beside the real qemu-img: what is refused as broken is broken, and what passes leads nowhere."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlib.disk.image import ImageInfo, check_image
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat

LIMIT = 1 << 40

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "10G"], check=True, timeout=30)
    return path


def check(path: Path, declared: DiskFormat = "qcow2") -> ImageInfo:
    with path.open("rb") as file:
        return check_image(file.fileno(), declared=declared, key="image", path=path, max_virtual_bytes=LIMIT)


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


# ---------------------------------------------------------------------------------------------------------------------
# whatever there is


def what_qemu_sees(path: Path, *how: str) -> dict[str, Any] | None:
    """`qemu-img info`, which opens nothing but the file itself; None when it does not take that."""
    command = ["qemu-img", "info", "--output=json", *how, str(path)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30, cwd=path.parent)
    return None if done.returncode else dict(json.loads(done.stdout))


# Where the header and its extensions are, and the sizes and places in it that lead somewhere.
PLACES = st.integers(0, 600) | st.sampled_from(
    [4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 79, 96, 100, 104, 112]
)
VALUES = (
    st.binary(min_size=1, max_size=16)
    | st.integers(0, 1 << 17).map(lambda number: struct.pack(">I", number))
    | st.integers(0, 1 << 42).map(lambda number: struct.pack(">Q", number))
    | st.sampled_from([b"DATA", struct.pack(">II", 0x44415441, 5) + b"other\0\0\0", b"\xe2\x79\x2a\xca\0\0\0\x05raw"])
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(st.tuples(PLACES, VALUES), max_size=4),
    options=st.sampled_from(["compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on"]),
)
def test_no_changed_header_passes_in_which_qemu_sees_more_than_we_do(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], options: str
) -> None:
    """Another file, encryption, or another size than the one that was held against the cap."""
    data = bytearray(_made(tmp_path_factory, options))
    for at, value in changes:
        data[at : at + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "changed.qcow2"
    path.write_bytes(data)
    try:
        info = check(path)
    except SpecError:
        return
    seen = what_qemu_sees(path, "-f", "qcow2")
    if seen is None:
        return  # the VMM does not take it either, and says so
    assert not {"backing-filename", "full-backing-filename", "encrypted"} & seen.keys()
    assert not seen.get("encrypted")
    specific = seen.get("format-specific", {}).get("data", {})
    assert "data-file" not in specific
    # Whole sectors: what is less than one QEMU leaves out, and we count.
    assert info.virtual_size_bytes - 512 <= seen["virtual-size"] <= info.virtual_size_bytes <= LIMIT


_images: dict[str, bytes] = {}


def _made(directories: pytest.TempPathFactory, options: str) -> bytes:
    if options not in _images:
        path = directories.getbasetemp() / "sound.qcow2"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "64M"]
        subprocess.run(command, check=True, timeout=30)
        _images[options] = path.read_bytes()
    return _images[options]


MAGICS = [
    b"QFI\xfb\0\0\0\x03",
    b"KDMV\1\0\0\0",
    b"COWD",
    b"# Disk DescriptorFile\n",
    b"vhdxfile",
    b"conectix",
    b"LUKS\xba\xbe\0\1",
    b"QED\0",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    head=st.sampled_from(MAGICS) | st.binary(max_size=16),
    rest=st.binary(max_size=700),
    size=st.sampled_from([512, 65536, 1 << 20]),
)
def test_nothing_passes_as_raw_that_qemu_would_take_for_a_disk_of_another_kind(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes, size: int
) -> None:
    """We never let a tool guess; if one did, it would still follow nothing."""
    path = tmp_path_factory.getbasetemp() / "changed.raw"
    path.write_bytes((head + rest).ljust(size, b"\0")[:size])
    try:
        info = check(path, "raw")
    except SpecError:
        return
    assert info.virtual_size_bytes == size
    seen = what_qemu_sees(path)
    assert seen is not None
    assert seen["format"] == "raw"
