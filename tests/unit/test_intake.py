"""Images on their way into machines: what is cached, what a hold keeps out, what is told while it takes long."""

import gzip
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.disk import intake as intake_module
from vmlib.disk.cache import ImageCache
from vmlib.disk.intake import Intake, disk_checksum
from vmlib.disk.root import prepare_root, wants_image
from vmlib.errors import NoCapacityError, SpecError
from vmlib.hold import hold_image
from vmlib.resources import DiskAttachment
from vmlib.spec import FileRef, Packing, RootDisk

MIB = 1 << 20
LIMIT = 1 << 30
CONTENT = b"\xeb\x63" + os.urandom(MIB - 2)


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache")


@pytest.fixture
def intake(cache: ImageCache) -> Intake:
    return Intake(cache, max_virtual_bytes=LIMIT)


@pytest.fixture
def ours() -> Iterator[ExitStack]:
    """Closes what the tests open."""
    with ExitStack() as stack:
        yield stack


def named(path: Path) -> FileRef:
    return FileRef(root=path.parent, relative=path.name)


def image_at(path: Path, content: bytes = CONTENT) -> RootDisk:
    packed: Packing = "gz" if path.suffix == ".gz" else ""
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    return RootDisk(image=named(path), format="raw", packed=packed, cached=True)


def prepare(root: RootDisk, into: Path, intake: Intake, ours: ExitStack) -> DiskAttachment:
    disk = prepare_root(root, into, intake=intake)
    ours.callback(os.close, disk.file.fd)
    if disk.backing is not None:
        ours.callback(os.close, disk.backing.fd)
    return disk


# -- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.raw", "a.raw.gz"])
def test_an_image_of_the_jobs_is_brought_once_and_links_of_it_are_what_machines_build_on(
    name: str, tmp_path: Path, cache: ImageCache, intake: Intake
) -> None:
    root = image_at(tmp_path / name)
    for number in range(3):
        target = tmp_path / f"base{number}"
        intake.bring(root.image, "raw", root.packed, target, key="image")
        assert target.read_bytes() == CONTENT
        assert target.stat().st_mode & 0o777 == 0o400
    (image,) = cache.images()
    assert image.path.samefile(tmp_path / "base0")
    assert image.bytes == 0  # it is not the cache alone that has it
    (tmp_path / name).write_bytes(b"changed by the job")
    assert (tmp_path / "base0").read_bytes() == CONTENT


def test_one_file_under_two_names_is_what_each_name_promises(tmp_path: Path, intake: Intake) -> None:
    root = image_at(tmp_path / "a.raw.gz")
    intake.bring(root.image, "raw", "gz", None, key="image")
    os.link(tmp_path / "a.raw.gz", tmp_path / "a.raw")
    with pytest.raises(SpecError, match=r"image = .*a.raw': declared raw, but its header says gzip-compressed"):
        intake.bring(named(tmp_path / "a.raw"), "raw", "", None, key="image")


def test_what_unpacks_to_something_else_than_declared_is_refused_and_not_kept(
    tmp_path: Path, cache: ImageCache, intake: Intake
) -> None:
    root = image_at(tmp_path / "a.raw.gz", b"QFI\xfb" + bytes(MIB))
    with pytest.raises(SpecError, match=r"image = .*a.raw.gz': declared raw, but its header says qcow2"):
        intake.bring(root.image, "raw", "gz", tmp_path / "base", key="image")
    assert list(cache.images()) == []
    assert not (tmp_path / "base").exists()
    assert list((tmp_path / "cache/images").iterdir()) == []


def test_a_bomb_is_refused_at_the_limit_of_the_node_and_not_kept(tmp_path: Path, cache: ImageCache) -> None:
    root = image_at(tmp_path / "a.raw.gz", bytes(8 * MIB))
    with pytest.raises(SpecError, match=r"image = .*: unpacks to more than .*, expected at most that"):
        Intake(cache, max_virtual_bytes=4 * MIB).bring(root.image, "raw", "gz", None, key="image")
    assert list((tmp_path / "cache/images").iterdir()) == []


@given(blocks=st.lists(st.sampled_from(["hole", "zeros", "data"]), min_size=1, max_size=12), tail=st.integers(0, 999))
def test_the_checksum_of_a_disk_knows_content_and_not_holes(
    blocks: list[str], tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = len(blocks) * 65536 + tail
    sums = []
    with (tmp_path_factory.mktemp("sum") / "disk").open("w+b") as file:
        for holes in (True, False):
            file.truncate(0)
            file.truncate(size)
            for number, kind in enumerate(blocks):
                if kind == "data" or (kind == "zeros" or not holes):
                    os.pwrite(file.fileno(), (b"x" if kind == "data" else b"\0") * 65536, number * 65536)
            sums.append(disk_checksum(file.fileno()))
        os.pwrite(file.fileno(), b"y", size - 1)
        sums.append(disk_checksum(file.fileno()))
    assert sums[0] == sums[1] != sums[2]


# -- what is told ----------------------------------------------------------------------------------------------------


def test_long_work_is_told_of_more_and_more_seldom_and_its_end_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now, words = [100.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ref = FileRef(root=Path("/task"), relative="local/debian.qcow2.xz")
    with intake_module._Telling(words.append, ref, "unpacked") as progress:
        for second in range(61):
            now[0] = 100.0 + second
            progress(second, 60)
    assert words == [
        "image: 'debian.qcow2.xz' is being unpacked, 3 %",
        "image: 'debian.qcow2.xz' is being unpacked, 10 %",
        "image: 'debian.qcow2.xz' is being unpacked, 30 %",
        "image: 'debian.qcow2.xz' is being unpacked, 90 %",
        "image: 'debian.qcow2.xz' unpacked in 60 s",
    ]


def test_quick_work_is_not_told_of(tmp_path: Path, cache: ImageCache) -> None:
    words: list[str] = []
    root = image_at(tmp_path / "a.raw.gz")
    Intake(cache, max_virtual_bytes=LIMIT, tell=words.append).bring(root.image, "raw", "gz", None, key="image")
    assert words == []


# -- in place --------------------------------------------------------------------------------------------------------


def test_a_direct_disk_is_the_image_itself_and_grows_with_it(tmp_path: Path, intake: Intake, ours: ExitStack) -> None:
    root = replace(image_at(tmp_path / "a.raw"), mode="direct", cached=False, size_bytes=2 * MIB)
    disk = prepare(root, tmp_path / "disk", intake, ours)
    os.pwrite(disk.file.fd, b"guest", 0)
    assert (tmp_path / "a.raw").read_bytes() == b"guest" + CONTENT[5:] + bytes(MIB)
    assert disk.backing is None
    assert list((tmp_path / "disk").iterdir()) == []


def test_an_image_is_written_to_by_one_or_built_upon_by_many(tmp_path: Path, ours: ExitStack) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def opened() -> int:
        fd = os.open(tmp_path / "a", os.O_RDWR)
        ours.callback(os.close, fd)
        return fd

    below = [opened(), opened()]
    for fd in below:
        hold_image(fd, alone=False, what="image = 'a'")
    with pytest.raises(NoCapacityError, match=r"^image = 'a': in use by another machine$"):
        hold_image(opened(), alone=True, what="image = 'a'")
    for fd in below:
        os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    writer = opened()
    hold_image(writer, alone=True, what="image = 'a'")
    for alone in (True, False):
        with pytest.raises(NoCapacityError, match=r"^image = 'a': "):
            hold_image(opened(), alone=alone, what="image = 'a'")


def test_a_file_that_nobody_may_write_to_is_no_direct_disk(tmp_path: Path, intake: Intake, ours: ExitStack) -> None:
    root = replace(image_at(tmp_path / "a.raw"), mode="direct", cached=False)
    (tmp_path / "a.raw").chmod(0o444)
    if os.geteuid() == 0:
        with pytest.raises(SpecError, match=r"image = .*: nobody may write to it \(mode 0444\)"):
            prepare(root, tmp_path / "disk", intake, ours)
    else:
        with pytest.raises(SpecError, match=r"image = .*: permission denied, expected a writable file"):
            prepare(root, tmp_path / "disk", intake, ours)


def test_what_an_earlier_start_left_needs_no_image(tmp_path: Path) -> None:
    root, into = image_at(tmp_path / "a.raw"), tmp_path / "disk"
    into.mkdir()
    copy = replace(root, mode="copy")
    assert wants_image(root, into)
    assert wants_image(copy, into)
    assert not wants_image(replace(root, mode="direct"), into)
    for name in ("root-overlay.qcow2", "root-copy.raw"):
        (into / name).touch()
    assert wants_image(root, into)  # without what is below it
    assert not wants_image(copy, into)
    (into / "root-base.raw").touch()
    assert not wants_image(root, into)
