"""The header check, against images built by hand: what leads out of the file is refused before any tool sees it."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.disk.image import HEAD_BYTES, ImageInfo, check_image, in_words, inspect
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat

GIB = 1 << 30
LIMIT = 100 * GIB


def qcow2(
    *,
    version: int = 3,
    backing_at: int = 0,
    backing_len: int = 0,
    cluster_bits: int = 16,
    size: int = GIB,
    crypt: int = 0,
    incompatible: int = 0,
    header_len: int = 104,
    extensions: bytes = b"\0" * 8,
    length: int = HEAD_BYTES,
) -> bytes:
    head = b"QFI\xfb" + struct.pack(">IQIIQI", version, backing_at, backing_len, cluster_bits, size, crypt)
    head = head.ljust(72, b"\0")
    if version >= 3:
        head += struct.pack(">QQQII", incompatible, 0, 0, 4, header_len)
    return (head + extensions).ljust(length, b"\0")[:length]


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def check(head: bytes, declared: DiskFormat, size: int | None = None) -> ImageInfo:
    return inspect(
        head, len(head) if size is None else size, declared=declared, what="image = 'x'", max_virtual_bytes=LIMIT
    )


@pytest.mark.parametrize(
    "head",
    [
        qcow2(),
        qcow2(version=2),
        qcow2(incompatible=1),  # dirty: the VMM mends it, or does not write at all
        qcow2(incompatible=0b11000),  # zstd, extended L2
        qcow2(extensions=extension(0x6803F857, b"names" * 20) + b"\0" * 8),
        qcow2(cluster_bits=21),
        qcow2(cluster_bits=9, extensions=extension(0x6803F857, b"x" * (512 - 104 - 8))),  # fills its cluster
    ],
)
def test_a_sound_qcow2_image_passes_with_its_virtual_size(head: bytes) -> None:
    assert check(head, "qcow2", 196_608) == ImageInfo(virtual_size_bytes=GIB)


@pytest.mark.parametrize(("size", "virtual"), [(1, 512), (512, 512), (513, 1024), (GIB, GIB), (LIMIT, LIMIT)])
def test_a_raw_image_has_whole_sectors(size: int, virtual: int) -> None:
    assert check(b"\xeb\x63\x90", "raw", size) == ImageInfo(virtual_size_bytes=virtual)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (qcow2(backing_at=4096, backing_len=11), "needs a backing file"),
        (qcow2(version=2, backing_at=4096, backing_len=11), "needs a backing file"),
        (qcow2(backing_len=11), "needs a backing file"),
        (qcow2(backing_at=1 << 63, backing_len=0xFFFFFFFF), "needs a backing file"),
        (qcow2(crypt=1), "encrypted"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(extensions=extension(0x0537BE77, b"\0" * 16)), "encrypted"),
        (qcow2(incompatible=4), "keeps its data in another file"),
        (qcow2(incompatible=2), "marked as corrupt"),
        (qcow2(incompatible=1 << 5), "unknown qcow2 features 0x20"),
        (qcow2(incompatible=1 << 63), "unknown qcow2 features 0x8000000000000000"),
        (qcow2(extensions=extension(0x44415441, b"/etc/shadow")), "names an external data file"),
        (qcow2(extensions=extension(0x44415441, b"")), "names an external data file"),
        (qcow2(extensions=extension(1, b"x" * 9) + extension(0x44415441, b"y")), "names an external data file"),
        (qcow2(version=2, extensions=extension(0x44415441, b"y")), "names an external data file"),
        (qcow2(extensions=extension(1, b"x" * 40_000) + extension(1, b"y" * 40_000)), "an extension ends outside it"),
        (qcow2(extensions=struct.pack(">II", 1, 0xFFFFFFFF)), "an extension ends outside it"),
        # A cluster larger than what is looked at: the data file could be named behind it.
        (qcow2(cluster_bits=21, extensions=struct.pack(">II", 1, HEAD_BYTES)), "its extensions have no end"),
        (qcow2(length=108), "its extensions have no end"),
        (qcow2(version=1), "qcow2 version 1"),
        (qcow2(version=4), "qcow2 version 4"),
        (qcow2(cluster_bits=8), "clusters of 2^8 bytes"),
        (qcow2(cluster_bits=0xFFFFFFFF), "clusters of 2^4294967295 bytes"),
        (qcow2(header_len=72), "72 bytes long"),
        (qcow2(header_len=108), "108 bytes long"),
        (qcow2(header_len=0xFFFFFFF8), "4294967288 bytes long"),
        (qcow2(length=40), "cut short after 40 bytes"),
        (qcow2(length=80), "cut short after 80 bytes"),
        (qcow2(size=0), "virtual size 0"),
        (qcow2(size=LIMIT + 1), "expected at most 100 GiB"),
        (qcow2(size=2**64 - 1), "expected at most 100 GiB"),
        (b"\xeb\x63\x90" * 100, "its header says raw, or nothing we know"),
        (b"\xfd7zXZ\0" * 100, "its header says xz-compressed"),
        (b"KDMV" * 100, "its header says vmdk"),
    ],
)
def test_what_cannot_be_a_qcow2_image_of_ours_is_refused(head: bytes, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(head, "qcow2", 196_608)
    assert str(caught.value).startswith("image = 'x': ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (qcow2(), "qcow2"),
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1", "vmdk"),
        (b"<<< Oracle VM".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vhd"),
        (b"LUKS\xba\xbe\0\x01", "luks"),
        (b"QED\0", "qed"),
        (b"WithoutFreeSpace", "parallels"),
        (b"\x1f\x8b\x08", "gzip-compressed"),
    ],
)
def test_raw_that_looks_like_something_else_is_refused(head: bytes, found: str) -> None:
    with pytest.raises(SpecError, match=f"declared raw, but its header says {found}$"):
        check(head, "raw", GIB)


@pytest.mark.parametrize("declared", ["raw", "qcow2"])
def test_an_empty_file_is_refused(declared: DiskFormat) -> None:
    with pytest.raises(SpecError, match=f"empty file, expected a {declared} image"):
        check(b"", declared)


def test_a_raw_image_above_the_cap_is_refused() -> None:
    with pytest.raises(SpecError, match=f"virtual size {LIMIT + 512} bytes, expected at most 100 GiB"):
        check(b"\xeb", "raw", LIMIT + 1)


@given(
    head=st.one_of(
        st.binary(max_size=300),
        st.builds(lambda rest: b"QFI\xfb" + rest, st.binary(max_size=300)),
        st.builds(lambda rest: qcow2()[:104] + rest, st.binary(max_size=300)),
        # One changed byte in a sound header.
        st.builds(
            lambda at, value: qcow2()[:at] + bytes([value]) + qcow2()[at + 1 :],
            st.integers(0, 111),
            st.integers(0, 255),
        ),
    ),
    size=st.integers(0, 2**63),
    declared=st.sampled_from(["raw", "qcow2"]),
)
def test_any_bytes_give_a_size_within_the_cap_or_a_complaint(head: bytes, size: int, declared: DiskFormat) -> None:
    try:
        info = check(head, declared, size)
    except SpecError:
        return
    assert 0 < info.virtual_size_bytes <= LIMIT
    assert info.virtual_size_bytes % 512 == 0


def test_only_a_regular_file_is_looked_at(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(SpecError, match=r"image = '.*/fifo': not a regular file"):
            check_image(fd, declared="raw", key="image", path=fifo, max_virtual_bytes=LIMIT)
    finally:
        os.close(fd)


def test_the_check_leaves_the_read_position_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(qcow2())
    with path.open("rb") as file:
        info = check_image(file.fileno(), declared="qcow2", key="image", path=path, max_virtual_bytes=LIMIT)
        assert info.virtual_size_bytes == GIB
        assert file.read(4) == b"QFI\xfb"


@pytest.mark.parametrize(
    ("size", "words"),
    [(20 * GIB, "20 GiB"), (1 << 41, "2 TiB"), (3 << 20, "3 MiB"), (513, "513 bytes"), (0, "0 bytes")],
)
def test_sizes_are_exact_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
