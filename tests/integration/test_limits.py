"""What a machine may use, and what it has used, on a real guest under QEMU."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import DATA, READY, Host, host_for

RATE = 256 << 10


@pytest.fixture
def host(short_dir: Path, guest: Guest) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as one:
        yield one


def test_a_guest_with_a_balloon_has_all_its_memory(host: Host) -> None:
    one = host.start(balloon=True)
    one.until_line(READY)
    assert one.machine.usage().memory_bytes == 128 << 20


def test_a_disk_keeps_to_its_rate(host: Host) -> None:
    disk = replace(DATA, size_bytes=64 << 20, rate_bytes=RATE)
    one = host.start("keep-writing=data", disks=(disk,))
    one.until_line(READY)

    def written() -> int:
        (data,) = one.machine.usage().disks
        return data.write_bytes

    one.until(lambda: written() > RATE, "a burst that has passed")
    before, begin = written(), time.monotonic()
    time.sleep(4.0)
    passed_s = time.monotonic() - begin
    assert 0 < written() - before <= RATE * (passed_s + 1.0)
