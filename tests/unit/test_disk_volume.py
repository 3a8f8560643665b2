"""What the host has for a machine: tags and serials from paths, and what becomes a share, a disk or a refusal."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leftovers import open_files
from vmlib.disk.volume import explain_lock, names, prepare_mounts
from vmlib.errors import HostError, SpecError
from vmlib.resources import DiskAttachment, ShareAttachment
from vmlib.spec import MountSpec


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/local"], ["local"]),
        (["/srv/data", "/srv/my-data_1.x"], ["srv-data", "srv-my-data_1.x"]),
        (["/srv/data", "/srv-data", "/a"], ["srv-data-96b53e47", "srv-data-9fad6366", "a"]),
        (["/" + "x" * 40], ["xxxxxxxxxxxxxxxxxxxxxxx-4898de8c"]),
        (["/ä,b=c"], ["-b-c"]),
    ],
)
def test_tags(paths: list[str], expected: list[str]) -> None:
    assert names(paths) == expected


@given(paths=st.lists(st.text(min_size=1).map("/{}".format), max_size=5, unique=True), limit=st.sampled_from([20, 32]))
def test_tags_are_short_plain_and_stay_the_same(paths: list[str], limit: int) -> None:
    made = names(paths, max_bytes=limit)
    assert all(0 < len(name) <= limit and name.isascii() and not set(name) & set(" ,=/{}") for name in made)
    assert names(paths, max_bytes=limit) == made


def mount(source: Path, guest_path: str = "/srv/data", *, readonly: bool = False) -> MountSpec:
    return MountSpec(source=source, guest_path=guest_path, readonly=readonly)


def test_a_directory_is_a_share_and_a_file_a_raw_disk_whatever_it_holds(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"QFI\xfb" + bytes(2044))
    share, disk, other = prepare_mounts(
        [mount(tmp_path, "/a"), mount(image, "/srv/a/long/one/for/it"), mount(tmp_path, "/b", readonly=True)]
    )
    assert share == ShareAttachment(name="fs0", tag="chv:a", guest_path="/a", source=tmp_path)
    assert other == ShareAttachment(name="fs1", tag="chv:b", guest_path="/b", source=tmp_path, readonly=True)
    assert isinstance(disk, DiskAttachment)
    os.close(disk.file.fd)
    assert (disk.name, disk.format, disk.readonly, disk.block_device) == ("volume1", "raw", False, False)
    assert disk.serial == "srv-a-long--ffb26cf0"


def test_a_read_only_disk_cannot_be_written_through_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(512))
    (disk,) = prepare_mounts([mount(tmp_path / "image", readonly=True)])
    assert isinstance(disk, DiskAttachment)
    assert disk.readonly
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(disk.file.fd, b"x")
    os.close(disk.file.fd)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/", "mount at '/': expected an absolute path below /, without '..'"),
        ("data", "mount at 'data': expected an absolute path below /, without '..'"),
        ("/a/../etc", "mount at '/a/../etc': expected an absolute path below /, without '..'"),
        ("/a b", "mount at '/a b': expected at most 1024 printable characters without a space"),
        ("/a\nb", "mount at '/a\\nb': expected at most 1024 printable characters without a space"),
        ("/x", "mount at '/x': expected each path once"),
    ],
)
def test_a_path_that_no_guest_could_mount_at_is_refused(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as exc:
        prepare_mounts([mount(tmp_path, "/x"), mount(tmp_path, path)])
    assert str(exc.value) == message


@pytest.mark.parametrize(
    ("words", "explained"),
    [
        ('qemu: -blockdev {}: Failed to get "write" lock\nIs another process using it?', True),
        ('qemu: -blockdev {}: Failed to get shared "consistent read" lock', True),
        ("qemu: Could not open '/dev/fdset/1': Permission denied", False),
    ],
)
def test_a_disk_in_use_is_told_in_words(words: str, explained: bool) -> None:
    sentence = "a disk among /mnt/a, /mnt/b: another process on this host has it open"
    mounts = [mount(Path("/mnt/a")), mount(Path("/mnt/b"))]
    assert explain_lock(words, mounts) == (sentence if explained else None)
    assert explain_lock(words, []) is None


def test_what_is_neither_directory_nor_disk_is_the_operators_to_mend(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "short").write_bytes(bytes(511))
    before = open_files()
    for name, words in (
        ("missing", "no such file or directory"),
        ("fifo", "expected a directory, a regular file or a block device"),
        ("short", "511 bytes, expected a disk of at least 512"),
    ):
        with pytest.raises(HostError) as exc:
            prepare_mounts([mount(tmp_path / name)])
        assert str(exc.value) == f"mount at '/srv/data': {tmp_path}/{name}: {words}"
    assert open_files() == before
