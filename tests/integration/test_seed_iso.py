"""The seed disk as others read it."""

import hashlib
import io
import os
import subprocess
import time
from pathlib import Path

import pycdlib
import pytest

from vmlib.disk.seed import seed_files, write_seed
from vmlib.spec import NicSpec, SeedSpec

SPEC = SeedSpec(
    instance_id="i-1",
    hostname="web-1",
    ssh_authorized_keys=("ssh-ed25519 AAAA ü@example",),
    user_data=b"#!/bin/sh\n\xff\x00binary" + b"x" * 300_000,
    environment={"NOMAD_PORT_http": "8080"},
)
FILES = seed_files(SPEC, [NicSpec(network="nat", mode="user", mac="52:54:00:12:34:56")])


def write(path: Path) -> bytes:
    disk = write_seed(path, FILES)
    assert (disk.name, disk.format, disk.readonly) == ("seed", "raw", True)
    with open(disk.file.fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_every_file_is_read_back_under_its_name(tmp_path: Path, names: str) -> None:
    write(tmp_path / "seed.iso")
    image = pycdlib.PyCdlib()
    image.open(str(tmp_path / "seed.iso"))
    try:
        assert image.pvd.volume_identifier.rstrip(b" ") == b"cidata"
        found = {}
        for name in FILES:
            out = io.BytesIO()
            image.get_file_from_iso_fp(out, **{names: "/" + name})
            found[name] = out.getvalue()
        assert found == FILES
    finally:
        image.close()


def test_the_kernel_and_blkid_see_the_label(tmp_path: Path) -> None:
    content = write(tmp_path / "seed.iso")
    # Where the primary volume descriptor has its identifier: what blkid reads.
    assert content[16 * 2048 + 1 : 16 * 2048 + 6] == b"CD001"
    assert content[16 * 2048 + 40 : 16 * 2048 + 72] == b"cidata".ljust(32)


def test_the_same_files_give_the_same_bytes_at_another_time_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: set[str] = set()
    real = time.time
    for offset_s, zone in ((0, "UTC"), (12_345_678, "Asia/Kathmandu"), (-98_765, "America/New_York")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        monkeypatch.setattr(time, "time", lambda offset_s=offset_s: real() + offset_s)
        sums.add(hashlib.sha256(write(tmp_path / f"{len(sums)}.iso")).hexdigest())
    monkeypatch.undo()
    time.tzset()
    assert len(sums) == 1


def test_only_its_owner_can_read_the_seed(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        write(tmp_path / "seed.iso")
    finally:
        os.umask(old_mask)
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["seed.iso"]


NASTY = {
    "QUOTES": """it's "so" `id` $HOME $(id) ${X} \\ \\n !x""",
    "LINES": "one\n two\n\nTWO=2\n",
    "TABS": "\t a  b \r ",
    "BYTES": "".join(map(chr, range(1, 256))),
    "WIDE": "ü€😀",
    "EMPTY": "",
    "GLOB": "* ? [a] ~ # ; & | < >",
}


def test_sh_reads_back_every_byte_of_the_environment(tmp_path: Path) -> None:
    environment = {**NASTY, "not-a-name\nLINES=hijacked": "x"}
    (tmp_path / "nomad.env").write_bytes(
        seed_files(SeedSpec(instance_id="i", hostname="h", environment=environment))["nomad.env"]
    )
    for name, value in NASTY.items():
        shown = subprocess.run(
            ["sh", "-eu", "-c", f'. ./nomad.env; printf %s "${name}"'], cwd=tmp_path, capture_output=True, check=True
        )
        assert shown.stdout == value.encode()
        assert shown.stderr == b""
