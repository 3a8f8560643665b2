"""The seed disk as others read it."""

import hashlib
import io
import os
import subprocess
import time
from pathlib import Path

import pycdlib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlib.disk.seed import MAX_FILE_BYTES, seed_files, write_seed
from vmlib.errors import NoCapacityError
from vmlib.spec import NicSpec, SeedSpec, UserLink

SPEC = SeedSpec(
    instance_id="i-1",
    hostname="web-1",
    ssh_authorized_keys=("ssh-ed25519 AAAA ü@example",),
    user_data=b"#!/bin/sh\n\xff\x00binary" + b"x" * 300_000,
    environment={"NOMAD_PORT_http": "8080"},
    agent=True,
)
FILES = seed_files(
    SPEC, [NicSpec(network="nat", link=UserLink(), mac="52:54:00:12:34:56")], vendor_config={"bootcmd": [["true"]]}
)


def write(path: Path) -> bytes:
    disk = write_seed(path, FILES)
    assert (disk.name, disk.format, disk.readonly) == ("seed", "raw", True)
    with open(disk.file.fd, "rb") as file:
        return file.read()


def read_back(path: Path, names: str) -> dict[str, bytes]:
    """All files of the image, by the names of Rock Ridge or of Joliet."""
    image = pycdlib.PyCdlib()
    image.open(str(path))
    try:
        assert image.pvd.volume_identifier.rstrip(b" ") == b"cidata"
        found = {}
        for _, _, members in image.walk(**{names: "/"}):
            for name in members:
                out = io.BytesIO()
                image.get_file_from_iso_fp(out, **{names: "/" + name})
                found[name] = out.getvalue()
        return found
    finally:
        image.close()


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_every_file_is_read_back_under_its_name(tmp_path: Path, names: str) -> None:
    write(tmp_path / "seed.iso")
    assert sorted(FILES) == ["meta-data", "network-config", "nomad.env", "user-data", "vendor-data"]
    assert read_back(tmp_path / "seed.iso", names) == FILES


# Around one sector and around a full directory entry; the content is anything.
CONTENT = st.one_of(
    st.binary(max_size=5000),
    st.integers(0, 70_000).map(lambda size: bytes(index * 31 & 0xFF for index in range(size))),
    st.sampled_from([0, 1, 2047, 2048, 2049, MAX_FILE_BYTES]).map(lambda size: b"\xff" * size),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user_data=CONTENT, network_config=st.none() | CONTENT)
def test_any_user_data_comes_back_byte_for_byte_and_the_same_input_gives_the_same_image(
    tmp_path: Path, user_data: bytes, network_config: bytes | None
) -> None:
    spec = SeedSpec(instance_id="i", hostname="h", user_data=user_data, network_config=network_config)
    first, again = tmp_path / "first.iso", tmp_path / "again.iso"
    for path in (first, again):
        os.close(write_seed(path, seed_files(spec)).file.fd)
    found = read_back(first, "rr_path")
    assert found["user-data"] == user_data
    assert found.get("network-config") == network_config
    assert first.read_bytes() == again.read_bytes()


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


def test_a_seed_that_brings_the_agent_stays_small(tmp_path: Path) -> None:
    seed = write_seed(tmp_path / "seed.iso", seed_files(SeedSpec(instance_id="i", hostname="h", agent=True)))
    os.close(seed.file.fd)
    assert (tmp_path / "seed.iso").stat().st_size < 192 << 10


def test_only_its_owner_can_read_the_seed(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        write(tmp_path / "seed.iso")
    finally:
        os.umask(old_mask)
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["seed.iso"]


def test_a_full_disk_is_told_in_words_and_nothing_of_the_seed_is_left(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", small], check=True)
    try:
        with pytest.raises(NoCapacityError, match=r"seed disk .*/seed\.iso: no space left on the host"):
            write_seed(small / "seed.iso", FILES)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


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
