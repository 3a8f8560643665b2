"""Staged kernels and initrds: ours alone, checked, and copied again only when something changed."""

import os
from pathlib import Path

import pytest

from tests.leftovers import open_files
from vmlib.disk.stage import is_kernel, stage_boot
from vmlib.errors import SpecError
from vmlib.resources import BootFiles
from vmlib.spec import DirectBoot, FileRef

KERNEL = b"\0" * 0x202 + b"HdrS" + b"code" * 100


@pytest.fixture
def boot(tmp_path: Path) -> DirectBoot:
    (tmp_path / "vmlinuz").write_bytes(KERNEL)
    (tmp_path / "initrd.img").write_bytes(b"cpio")
    return DirectBoot(
        kernel=FileRef(root=tmp_path, relative="vmlinuz"),
        initrd=FileRef(root=tmp_path, relative="initrd.img"),
        cmdline="quiet",
    )


def stage(boot: DirectBoot, into: Path) -> BootFiles:
    files = stage_boot(boot, into, os.geteuid(), os.getegid())
    for file in (files.kernel, files.initrd):
        if file is not None:
            os.close(file.fd)
    return files


def test_copies_are_read_only_and_complete(boot: DirectBoot, tmp_path: Path) -> None:
    files = stage_boot(boot, tmp_path / "boot", os.geteuid(), os.getegid())
    assert files.initrd is not None
    with open(files.kernel.fd, "rb") as kernel, open(files.initrd.fd, "rb") as initrd:
        assert kernel.read() == KERNEL
        assert initrd.read() == b"cpio"
    assert files.kernel.path.stat().st_mode & 0o777 == 0o400
    assert files.cmdline == "quiet"


def test_an_unchanged_copy_is_used_again(boot: DirectBoot, tmp_path: Path) -> None:
    first = stage(boot, tmp_path / "boot").kernel.path.stat()
    second = stage(boot, tmp_path / "boot").kernel.path.stat()
    assert (first.st_ino, first.st_ctime_ns) == (second.st_ino, second.st_ctime_ns)


def test_a_changed_source_is_copied_again(boot: DirectBoot, tmp_path: Path) -> None:
    stage(boot, tmp_path / "boot")
    (tmp_path / "vmlinuz").write_bytes(KERNEL + b"more")
    assert stage(boot, tmp_path / "boot").kernel.path.read_bytes() == KERNEL + b"more"


def test_a_copy_that_the_vmm_has_tampered_with_is_not_used_again(boot: DirectBoot, tmp_path: Path) -> None:
    path = stage(boot, tmp_path / "boot").kernel.path
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(KERNEL.replace(b"code", b"evil"))
    path.chmod(0o400)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stage(boot, tmp_path / "boot").kernel.path.read_bytes() == KERNEL


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("vmlinuz", b"#!/bin/sh\n", r"kernel = '.*/vmlinuz': not a kernel, expected a bzImage or an ELF file"),
        ("vmlinuz", b"", r"kernel = '.*/vmlinuz': 0 bytes, expected 1 byte to 256 MiB"),
        ("initrd.img", b"", r"initrd = '.*/initrd.img': 0 bytes, expected 1 byte to 4096 MiB|4 GiB"),
    ],
)
def test_what_cannot_be_booted_is_refused(
    boot: DirectBoot, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    fds_before = open_files()
    with pytest.raises(SpecError, match=complaint):
        stage(boot, tmp_path / "boot")
    assert open_files() == fds_before


@pytest.mark.parametrize(("name", "key", "size"), [("vmlinuz", "kernel", 256 << 20), ("initrd.img", "initrd", 4 << 30)])
def test_a_file_above_the_cap_is_refused(boot: DirectBoot, tmp_path: Path, name: str, key: str, size: int) -> None:
    os.truncate(tmp_path / name, size + 1)  # sparse
    with pytest.raises(SpecError, match=rf"{key} = '.*/{name}': {size + 1} bytes"):
        stage(boot, tmp_path / "boot")


def test_a_kernel_outside_its_root_is_refused(boot: DirectBoot, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to("../vmlinuz")
    escaping = DirectBoot(kernel=FileRef(root=tmp_path / "inner", relative="link"))
    with pytest.raises(SpecError, match=r"kernel = '.*/inner/link': leads out of"):
        stage(escaping, tmp_path / "boot")


@pytest.mark.parametrize(
    ("head", "expected"), [(KERNEL, True), (b"\x7fELF", True), (b"", False), (b"HdrS", False), (KERNEL[:0x205], False)]
)
def test_a_kernel_is_known_by_its_header(head: bytes, expected: bool) -> None:
    assert is_kernel(head) is expected
