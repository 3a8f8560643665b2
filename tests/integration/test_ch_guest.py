"""Guests of machines that are planned for Cloud Hypervisor. The VMM is the fake one, which boots them through QEMU."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ch.install import install
from tests.guest.build import Guest
from tests.integration.machines import READY, Host, Running, host_for
from tests.integration.networks import network
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.settings import HostSettings
from vmlib.spec import CoresSpec, FileRef, MacvtapLink, NicSpec, RootDisk, SeedSpec

ROOM_MIB = 1024  # for the QEMU inside, of which the limit of a Cloud Hypervisor knows nothing


def fake_in(place: Path) -> Path:
    """The fake as a program of an operator's: its VMMs see nothing but the directory in which it lies."""
    if not place.exists():
        place.mkdir()
        install(place)
    return place / "cloud-hypervisor"


class FakeHost(Host):
    """Its VMM runs as we do: the fake's Python may lie where no other user can walk to."""

    @property
    def machines(self) -> Machines:
        hypervisor = CloudHypervisor(binary=str(fake_in(self.directory / "fake")), version="53.0")
        return Machines(HostSettings(layout=self.layout), lambda _: (hypervisor, "by the test"), attach)


@pytest.fixture
def host(short_dir: Path, guest: Guest) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "cloud-hypervisor", kind=FakeHost) as one:
        yield one


def start(host: Host, words: str = "", **changes: Any) -> Running:
    return host.start(words, memory_max_mib=ROOM_MIB, **changes)


def test_a_guest_has_its_overlay_and_its_seed_and_powers_itself_off(host: Host) -> None:
    root = RootDisk(image=FileRef(root=host.guest, relative="disk.qcow2"), format="qcow2")
    one = start(host, "poweroff", root=root, seed=SeedSpec(instance_id="i-7", hostname="web"))
    one.until_line("seed instance-id i-7")
    one.until_line("disk vdb")
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (0, 0, "")


def test_a_guest_hears_its_power_button(host: Host) -> None:
    one = start(host)
    one.until_line(READY)
    one.machine.press_power_button()
    one.until_line("power button")
    assert one.end().exit_code == 0


def test_a_line_on_the_channel_is_the_exit_code(host: Host) -> None:
    assert start(host, "exit=7").end().exit_code == 7


def test_a_guest_that_reboots_goes_on_with_other_threads_in_the_same_places(host: Host) -> None:
    one = start(host, "reboot-once", cores=CoresSpec(exclusive=True))
    placement = one.machine.record.placement
    assert placement is not None
    (before,) = one.machine.vcpus()
    one.until_line("rebooted")
    assert one.kinds().count("rebooted") == 1
    host.machines.cores.reconcile()
    (after,) = one.machine.vcpus()
    assert after.thread_id != before.thread_id
    assert os.sched_getaffinity(after.thread_id) == set(placement.vcpus)


def test_a_panic_ends_the_machine_with_the_kernels_words(host: Host) -> None:
    record = start(host, "panic").end()
    assert record.exit_code == 1
    assert "Kernel panic" in record.message


def test_what_it_read_and_has_is_counted(host: Host) -> None:
    root = RootDisk(image=FileRef(root=host.guest, relative="disk.qcow2"), format="qcow2")
    one = start(host, root=root, seed=SeedSpec(instance_id="i-7", hostname="web"), balloon=True)
    one.until_line(READY)
    usage = one.machine.usage()
    assert len(usage.disks) == 2
    assert usage.disks[1].read_bytes >= 2048  # of its seed, it has read the whole label
    assert usage.disks[1].read_ops > 0
    assert 0 < usage.memory_bytes <= 128 << 20


def test_a_guest_reaches_others_by_its_macvtap(short_dir: Path, guest: Guest) -> None:
    lan = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac="52:54:00:00:00:0a")
    with network() as net, host_for(short_dir, guest.directory, "cloud-hypervisor", kind=FakeHost) as host:
        spec = host.spec("ip=eth0:192.0.2.10/24 ping=192.0.2.1", memory_max_mib=ROOM_MIB, nics=(lan,))
        one = net.host.do(lambda: host.run(spec))
        one.until_line("ping 192.0.2.1 ok")
        net.host.do(one.machine.destroy)
        assert net.host.ours() == []
