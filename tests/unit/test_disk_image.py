"""The header check, against images built by hand: what leads out of the file is refused before any tool sees it."""

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlib.disk.image import HEAD_BYTES, ImageInfo, check_image, in_words, inspect
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat

GIB = 1 << 30
LIMIT = 100 * GIB
FILE_BYTES = 16 << 20


def qcow2(
    *,
    version: int = 3,
    backing_at: int = 0,
    backing_len: int = 0,
    cluster_bits: int = 16,
    size: int = GIB,
    crypt: int = 0,
    incompatible: int = 0,
    l1_entries: int | None = None,
    l1_at: int | None = None,
    refcounts_at: int | None = None,
    refcount_clusters: int = 1,
    snapshots: int = 0,
    snapshots_at: int = 0,
    refcount_order: int = 4,
    header_len: int = 104,
    extensions: bytes = b"\0" * 8,
    length: int = HEAD_BYTES,
) -> bytes:
    """The first bytes of an image as `qemu-img create` lays it out, unless told otherwise."""
    cluster = 1 << min(max(cluster_bits, 9), 21)
    if l1_entries is None:
        reach = cluster // (16 if incompatible & 16 else 8) * cluster
        l1_entries = min(-(-size // reach), 2**32 - 1)
    head = b"QFI\xfb" + struct.pack(">IQIIQI", version, backing_at, backing_len, cluster_bits, size, crypt)
    head += struct.pack(
        ">IQQIIQ",
        l1_entries,
        3 * cluster if l1_at is None else l1_at,
        cluster if refcounts_at is None else refcounts_at,
        refcount_clusters,
        snapshots,
        snapshots_at,
    )
    if version >= 3:
        head += struct.pack(">QQQII", incompatible, 0, 0, refcount_order, header_len)
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
        qcow2(l1_at=FILE_BYTES - 16 & -65536, l1_entries=8192),  # ends with the file
        qcow2(snapshots=2, snapshots_at=1 << 20),
        qcow2(refcount_order=6),
    ],
)
def test_a_sound_qcow2_image_passes_with_its_virtual_size(head: bytes) -> None:
    assert check(head, "qcow2", FILE_BYTES) == ImageInfo(virtual_size_bytes=GIB)


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
        (qcow2(size=60 << 40), "virtual size 60 TiB, expected at most 100 GiB"),
        (qcow2(size=2**64 - 1), "expected at most 100 GiB"),
        (qcow2(l1_entries=1), "L1 table of size 1, expected 2 to 4194304"),
        (qcow2(l1_entries=0), "L1 table of size 0"),
        (qcow2(l1_entries=2, incompatible=16), "L1 table of size 2, expected 4 to 4194304"),
        (qcow2(l1_entries=0xFFFFFFFF), "L1 table of size 4294967295"),
        (qcow2(l1_at=0), "L1 table at byte 0, expected a cluster of its own"),
        (qcow2(l1_at=65536 + 512), "L1 table at byte 66048"),
        (qcow2(l1_at=FILE_BYTES), "cut short, L1 table to byte 16777232, but the file ends at 16777216"),
        (qcow2(l1_at=(1 << 64) - 65536), "cut short, L1 table"),
        (qcow2(refcount_clusters=0), "refcount table of size 0, expected 1 to 128"),
        (qcow2(refcount_clusters=129), "refcount table of size 129"),
        (qcow2(refcounts_at=8), "refcount table at byte 8"),
        (qcow2(refcounts_at=1 << 40), "cut short, refcount table"),
        (qcow2(version=2, refcounts_at=1 << 40), "cut short, refcount table"),
        (qcow2(refcount_order=7), "refcounts of 2^7 bits"),
        (qcow2(snapshots=65537, snapshots_at=1 << 20), "snapshot table of size 65537, expected 0 to 65536"),
        (qcow2(snapshots=1, snapshots_at=0), "snapshot table at byte 0"),
        (qcow2(snapshots=65536, snapshots_at=15 << 20), "cut short, snapshot table"),
        (b"\xeb\x63\x90" * 100, "its header says raw, or nothing we know"),
        (b"\xfd7zXZ\0" * 100, "its header says xz-compressed"),
        (b"KDMV" * 100, "its header says vmdk"),
    ],
)
def test_what_cannot_be_a_qcow2_image_of_ours_is_refused(head: bytes, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(head, "qcow2", FILE_BYTES)
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


# ---------------------------------------------------------------------------------------------------------------------
# whatever there is

U32 = st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1), st.sampled_from([2**31, 2**32 - 8]))
U64 = st.one_of(st.integers(0, 9).map(lambda n: n << 16), st.integers(0, 2**64 - 1), st.just(2**64 - 65536))
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "version": st.integers(0, 4),
    "backing_at": U64,
    "backing_len": U32,
    "cluster_bits": st.integers(0, 64),
    "size": U64 | st.integers(1, LIMIT) | st.just(60 << 40),
    "crypt": U32,
    "incompatible": st.integers(0, 63).map(lambda bit: 1 << bit) | U64,
    "l1_entries": U32,
    "l1_at": U64,
    "refcounts_at": U64,
    "refcount_clusters": U32,
    "snapshots": U32,
    "snapshots_at": U64,
    "refcount_order": U32,
    "header_len": st.sampled_from([72, 104, 112]) | U32,
    "extensions": st.binary(max_size=80)
    | st.lists(
        st.builds(
            extension, st.sampled_from([1, 0x44415441, 0x0537BE77, 0x6803F857, 0xE2792ACA]), st.binary(max_size=40)
        ),
        max_size=3,
    ).map(lambda some: b"".join(some) + bytes(8)),
    "length": st.integers(0, 300),
}
# Something is wrong with a field or two and not with all, so that each complaint has its turn and some images pass.
HOSTILE = st.lists(
    st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), FIELDS[name])), max_size=3
).map(lambda some: qcow2(**dict(some)))  # type: ignore[arg-type]
HEADS = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(lambda rest: b"QFI\xfb\0\0\0\x03" + rest),
    st.binary(max_size=300).map(lambda rest: qcow2()[:104] + rest),
    st.builds(
        lambda at, value: qcow2()[:at] + bytes([value]) + qcow2()[at + 1 :], st.integers(0, 111), st.integers(0, 255)
    ),
    HOSTILE,
)


@settings(max_examples=300)
@given(
    head=HEADS, size=st.just(FILE_BYTES) | st.integers(0, 2**63), declared=st.sampled_from(["raw", "qcow2", "qcow2"])
)
def test_any_bytes_give_a_size_within_the_cap_or_one_line_of_complaint(
    head: bytes, size: int, declared: DiskFormat
) -> None:
    complaint, info = "", None
    try:
        info = check(head, declared, size)
    except SpecError as exc:
        complaint = str(exc)
    if info is None:
        assert complaint.startswith("image = 'x': ")
        assert complaint.isprintable()
        assert len(complaint) < 200
        return
    assert 0 < info.virtual_size_bytes <= LIMIT
    assert info.virtual_size_bytes % 512 == 0


@settings(max_examples=300)
@given(head=HOSTILE)
def test_no_image_passes_that_leads_out_of_itself(head: bytes) -> None:
    """By another reading of the header than the one under test: the fields by their place in the format's table."""
    try:
        check(head, "qcow2", FILE_BYTES)
    except SpecError:
        return

    def number(at: int, end: int) -> int:
        return int.from_bytes(head[at:end], "big")

    assert number(8, 16) == number(16, 20) == number(32, 36) == 0  # backing file, its name's length, encryption
    assert number(40, 48) + 8 * number(36, 40) <= FILE_BYTES
    at = 72
    if number(4, 8) == 3:
        at = number(100, 104)
        assert number(72, 80) & ~0b11001 == 0
    kinds = []
    while number(at, at + 4) and at + 8 <= 1 << number(20, 24):
        kinds.append(number(at, at + 4))
        at += 8 + -(-number(at + 4, at + 8) // 8) * 8
    assert not {0x44415441, 0x0537BE77} & set(kinds)


class _Watch:
    """An audit hook cannot be removed, so it is told when to look."""

    looking = False

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, event: str, _: object) -> None:
        if self.looking and event.partition(".")[0] in ("open", "os", "socket", "subprocess", "ctypes", "shutil"):
            self.seen.append(event)


_watch = _Watch()
sys.addaudithook(_watch)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What is opened, listed or started while the test runs."""
    _watch.seen.clear()
    _watch.looking = True
    yield _watch.seen
    _watch.looking = False


@pytest.mark.parametrize(
    "head",
    [
        qcow2(),
        qcow2(backing_at=120, backing_len=11, extensions=bytes(16) + b"/etc/passwd"),
        qcow2(incompatible=4, extensions=extension(0x44415441, b"/etc/shadow")),
        qcow2(l1_at=1 << 62),
    ],
)
def test_the_check_opens_nothing_and_reads_the_head_alone(tmp_path: Path, head: bytes, opened: list[str]) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(head)
    os.truncate(path, FILE_BYTES)
    fd = os.open(path, os.O_RDONLY)
    assert "open" in opened  # so the watch works
    opened.clear()
    try:
        with contextlib.suppress(SpecError):
            check_image(fd, declared="qcow2", key="image", path=path, max_virtual_bytes=LIMIT)
    finally:
        os.close(fd)
    assert opened == []


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
    os.truncate(path, FILE_BYTES)
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
