"""Copies: same bytes, holes kept, nothing left behind by a failure."""

import errno
import os
from pathlib import Path

import pytest

from vmlib.disk.copy import clone_or_copy, made_beside, told
from vmlib.errors import HostError, NoCapacityError

MIB = 1 << 20


def sparse_file(path: Path) -> bytes:
    with path.open("wb") as file:
        file.truncate(16 * MIB)
        file.seek(5 * MIB)
        file.write(b"middle")
        file.seek(12 * MIB + 3)
        file.write(b"end")
    return path.read_bytes()


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as a, target.open("wb") as b:
        clone_or_copy(a.fileno(), b.fileno())


def test_a_copy_has_the_same_bytes_and_keeps_the_holes(tmp_path: Path) -> None:
    content = sparse_file(tmp_path / "a")
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "b").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * MIB + 7])
def test_a_copy_has_the_exact_size(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_copy_is_made_by_hand_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EXDEV, "two kinds of filesystem")

    content = sparse_file(tmp_path / "a")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "b").stat().st_blocks * 512 < MIB


def test_a_file_made_beside_appears_complete_and_private(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with made_beside(path) as (fd, beside):
        os.write(fd, b"all of it")
        assert not path.exists()
        assert beside.parent == tmp_path
    assert path.read_bytes() == b"all of it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["disk"]


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with made_beside(path) as (fd, _):
            os.write(fd, b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["disk"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".disk.0a1b2c3d").write_bytes(b"half")
    (tmp_path / ".disk2.0a1b2c3d").write_bytes(b"of another file")
    with made_beside(tmp_path / "disk"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".disk2.0a1b2c3d", "disk"]


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoCapacityError, "disk x: no space left on the host"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), NoCapacityError, "disk x: disk quota used up on the host"),
        (OSError(errno.EACCES, "Permission denied"), HostError, "disk x: permission denied"),
        (HostError("qemu-img: a.qcow2: No space left on device"), NoCapacityError, "disk x: no space left on the host"),
        (HostError("qemu-img: a.qcow2: broken"), HostError, "qemu-img: a.qcow2: broken"),
    ],
)
def test_a_full_disk_is_told_apart_from_other_trouble(raised: Exception, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught, told("disk x"):
        raise raised
    assert str(caught.value) == message
