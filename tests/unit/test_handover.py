"""Files for a VMM that opens them by itself: to whom they are given, and what an overlay's header says."""

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmlib.disk.overlay import forget_backing, name_backing
from vmlib.handover import hand_over, may
from vmlib.resources import Credentials, DiskAttachment, OpenFile, Resources

WHO = Credentials(uid=200000, gid=200001, groups=(104,))
CLUSTER = 1 << 16


def status(mode: int, *, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "write", "allowed"),
    [
        (status(0o644), False, True),
        (status(0o644), True, False),
        (status(0o666), True, True),
        (status(0o640), False, False),
        (status(0o640, gid=104), False, True),
        (status(0o660, gid=200001), True, True),
        (status(0o604, gid=104), False, False),  # the group's own bits count, and nobody else's
        (status(0o400, uid=200000), False, True),
        (status(0o400, uid=200000), True, False),
        (status(0o200), True, False),
    ],
)
def test_who_may_open_a_file_is_in_its_mode(found: os.stat_result, write: bool, allowed: bool) -> None:
    assert may(found, WHO, write=write) is allowed


def test_root_may_always() -> None:
    assert may(status(0o000), Credentials(uid=0, gid=0), write=True)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[int]:
    """An empty qcow2 as qemu-img makes it: header of 112 bytes, one extension, the end of extensions."""
    fd = os.open(tmp_path / "overlay", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 4 * CLUSTER)
    header = b"QFI\xfb" + struct.pack(">IQIIQ", 3, 0, 0, 16, 1 << 30)
    os.pwrite(fd, header.ljust(100, b"\0") + struct.pack(">I", 112), 0)
    os.pwrite(fd, struct.pack(">II", 0x6803F857, 48) + b"f" * 48 + struct.pack(">II", 0, 0), 112)
    yield fd
    os.close(fd)


def named(fd: int) -> bytes:
    offset, size = struct.unpack(">QI", os.pread(fd, 12, 8))
    return os.pread(fd, size, offset)


def extensions(fd: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 112
    while True:
        kind, size = struct.unpack(">II", os.pread(fd, 8, at))
        if kind == 0:
            return found
        assert kind not in found
        found[kind] = os.pread(fd, size, at + 8)
        at += 8 + (size + 7) // 8 * 8


def test_an_overlay_names_what_lies_below_it_and_its_format(overlay: int) -> None:
    name_backing(overlay, "/proc/self/fd/13", "raw")
    assert named(overlay) == b"/proc/self/fd/13"
    assert extensions(overlay) == {0x6803F857: b"f" * 48, 0xE2792ACA: b"raw"}
    offset, size = struct.unpack(">QI", os.pread(overlay, 12, 8))
    assert 112 < offset < offset + size <= CLUSTER


def test_naming_it_again_changes_the_name_alone(overlay: int) -> None:
    for fd in range(5, 40):
        name_backing(overlay, f"/proc/self/fd/{fd}", "qcow2")
    assert named(overlay) == b"/proc/self/fd/39"
    assert extensions(overlay) == {0x6803F857: b"f" * 48, 0xE2792ACA: b"qcow2"}


def test_an_overlay_that_forgets_names_nothing(overlay: int) -> None:
    name_backing(overlay, "/etc/shadow", "raw")
    forget_backing(overlay)
    assert struct.unpack(">QI", os.pread(overlay, 12, 8)) == (0, 0)
    forget_backing(overlay)


def test_a_file_that_is_no_overlay_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"x" * 100)
    with open(path, "r+b") as file:
        forget_backing(file.fileno())
        with pytest.raises(ValueError, match="no qcow2 header"):
            name_backing(file.fileno(), "/x", "raw")
    assert path.read_bytes() == b"x" * 100


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fd: os.pwrite(fd, struct.pack(">II", 0x6803F857, 70_000), 112),  # longer than its cluster
        lambda fd: os.pwrite(fd, struct.pack(">II", 0xE2792ACA, 5) + b"qcow2", 112),  # of another format
        lambda fd: os.pwrite(fd, b"".join(struct.pack(">II", 7, 0) for _ in range(100)), 112),
    ],
)
def test_a_header_that_its_vmm_has_spoilt_is_refused(overlay: int, spoil: object) -> None:
    assert callable(spoil)
    spoil(overlay)
    with pytest.raises(ValueError, match=r"overlay|room"):
        name_backing(overlay, "/proc/self/fd/13", "raw")


def opened(path: Path, *, mode: int) -> OpenFile:
    path.touch()
    path.chmod(mode)
    return OpenFile(fd=os.open(path, os.O_RDONLY), path=path)


def machine(file: OpenFile, *, readonly: bool = False) -> Resources:
    disk = DiskAttachment(name="root", file=file, format="raw", readonly=readonly)
    return Resources(run_dir=Path("/run"), credentials=WHO, disks=(disk,))


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Ownership that is given away, without the privilege for it."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, uid, gid: given.append((uid, gid)))
    return given


def test_the_machines_own_files_become_its_users(tmp_path: Path, as_root: list[tuple[int, int]]) -> None:
    assert hand_over(machine(opened(tmp_path / "root", mode=0o600)), (tmp_path,)) == ""
    assert as_root == [(200000, 200001)]


def test_what_others_share_becomes_readable_and_nobodys(tmp_path: Path, as_root: list[tuple[int, int]]) -> None:
    file = opened(tmp_path / "base", mode=0o400)
    os.link(tmp_path / "base", tmp_path / "cached")
    assert hand_over(machine(file, readonly=True), (tmp_path,)) == ""
    assert (as_root, stat.S_IMODE((tmp_path / "base").stat().st_mode)) == ([], 0o444)


def test_somebody_elses_file_stays_as_it_is(tmp_path: Path, as_root: list[tuple[int, int]]) -> None:
    path = tmp_path / "images" / "a.raw"
    path.parent.mkdir()
    res = machine(opened(path, mode=0o600))
    expected = f"{path}: uid 200000, which its VMM runs as, may not write it"
    assert hand_over(res, (tmp_path / "machines",)) == expected
    assert (as_root, stat.S_IMODE(path.stat().st_mode)) == ([], 0o600)
