"""Root disks made by the real qemu-img, and read as a VMM reads them."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmlib.disk.cache import ImageCache
from vmlib.disk.intake import Intake
from vmlib.disk.root import prepare_root
from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.resources import DiskAttachment
from vmlib.spec import DiskFormat, FileRef, RootDisk, RootMode

pytestmark = pytest.mark.needs("qemu")

MIB = 1 << 20
LIMIT = 1 << 40


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def intake_in(into: Path) -> Intake:
    return Intake(ImageCache(into / "cache"), max_virtual_bytes=LIMIT)


def virtual_size(path: Path) -> int:
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", str(path)))
    assert "backing-filename" not in info
    return int(info["virtual-size"])


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> RootDisk:
    """A 10 MiB image with `A` from 1 MiB to 2 MiB."""
    format_: DiskFormat = request.param
    path = tmp_path / f"image.{format_}"
    run("qemu-img", "create", "-q", "-f", format_, str(path), str(10 * MIB))
    run("qemu-io", "-f", format_, "-c", "write -q -P 0x41 1M 1M", str(path))
    return RootDisk(image=FileRef(root=tmp_path, relative=path.name), format=format_)


def with_(root: RootDisk, *, mode: RootMode = "overlay", size_bytes: int | None = None) -> RootDisk:
    return RootDisk(image=root.image, format=root.format, mode=mode, size_bytes=size_bytes)


def prepare(root: RootDisk, into: Path) -> DiskAttachment:
    """Prepare and close: the tests look at the files."""
    disk = prepare_root(root, into, intake=intake_in(into))
    os.close(disk.file.fd)
    if disk.backing is not None:
        os.close(disk.backing.fd)
    return disk


def as_a_vmm(disk: DiskAttachment, *commands: str) -> str:
    """Open the disk as a VMM does, with a backing node of its own, and run qemu-io commands on it."""
    options = f"driver={disk.format},file.driver=file,file.filename={disk.file.path}"
    if disk.backing is not None:
        options += (
            f",backing.driver={disk.backing_format},backing.read-only=on"
            f",backing.file.driver=file,backing.file.filename={disk.backing.path}"
        )
    return run("qemu-io", "--image-opts", options, *(word for command in commands for word in ("-c", command)))


def holds(disk: DiskAttachment, pattern: str, where: str) -> bool:
    try:
        as_a_vmm(disk, f"read -P {pattern} {where}")
    except subprocess.CalledProcessError as exc:
        if "Pattern verification failed" not in exc.stdout:
            raise
        return False
    return True


def test_an_overlay_shows_the_image_and_keeps_writes_from_it(image: RootDisk, tmp_path: Path) -> None:
    before = (tmp_path / image.image.relative).read_bytes()
    disk = prepare(image, tmp_path / "disk")
    assert disk.backing_format == image.format
    assert disk.format == "qcow2"
    assert virtual_size(disk.file.path) == 10 * MIB
    as_a_vmm(disk, "write -P 0x42 1M 512")
    assert holds(disk, "0x42", "1M 512")
    assert holds(disk, "0x41", "1049088 1048064")  # the rest of the cluster and of the image's data
    assert holds(disk, "0", "2M 8M")
    assert not holds(disk, "0x41", "1M 512")
    run("qemu-img", "check", "-q", "-f", "qcow2", str(disk.file.path))
    assert (tmp_path / image.image.relative).read_bytes() == before


def test_an_overlay_grows_and_is_kept_over_a_restart(image: RootDisk, tmp_path: Path) -> None:
    first = prepare(image, tmp_path / "disk")
    as_a_vmm(first, "write -P 0x42 5M 1M")
    second = prepare(with_(image, size_bytes=64 * MIB), tmp_path / "disk")
    assert second.file.path == first.file.path
    assert virtual_size(second.file.path) == 64 * MIB
    assert holds(second, "0x42", "5M 1M")
    assert holds(second, "0x41", "1M 1M")
    assert holds(second, "0", "10M 54M")
    assert virtual_size(prepare(image, tmp_path / "disk").file.path) == 64 * MIB
    run("qemu-img", "check", "-q", "-f", "qcow2", str(second.file.path))


def test_descriptors_are_writable_for_the_overlay_and_read_only_for_the_image(image: RootDisk, tmp_path: Path) -> None:
    disk = prepare_root(image, tmp_path / "disk", intake=intake_in(tmp_path / "disk"))
    assert disk.backing is not None
    with open(disk.file.fd, "r+b") as overlay, open(disk.backing.fd, "rb"):
        assert overlay.read(4) == b"QFI\xfb"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(disk.backing.fd, b"x", 0)


def test_an_overlay_over_a_changed_image_is_refused(image: RootDisk, tmp_path: Path) -> None:
    prepare(image, tmp_path / "disk")
    run("qemu-io", "-f", image.format, "-c", "write -q -P 0x43 1M 512", str(tmp_path / image.image.relative))
    with pytest.raises(SpecError, match="changed since this machine's root disk was made over it") as caught:
        prepare(image, tmp_path / "disk")
    assert 'root_mode = "copy"' in caught.value.hint


def test_a_copy_is_grown_and_kept_when_the_image_is_gone(image: RootDisk, tmp_path: Path) -> None:
    wanted = with_(image, mode="copy", size_bytes=64 * MIB)
    disk = prepare(wanted, tmp_path / "disk")
    assert disk.format == image.format
    assert holds(disk, "0x41", "1M 1M")
    assert holds(disk, "0", "10M 54M")
    as_a_vmm(disk, "write -P 0x42 60M 1M")
    (tmp_path / image.image.relative).unlink()
    assert holds(prepare(wanted, tmp_path / "disk"), "0x42", "60M 1M")
    larger = prepare(with_(image, mode="copy", size_bytes=80 * MIB), tmp_path / "disk")
    assert holds(larger, "0", "61M 19M")


def test_a_kept_overlay_whose_header_names_a_file_is_not_opened_by_a_tool(tmp_path: Path, image: RootDisk) -> None:
    disk = prepare(image, tmp_path / "disk")
    (tmp_path / "secret").write_bytes(b"x" * MIB)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "secret"), str(disk.file.path))
    # The name is taken out before a tool looks: what is grown has only what we gave it below.
    grown = prepare(with_(image, size_bytes=64 * MIB), tmp_path / "disk")
    assert virtual_size(grown.file.path) == 64 * MIB
    assert json.loads(run("qemu-img", "info", "--output=json", str(grown.file.path))).get("backing-filename") is None
    assert (tmp_path / "secret").read_bytes() == b"x" * MIB


def test_an_image_with_a_backing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"x" * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "base"), str(tmp_path / "a.qcow2"))
    with pytest.raises(SpecError, match="needs a backing file"):
        prepare(RootDisk(image=FileRef(root=tmp_path, relative="a.qcow2"), format="qcow2"), tmp_path / "disk")


@pytest.mark.parametrize(
    "options",
    ["compat=0.10", "compat=1.1,lazy_refcounts=on", "extended_l2=on", "compression_type=zstd", "cluster_size=2M"],
)
def test_every_kind_of_qcow2_that_qemu_img_makes_is_taken(tmp_path: Path, options: str) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(tmp_path / "a.qcow2"), "10M")
    root = RootDisk(image=FileRef(root=tmp_path, relative="a.qcow2"), format="qcow2")
    assert virtual_size(prepare(root, tmp_path / "disk").file.path) == 10 * MIB
    copied = prepare(with_(root, mode="copy", size_bytes=20 * MIB), tmp_path / "disk")
    assert virtual_size(copied.file.path) == 20 * MIB


@pytest.mark.parametrize(("options", "complaint"), [("data_file=D", "another file"), ("encrypt", "encrypted")])
def test_real_images_that_lead_out_of_themselves_are_refused(tmp_path: Path, options: str, complaint: str) -> None:
    path = str(tmp_path / "a.qcow2")
    if options == "encrypt":
        secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s"]
        run("qemu-img", "create", "-q", "-f", "qcow2", *secret, path, "10M")
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'outside'}", path, "10M")
    with pytest.raises(SpecError, match=complaint):
        prepare(RootDisk(image=FileRef(root=tmp_path, relative="a.qcow2"), format="qcow2"), tmp_path / "disk")


def test_a_missing_qemu_img_is_the_operators_to_mend(image: RootDisk, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="/nonexistent/qemu-img: no such file or directory"):
        prepare_root(image, tmp_path / "disk", intake=intake_in(tmp_path / "disk"), qemu_img="/nonexistent/qemu-img")
    assert not list((tmp_path / "disk").glob("*.qcow2"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 128 KiB: less than an empty overlay takes."""
    path = tmp_path / "small"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path))
    yield path
    run("umount", str(path))


@pytest.mark.needs("root")
@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_full_disk_is_told_and_nothing_partial_stays(image: RootDisk, small: Path, mode: RootMode) -> None:
    with pytest.raises(NoCapacityError, match=r"root disk .*: no space left on the host"):
        prepare(with_(image, mode=mode), small / "disk")
    assert [path for path in small.rglob("*") if path.is_file() and path.suffix != ".json"] == []
