"""Compressed images: what comes out is what went in, and no input leaves the limits or fails in other words."""

import gzip
import lzma
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlib.disk import unpack as unpack_module
from vmlib.disk.unpack import CHUNK_BYTES, Kind, Progress, UnpackLimits, expect_kind, kind_of, packed_name, unpack
from vmlib.errors import HostError, NoCapacityError, SpecError

MIB = 1 << 20
LIMITS = UnpackLimits(max_bytes=256 * MIB)
KINDS: tuple[Kind, ...] = get_args(Kind)
SKIPPED_FRAME = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"


def packed(kind: Kind, data: bytes) -> bytes:
    if kind == "xz":
        return lzma.compress(data, preset=0)
    if kind == "gz":
        return gzip.compress(data, 6, mtime=0)  # the bytes are in the names of tests
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


class Bench:
    """Two files to unpack from one into the other."""

    def __init__(self, top: Path) -> None:
        self.source, self.target = top / "source", top / "target"

    def unpack(
        self, kind: Kind, data: bytes, *, limits: UnpackLimits = LIMITS, progress: Progress | None = None
    ) -> bytes:
        self.source.write_bytes(data)
        self.target.write_bytes(b"")
        with self.source.open("rb") as source, self.target.open("r+b") as target:
            size = unpack(
                source.fileno(), target.fileno(), kind=kind, limits=limits, what="image = 'x'", progress=progress
            )
        assert size == self.target.stat().st_size
        return self.target.read_bytes()

    def refuse(self, kind: Kind, data: bytes, *, limits: UnpackLimits = LIMITS) -> str:
        with pytest.raises(SpecError) as caught:
            self.unpack(kind, data, limits=limits)
        assert str(caught.value).startswith("image = 'x': ")
        return str(caught.value).removeprefix("image = 'x': ")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("unpack"))


# ---------------------------------------------------------------------------------------------------------------------
# names and headers


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("debian.qcow2.xz", ("debian.qcow2", "xz")),
        ("local/a.raw.ZST", ("local/a.raw", "zst")),
        ("a.img.gz", ("a.img", "gz")),
        ("debian.qcow2", ("debian.qcow2", None)),
        ("a.xz.qcow2", ("a.xz.qcow2", None)),
        ("xz", ("xz", None)),
        ("a.bz2", ("a.bz2", None)),
    ],
)
def test_a_name_promises_what_its_last_suffix_says(name: str, promised: tuple[str, Kind | None]) -> None:
    assert packed_name(name) == promised


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_keeps_the_promise_passes(kind: Kind) -> None:
    expect_kind(packed(kind, b"x"), kind, what="image = 'x'")


@pytest.mark.parametrize(
    ("head", "kind", "complaint"),
    [
        (gzip.compress(b"", mtime=0), "xz", "its name says xz-compressed, but its header says gzip-compressed"),
        (lzma.compress(b""), "zst", "its name says zstd-compressed, but its header says xz-compressed"),
        (b"QFI\xfb", "gz", "its name says gzip-compressed, but its header says qcow2"),
        (b"\0" * 512, "gz", "its name says gzip-compressed, but its header says raw, or nothing we know"),
        (lzma.compress(b"", format=lzma.FORMAT_ALONE), "xz", "its header says raw, or nothing we know"),
        (b"\xfd7zX", "xz", "its header says raw, or nothing we know"),
        (b"", "xz", "empty file, expected an image that is xz-compressed"),
    ],
)
def test_a_header_that_breaks_the_promise_is_refused(bench: Bench, head: bytes, kind: Kind, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        expect_kind(head, kind, what="image = 'a.xz'")
    assert str(caught.value).startswith("image = 'a.xz': ")
    assert complaint in str(caught.value)
    assert complaint in bench.refuse(kind, head)


@given(st.binary(max_size=8))
def test_any_head_is_of_one_kind_or_none(head: bytes) -> None:
    assert kind_of(head) in (*KINDS, None)


# ---------------------------------------------------------------------------------------------------------------------
# what comes out

# Contents in which chunks of zeros, of data and of neither meet at any distance from a border.
CONTENT = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.builds(bytes, st.sampled_from([1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])),
        st.builds(
            lambda seed, count: (seed * count)[:count],
            st.binary(min_size=1, max_size=5),
            st.sampled_from([CHUNK_BYTES, 2 * MIB + 1]),
        ),
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), contents=st.lists(CONTENT, min_size=1, max_size=3))
def test_what_was_packed_comes_out_whatever_number_of_streams_it_is_in(
    bench: Bench, kind: Kind, contents: list[bytes]
) -> None:
    data = b"".join(packed(kind, content) for content in contents)
    assert bench.unpack(kind, data) == b"".join(contents)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("xz", packed("xz", b"ab") + bytes(8) + packed("xz", b"c") + bytes(4)),
        ("xz", packed("xz", b"abc") + bytes(200_000)),
        ("gz", packed("gz", b"ab") + bytes(3) + packed("gz", b"c")),
        ("gz", packed("gz", b"abc") + bytes(511)),
        ("zst", SKIPPED_FRAME + packed("zst", b"ab") + SKIPPED_FRAME * 2 + packed("zst", b"c") + SKIPPED_FRAME),
    ],
)
def test_padding_as_the_tools_make_it_is_no_garbage(bench: Bench, kind: Kind, data: bytes) -> None:
    assert bench.unpack(kind, data) == b"abc"


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_holes(bench: Bench, kind: Kind) -> None:
    content = b"x" + bytes(48 * MIB) + b"y" + bytes(16 * MIB + 5)
    assert bench.unpack(kind, packed(kind, content)) == content
    assert bench.target.stat().st_blocks * 512 <= 4 * CHUNK_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_both_files_do_not_matter_and_the_sources_stays(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "a").write_bytes(packed(kind, b"abc" * 1000))
    with (tmp_path / "a").open("rb", buffering=0) as source, (tmp_path / "b").open("w+b", buffering=0) as target:
        source.seek(5)
        target.seek(7)
        assert unpack(source.fileno(), target.fileno(), kind=kind, limits=LIMITS, what="x") == 3000
        assert source.tell() == 5
    assert (tmp_path / "b").read_bytes() == b"abc" * 1000


def test_an_image_of_exactly_the_cap_passes_and_one_byte_more_does_not(bench: Bench) -> None:
    limits = UnpackLimits(max_bytes=3 * MIB)
    assert len(bench.unpack("xz", packed("xz", bytes(3 * MIB)), limits=limits)) == 3 * MIB
    complaint = "unpacks to more than 3 MiB, expected at most that"
    assert bench.refuse("xz", packed("xz", bytes(3 * MIB + 1)), limits=limits) == complaint


# ---------------------------------------------------------------------------------------------------------------------
# what is refused


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), keep=st.floats(0, 1), more=st.booleans())
def test_a_file_that_lost_its_end_is_refused_wherever_it_ends(
    bench: Bench, kind: Kind, keep: float, more: bool
) -> None:
    whole = packed(kind, bytes(range(256)) * 50)
    first = whole if more else b""
    kept = 6 + int(keep * (len(whole) - 7))
    complaint = bench.refuse(kind, first + whole[:kept])
    assert complaint == f"{kind} data cut short after {len(first) + kept} bytes"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [b"\1", b"garbage" * 100_000, b"\0" * 8 + b"x", b"\xfd7zX"])
def test_something_after_the_end_is_refused(bench: Bench, kind: Kind, garbage: bytes) -> None:
    complaint = bench.refuse(kind, packed(kind, b"abc") + garbage)
    assert f"something else after its {kind} data at byte " in complaint


@pytest.mark.parametrize(("kind", "garbage"), [("xz", bytes(3)), ("zst", bytes(4)), ("xz", bytes(5))])
def test_padding_that_no_tool_makes_is_refused(bench: Bench, kind: Kind, garbage: bytes) -> None:
    assert "something else after its" in bench.refuse(kind, packed(kind, b"abc") + garbage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_checksum_is_refused(bench: Bench, kind: Kind) -> None:
    data = bytearray(packed(kind, b"abc" * 100))
    data[{"gz": -6, "zst": -2, "xz": -30}[kind]] ^= 1
    assert bench.refuse(kind, bytes(data)).startswith(f"broken {kind} data near byte {len(data)}: ")


def changed(kind: Kind, places: list[tuple[int, int]]) -> bytes:
    data = bytearray(packed(kind, b"The quick brown fox" * 40 + bytes(CHUNK_BYTES)))
    for at, value in places:
        data[at % len(data)] = value
    return bytes(data)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    data=st.one_of(
        st.builds(
            changed,
            st.sampled_from(KINDS),
            st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
        ),
        st.builds(lambda kind, rest: packed(kind, b"")[:6] + rest, st.sampled_from(KINDS), st.binary(max_size=100)),
        st.binary(max_size=50),
    ),
)
def test_any_bytes_give_a_file_within_the_cap_or_one_line_of_complaint(bench: Bench, kind: Kind, data: bytes) -> None:
    complaint = ""
    try:
        assert len(bench.unpack(kind, data)) <= LIMITS.max_bytes
    except SpecError as exc:
        complaint = str(exc)
    assert complaint.isprintable()
    assert len(complaint) < 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_of_data_is_refused_before_much_is_written(bench: Bench, kind: Kind) -> None:
    limits = UnpackLimits(max_bytes=256 * MIB, ratio_from_bytes=4 * MIB)
    complaint = bench.refuse(kind, packed(kind, b"A" * 64 * MIB), limits=limits)
    assert complaint.startswith("its first ")
    assert complaint.endswith(", expected at most 250 times as many")
    assert bench.target.stat().st_size <= 40 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_of_zeros_ends_at_the_cap_and_takes_no_room(bench: Bench, kind: Kind) -> None:
    complaint = bench.refuse(kind, packed(kind, bytes(64 * MIB)), limits=UnpackLimits(max_bytes=8 * MIB))
    assert complaint == "unpacks to more than 8 MiB, expected at most that"
    assert bench.target.stat().st_blocks == 0


@pytest.mark.parametrize("kind", ["xz", "zst"])
def test_a_window_beyond_the_limit_is_refused(bench: Bench, kind: Kind) -> None:
    if kind == "xz":
        data = lzma.compress(b"abc", preset=6)  # 8 MiB
    else:
        wide = zstandard.ZstdCompressionParameters(window_log=23)
        stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
        data = stream.compress(b"abc") + stream.flush()
    complaint = bench.refuse(kind, data, limits=UnpackLimits(max_bytes=MIB, max_window_bytes=2 * MIB))
    assert complaint == f"packed with a larger {kind} window than we have, expected at most 2 MiB"
    assert bench.unpack(kind, data, limits=UnpackLimits(max_bytes=MIB, max_window_bytes=8 * MIB)) == b"abc"


# ---------------------------------------------------------------------------------------------------------------------
# time, room, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever somebody looks."""
    seconds = iter(range(10**9))
    monkeypatch.setattr(unpack_module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        *((kind, packed(kind, os.urandom(2 * MIB))) for kind in KINDS),
        # Nothing ever comes out of these.
        ("gz", packed("gz", b"") * 100_000),
        ("zst", SKIPPED_FRAME * 100_000),
        ("xz", packed("xz", b"") + bytes(2 * MIB)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_when_the_time_is_up_it_may_be_tried_again(bench: Bench, clock: None, kind: Kind, data: bytes) -> None:
    limits = UnpackLimits(max_bytes=256 * MIB, max_s=5)
    with pytest.raises(
        NoCapacityError, match=rf"^image = 'x': not unpacked within 5 s, after \d+ of {len(data)} bytes"
    ):
        bench.unpack(kind, data, limits=limits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_told(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "a").write_bytes(packed(kind, b"abc"))
    with (
        (tmp_path / "a").open("rb") as source,
        Path("/dev/full").open("wb", buffering=0) as target,
        pytest.raises(NoCapacityError, match=r"^image = 'x': no space left on the host$"),
    ):
        unpack(source.fileno(), target.fileno(), kind=kind, limits=LIMITS, what="image = 'x'")


def test_a_source_that_cannot_be_read_is_the_hosts(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(HostError, match=r"^image = 'x': is a directory$"):
            unpack(fd, fd, kind="xz", limits=LIMITS, what="image = 'x'")
    finally:
        os.close(fd)


def test_progress_comes_once_a_second_and_at_the_end(
    bench: Bench, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed("gz", os.urandom(MIB))
    seen: list[tuple[int, int]] = []
    bench.unpack("gz", data, progress=lambda *at: seen.append(at))
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == (len(data), len(data))
    monkeypatch.setattr(unpack_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
    seen.clear()
    bench.unpack("gz", data, progress=lambda *at: seen.append(at))
    assert seen == [(len(data), len(data))]


def test_whoever_is_told_of_progress_can_end_it(bench: Bench, clock: None) -> None:
    def enough(done_bytes: int, total_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.unpack("xz", packed("xz", os.urandom(MIB)), progress=enough)


def test_what_is_added_to_the_file_meanwhile_is_not_read(bench: Bench, clock: None) -> None:
    content = os.urandom(MIB)

    def add(done_bytes: int, total_bytes: int) -> None:
        with bench.source.open("ab") as source:
            source.write(b"garbage")

    assert bench.unpack("zst", packed("zst", content), progress=add) == content
