"""Root disks that need no tool: raw copies, and what is refused before a tool would run."""

import os
from pathlib import Path

import pytest

from tests.leftovers import open_files
from vmlib.disk.cache import ImageCache
from vmlib.disk.image import ImageInfo
from vmlib.disk.intake import Intake
from vmlib.disk.root import prepare_root, wanted_size_bytes
from vmlib.errors import SpecError
from vmlib.resources import DiskAttachment
from vmlib.spec import DiskFormat, FileRef, RootDisk, RootMode

MIB = 1 << 20
LIMIT = 1 << 30
NO_TOOL = "/nonexistent/qemu-img"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"\xeb\x63" + os.urandom(MIB - 2))
    return path


def intake_in(into: Path) -> Intake:
    return Intake(ImageCache(into / "cache"), max_virtual_bytes=LIMIT)


def root_disk(
    image: Path, *, mode: RootMode = "copy", format_: DiskFormat = "raw", size: int | None = None
) -> RootDisk:
    ref = FileRef(root=image.parent, relative=image.name)
    return RootDisk(image=ref, format=format_, mode=mode, size_bytes=size)


def prepare(root: RootDisk, into: Path) -> DiskAttachment:
    disk = prepare_root(root, into, intake=intake_in(into), qemu_img=NO_TOOL)
    # Only what the descriptor shows counts for a VMM; it is closed here so that no test leaks it.
    with open(disk.file.fd, "rb"):
        assert os.pread(disk.file.fd, 1 << 26, 0) == disk.file.path.read_bytes()
    return disk


def test_a_raw_copy_grows_to_root_size_and_leaves_the_image_alone(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    disk = prepare(root_disk(image, size=3 * MIB), tmp_path / "disk")
    assert disk.file.path.read_bytes() == before + b"\0" * (2 * MIB)
    assert image.read_bytes() == before
    assert (disk.name, disk.format, disk.readonly, disk.backing) == ("root", "raw", False, None)
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o700
    assert disk.file.path.stat().st_mode & 0o777 == 0o600


def test_a_restart_gets_the_disk_as_the_guest_left_it(image: Path, tmp_path: Path) -> None:
    first = prepare(root_disk(image), tmp_path / "disk")
    with first.file.path.open("r+b") as file:
        # A guest may write whatever it likes to its own raw disk, another format's magic included.
        file.write(b"QFI\xfb written by the guest")
    image.unlink()
    second = prepare(root_disk(image), tmp_path / "disk")
    assert second.file.path.read_bytes().startswith(b"QFI\xfb written by the guest")


def test_a_restart_never_shrinks_and_grows_when_asked(image: Path, tmp_path: Path) -> None:
    prepare(root_disk(image, size=3 * MIB), tmp_path / "disk")
    assert prepare(root_disk(image), tmp_path / "disk").file.path.stat().st_size == 3 * MIB
    assert prepare(root_disk(image, size=4 * MIB), tmp_path / "disk").file.path.stat().st_size == 4 * MIB


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_root_size_below_the_image_is_refused_with_both_numbers(image: Path, tmp_path: Path, mode: RootMode) -> None:
    fds_before = open_files()
    with pytest.raises(SpecError, match=r"root_size = 524288 bytes: smaller than the image, which has 1 MiB"):
        prepare(root_disk(image, mode=mode, size=MIB // 2), tmp_path / "disk")
    assert os.listdir(tmp_path / "disk") == []
    assert open_files() == fds_before


@pytest.mark.parametrize("mode", ["copy", "overlay"])
def test_a_wrong_image_is_refused_before_any_tool_runs(image: Path, tmp_path: Path, mode: RootMode) -> None:
    with pytest.raises(SpecError, match=r"image = '.*/image': declared qcow2, but its header says raw"):
        prepare(root_disk(image, mode=mode, format_="qcow2"), tmp_path / "disk")
    assert os.listdir(tmp_path / "disk") == []


def test_a_missing_image_is_the_jobs_fault(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"image = '.*/none': no such file or directory"):
        prepare(root_disk(tmp_path / "none"), tmp_path / "disk")


@pytest.mark.parametrize(
    ("image_size", "asked", "size"), [(MIB, None, MIB), (MIB, MIB, MIB), (MIB, MIB + 1, MIB + 512), (MIB, LIMIT, LIMIT)]
)
def test_the_wanted_size_is_in_whole_sectors(image_size: int, asked: int | None, size: int) -> None:
    info = ImageInfo(virtual_size_bytes=image_size)
    assert wanted_size_bytes(info, asked, max_virtual_bytes=LIMIT) == size


def test_a_root_size_above_the_operators_cap_is_refused() -> None:
    with pytest.raises(SpecError, match="root_size = 2 GiB: expected at most 1 GiB"):
        wanted_size_bytes(ImageInfo(virtual_size_bytes=MIB), 2 << 30, max_virtual_bytes=LIMIT)
