"""Directories of the host's in real guests, by virtiofsd under the keeper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host, host_for
from vmlib.spec import MountSpec


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as host:
        yield host


@pytest.fixture
def directory(short_dir: Path) -> Path:
    """What is shared, with one file in it."""
    made = short_dir / "shared"
    made.mkdir()
    (made / "of-host").write_text("hello\n")
    return made


def test_what_guest_and_host_write_into_a_share_the_other_one_reads(host: Host, directory: Path) -> None:
    one = host.start(
        "mount=srv-data:/m get=/m/of-host put=/m/of-guest:hi get=/m/later poweroff",
        mounts=(MountSpec(source=directory, guest_path="/srv/data"),),
    )
    one.until_line("mounted srv-data")
    one.until_line("got /m/of-host hello")
    one.until_line("put /m/of-guest")
    assert (directory / "of-guest").read_text() == "hi\n"
    (directory / "later").write_text("now\n")
    one.until_line("got /m/later now")
    assert one.end().exit_code == 0
    one.machine.destroy()
