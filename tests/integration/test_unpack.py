"""Images as the real tools pack them, unpacked beside a real qemu-img; and what hostile ones cost the host."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmlib.disk.cache import ImageCache
from vmlib.disk.image import check_image
from vmlib.disk.intake import Intake
from vmlib.disk.unpack import CHUNK_BYTES, Kind, UnpackLimits, packed_name, unpack
from vmlib.errors import NoCapacityError, SpecError
from vmlib.spec import FileRef

pytestmark = pytest.mark.needs("qemu")

MIB = 1 << 20
LIMITS = UnpackLimits(max_bytes=1 << 40)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """64 MiB of disk: data that shrinks and data that does not, and holes."""
    path = tmp_path / f"image.{request.param}"
    (tmp_path / "noise").write_bytes(os.urandom(MIB))
    run("qemu-img", "create", "-q", "-f", request.param, str(path), "64M")
    write = f"write -q -s {tmp_path}/noise 20M 1M"
    run("qemu-io", "-f", request.param, "-c", "write -q -P 0x41 1M 3M", "-c", write, str(path))
    return path


def pack(image: Path, command: str) -> Path:
    tool, *options = command.split()
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on PATH")
    packed = image.with_name(f"{image.name}.{'gz' if tool == 'gzip' else 'zst' if tool == 'zstd' else 'xz'}")
    with packed.open("wb") as out:
        subprocess.run(
            [tool, "-c", *options, str(image)], stdout=out, stderr=subprocess.DEVNULL, check=True, timeout=60
        )
    return packed


def kind_in(path: Path) -> Kind:
    _, kind = packed_name(path.name)
    assert kind is not None
    return kind


def unpack_to(target: Path, packed: Path, limits: UnpackLimits = LIMITS) -> int:
    with packed.open("rb") as source, target.open("w+b") as out:
        return unpack(source.fileno(), out.fileno(), kind=kind_in(packed), limits=limits, what=f"image = '{packed}'")


@pytest.mark.parametrize(
    "command",
    [
        "gzip -1",
        "gzip -9",
        "xz -0",
        "xz -T2 --block-size=4MiB",
        "xz -1 --check=crc32",
        "xz -1 --check=sha256",
        "zstd -1",
        "zstd -T2 -3 --no-check",
        "zstd --long=27 --ultra -20",  # as large a window as the tool itself unpacks unasked
    ],
)
def test_what_the_tools_pack_is_the_same_disk_again(image: Path, command: str) -> None:
    again = image.with_name(f"again{image.suffix}")
    assert unpack_to(again, pack(image, command)) == image.stat().st_size
    assert again.read_bytes() == image.read_bytes()
    # Holes in both; a chunk that has some data is written whole.
    assert again.stat().st_blocks * 512 <= image.stat().st_blocks * 512 + 8 * CHUNK_BYTES
    format_ = image.suffix[1:]
    assert "Images are identical." in run("qemu-img", "compare", "-f", format_, "-F", format_, str(image), str(again))
    with again.open("rb") as file:
        info = check_image(
            file.fileno(),
            declared="raw" if format_ == "raw" else "qcow2",
            key="image",
            path=again,
            max_virtual_bytes=1 << 40,
        )
    assert info.virtual_size_bytes == 64 * MIB


@pytest.mark.parametrize("command", ["gzip -1", "xz -0", "zstd -1"])
def test_files_that_were_joined_are_one_image(image: Path, command: str) -> None:
    packed = pack(image, command)
    packed.write_bytes(packed.read_bytes() * 2)
    again = image.with_name("again")
    unpack_to(again, packed)
    assert again.read_bytes() == image.read_bytes() * 2


def test_a_window_wider_than_the_tool_takes_unasked_is_refused(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("no zstd on PATH")
    packed = tmp_path / "wide.raw.zst"
    with packed.open("wb") as out:
        # Through a pipe: the tool does not know how little it gets, and writes down the window that it was told.
        subprocess.run(["zstd", "-1", "--long=28", "-c"], input=b"abc", stdout=out, check=True, timeout=60)
    with pytest.raises(SpecError, match="packed with a larger zst window than we have, expected at most 128 MiB"):
        unpack_to(tmp_path / "again", packed)


def test_the_cache_keeps_one_unpacked_image_of_many_names(image: Path, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    intake = Intake(cache, max_virtual_bytes=1 << 30)
    packed = pack(image, "xz -0")
    for path in (packed, Path(shutil.copy(packed, tmp_path / "other.xz"))):
        ref = FileRef(root=tmp_path, relative=path.name)
        intake.bring(
            ref, "qcow2" if "qcow2" in image.name else "raw", "xz", tmp_path / f"{path.name}.base", key="image"
        )
        assert (tmp_path / f"{path.name}.base").read_bytes() == image.read_bytes()
    assert len(list(cache.images())) == 1


@pytest.mark.needs("root")
def test_a_full_disk_is_told(image: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small))
    try:
        with pytest.raises(NoCapacityError, match=r"^image = .*: no space left on the host$"):
            unpack_to(small / "again", pack(image, "gzip -1"))
    finally:
        run("umount", str(small))


# Unpacks what it is told, and says what went wrong and how much memory that took.
_CHILD = """
import re, sys
from pathlib import Path
from vmlib.disk.unpack import UnpackLimits, unpack
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat, FileRef


def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


before = peak_kib()
try:
    with open(sys.argv[1], "rb") as source, open(sys.argv[2], "w+b") as target:
        unpack(source.fileno(), target.fileno(), kind=sys.argv[3], limits=UnpackLimits(max_bytes=160 << 20), what="x")
except SpecError as exc:
    print(exc)
print((peak_kib() - before) // 1024)
"""


@pytest.mark.parametrize("byte", ["\0", "A"])
@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_a_bomb_costs_little_memory_and_little_disk(tmp_path: Path, kind: Kind, byte: str) -> None:
    bomb, target = tmp_path / f"bomb.{kind}", tmp_path / "target"
    tool = {"gz": "gzip -6", "xz": "xz -0", "zst": "zstd -1"}[kind]
    if shutil.which(tool.split()[0]) is None:
        pytest.skip(f"no {tool} on PATH")
    with bomb.open("wb") as out, subprocess.Popen([*tool.split(), "-c"], stdin=subprocess.PIPE, stdout=out) as packer:
        assert packer.stdin is not None
        for _ in range(192):
            packer.stdin.write(byte.encode() * MIB)
    said, used_mib = run(sys.executable, "-c", _CHILD, str(bomb), str(target), kind).splitlines()
    expected = "unpacks to more than 160 MiB" if byte == "\0" else "expected at most 250 times as many"
    assert expected in said
    assert int(used_mib) < 100
    assert target.stat().st_blocks * 512 <= 100 * MIB
