"""Machines whose RAM is of huge pages of the host, taken for the test and given back."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.machines import READY, Host, Running
from tests.integration.test_memory import EATEN, limited
from vmlib import hugepages
from vmlib.errors import NoCapacityError, SpecError

MEMORY_MIB = 192
PAGES = MEMORY_MIB // 2
_SETTING = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def pages() -> Iterator[int]:
    """As many free huge pages as the machine needs, and two more."""
    try:
        before = int(_SETTING.read_text())
        _SETTING.write_text(str(before + PAGES + 2))
    except OSError as exc:
        pytest.skip(f"needs huge pages: {_SETTING} cannot be set ({(exc.strerror or str(exc)).lower()})")
    try:
        free = hugepages.free_pages(None)
        if free < PAGES:
            pytest.skip(f"needs {PAGES} free huge pages of 2 MiB: the kernel found {free}")
        yield free
    finally:
        _SETTING.write_text(str(before))


def in_huge_pages(one: Running) -> int:
    """MiB of the VMM that are."""
    rollup = Path(f"/proc/{one.vmm}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^(?:Private|Shared)_Hugetlb: +([0-9]+) kB", rollup, re.MULTILINE)) >> 10


def test_ram_is_of_huge_pages_and_outside_the_memory_group(qemu: Host, pages: int) -> None:
    one = qemu.start("oom", memory_mib=MEMORY_MIB, hugepages=True)
    group = limited(one)  # the overhead alone
    assert in_huge_pages(one) == MEMORY_MIB
    assert hugepages.free_pages(None) == pages - PAGES
    counted = one.machine.counter().read()
    assert counted is not None
    assert counted.vmm.memory is not None
    assert (counted.vmm.memory.rss_bytes or 0) > MEMORY_MIB << 20
    one.until_line(EATEN, timeout_s=150)
    print(f"beside its huge pages: {group.usage_bytes >> 20} MiB")
    assert one.machine.running()
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.oom_killed) == (0, False)
    assert hugepages.free_pages(None) == pages


def test_a_machine_that_finds_too_few_is_refused_with_both_numbers(qemu: Host, pages: int) -> None:
    wanted_mib = (pages + 1) * 2
    with pytest.raises(NoCapacityError, match=rf"{wanted_mib} MiB need {pages + 1} free huge pages .* found {pages}"):
        qemu.start(memory_mib=wanted_mib, hugepages=True)
    assert hugepages.free_pages(None) == pages


def test_half_a_huge_page_is_refused(qemu: Host, pages: int) -> None:
    with pytest.raises(SpecError, match="memory = 129: expected a multiple of 2 MiB"):
        qemu.start(memory_mib=129, hugepages=True)


def test_a_machine_without_them_takes_none(qemu: Host, pages: int) -> None:
    one = qemu.start()
    one.until_line(READY)
    assert in_huge_pages(one) == 0
    assert hugepages.free_pages(None) == pages
