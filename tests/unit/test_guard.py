"""The guard of tests/unit itself, and the pure half of the test guest's build."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.guest import archive, build


def test_a_unit_test_cannot_start_a_process() -> None:
    with pytest.raises(pytest.fail.Exception, match="may not start a process"):
        subprocess.run(["true"], check=False)


def test_a_unit_test_cannot_open_netlink() -> None:
    with pytest.raises(pytest.fail.Exception, match="may not open netlink"):
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


def test_a_module_is_loaded_after_what_it_depends_on(tmp_path: Path) -> None:
    modules = {}
    for name, depends in {"top": "mid_a,mid_b", "mid_a": "low", "mid_b": "low", "low": "", "other": ""}.items():
        modules[name] = tmp_path / f"{name}.ko"
        modules[name].write_bytes(b"\x7fELF\0depends=" + depends.encode() + b"\0")
    assert [path.stem for path in build.load_order(["top"], modules)] == ["low", "mid_a", "mid_b", "top"]


def test_an_archive_has_aligned_members_and_an_end() -> None:
    packed = archive.cpio({"a": archive.Entry(0o100644, b"xyz"), "dev": archive.Entry(0o040755)})
    assert packed.count(b"070701") == 3
    assert len(packed) % 4 == 0
    assert packed.index(b"xyz") % 4 == 0
    assert packed.rstrip(b"\0").endswith(b"TRAILER!!!")
