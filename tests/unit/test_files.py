"""Files that survive, locks that hold, paths that do not lead out."""

import os
import threading
from pathlib import Path

import pytest

from vmlib.errors import SpecError
from vmlib.files import locked, open_beneath, open_ref, write_atomic
from vmlib.spec import FileRef


def test_a_reader_sees_the_old_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    write_atomic(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


def test_a_write_that_fails_leaves_nothing_beside_the_target(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="d"):
        write_atomic(tmp_path / "d", b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["d"]


def test_a_taken_lock_is_said_at_once_to_who_does_not_wait(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", blocking=False):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_keeps_two_apart(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waiting, inside = threading.Event(), []

    def second() -> None:
        waiting.set()
        with locked(path):
            inside.append(os.stat(path).st_ino)

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        path.unlink()
    thread.join(5)
    assert inside == [path.stat().st_ino]


@pytest.mark.parametrize("relative", ["../secret", "a/../../secret", "link", "/etc/passwd", "dir/link"])
def test_a_path_that_leads_out_is_refused_by_the_kernel_itself(tmp_path: Path, relative: str) -> None:
    (tmp_path / "secret").write_text("s")
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "a").mkdir()
    (root / "link").symlink_to("../secret")
    (root / "dir" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(SpecError, match="leads out of"):
        open_ref(FileRef(root=root, relative=relative), key="kernel")


def test_a_link_that_stays_beneath_its_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    fd = open_beneath(tmp_path, "link")
    assert os.read(fd, 9) == b"x"
    os.close(fd)


@pytest.mark.parametrize("kind", ["fifo", "directory", "missing"])
def test_what_is_no_regular_file_is_refused_with_key_and_value_and_does_not_hang(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(
        SpecError, match=rf"^image = '{path}': (not a regular file|no such file or directory, expected)"
    ):
        open_ref(FileRef(root=tmp_path, relative="thing"), key="image")
