import os
import stat
from pathlib import Path

import pytest

from driver.goplugin.handshake import HandshakeError
from driver.goplugin.socket_dir import private_socket, remove_left_over


def test_directory_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with private_socket([tmp_path], "x-") as path:
        assert path.parent.parent == tmp_path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.touch()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_will_not_do_is_passed_over(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    with private_socket([tmp_path / "absent", long, tmp_path], "x-") as path:
        assert path.parent.parent == tmp_path
        assert list(long.iterdir()) == []


def test_where_none_will_do_each_is_named_with_its_reason(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    with pytest.raises(HandshakeError) as caught, private_socket([tmp_path / "absent", long], "x-"):
        pass
    assert f"{tmp_path / 'absent'}: no such file or directory" in str(caught.value)
    assert f"{long}: socket path would be longer than 107 bytes" in str(caught.value)


def test_a_failure_inside_is_not_taken_for_a_bad_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="own trouble"), private_socket([tmp_path, tmp_path], "x-"):
        raise OSError("own trouble")
    assert list(tmp_path.iterdir()) == []


def left_over(parent: Path, name: str, mode: int = 0o700) -> Path:
    directory = parent / name
    directory.mkdir(mode=mode)
    directory.chmod(mode)
    (directory / "p.sock").touch()
    return directory


def test_left_overs_of_killed_plugins_go_and_live_ones_stay(tmp_path: Path) -> None:
    dead = left_over(tmp_path, "x-dead")
    with private_socket([tmp_path], "x-") as first, private_socket([tmp_path], "x-") as second:
        assert not dead.exists()
        assert first.parent.exists()
        remove_left_over(tmp_path, "x-")
        assert first.parent.exists()
        assert second.parent.exists()


def test_nothing_of_others_is_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    others = [left_over(tmp_path, "plugin-y"), left_over(tmp_path, "x-open", mode=0o755)]
    (tmp_path / "x-link").symlink_to(elsewhere)
    (tmp_path / "x-file").touch()
    remove_left_over(tmp_path, "x-")
    assert all(directory.exists() for directory in others)
    assert elsewhere.exists()
    assert (tmp_path / "x-file").exists()
    if os.geteuid() == 0:
        stranger = left_over(tmp_path, "x-stranger")
        os.chown(stranger, 65534, 65534)
        remove_left_over(tmp_path, "x-")
        assert stranger.exists()
