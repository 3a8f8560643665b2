"""The limit of a machine's memory cgroup, and the overhead in it by backend."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.hypervisor.base import Accel
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.qemu_argv import tcg_buffer_mib
from vmlib.memory import memory_limit_bytes
from vmlib.spec import FileRef, MachineSpec, MountSpec, NicSpec, RootDisk, SeedSpec, UserLink

MIB = 1 << 20
SPEC = MachineSpec(id="a/b/1", name="a/b", owner="run", vcpus=2, memory_mib=512)
IMAGE = FileRef(root=Path("/images"), relative="x.qcow2")
ROOT = RootDisk(image=IMAGE, format="qcow2")
SEED = SeedSpec(instance_id="i", hostname="h")
NIC = NicSpec(network="user", link=UserLink(), mac="52:54:00:12:34:56")

MOUNT = MountSpec(source=Path("/srv"), guest_path="/srv")


@pytest.mark.parametrize(
    ("spec", "overhead_mib", "expected_mib"),
    [
        (SPEC, 200, 712),
        (replace(SPEC, memory_max_mib=512), 200, 712),
        (replace(SPEC, memory_max_mib=712), 200, 712),
        (replace(SPEC, memory_max_mib=1024), 200, 1024),
        (replace(SPEC, hugepages=True), 200, 200),
        (replace(SPEC, hugepages=True, memory_max_mib=1024), 200, 200),
    ],
)
def test_limit(spec: MachineSpec, overhead_mib: int, expected_mib: int) -> None:
    assert memory_limit_bytes(spec, overhead_mib) == expected_mib * MIB


@pytest.mark.parametrize(
    ("spec", "accel", "expected"),
    [
        (SPEC, "kvm", 108),
        (SPEC, "tcg", 300),
        (replace(SPEC, memory_mib=4096, vcpus=1), "kvm", 132),
        (replace(SPEC, memory_mib=4096, vcpus=1), "tcg", 524),
        (replace(SPEC, root=ROOT), "kvm", 196),
        (replace(SPEC, root=replace(ROOT, mode="copy")), "kvm", 156),
        (replace(SPEC, root=replace(ROOT, mode="copy", format="raw")), "kvm", 116),
        (replace(SPEC, root=ROOT, seed=SEED), "kvm", 204),
        (replace(SPEC, nics=(NIC,)), "kvm", 364),
        (replace(SPEC, root=ROOT, firmware="uefi"), "kvm", 204),
        (replace(SPEC, root=ROOT, firmware="bios"), "kvm", 196),
        (replace(SPEC, mounts=(MOUNT, MOUNT)), "kvm", 236),
        (replace(SPEC, tpm=True), "kvm", 132),
    ],
)
def test_overhead_of_qemu(spec: MachineSpec, accel: Accel, expected: int) -> None:
    assert Qemu(accel=accel).overhead_mib(spec) == expected


# What docs/memory.md reports: RAM, vCPUs, and the peak beside the RAM, under TCG without disks and links.
MEASURED = [(128, 1, 103), (256, 1, 106), (512, 1, 107), (512, 4, 115), (512, 8, 119), (1024, 2, 76), (2048, 2, 75)]


@pytest.mark.parametrize(("memory_mib", "vcpus", "peak_mib"), MEASURED)
def test_overhead_is_well_above_what_was_measured(memory_mib: int, vcpus: int, peak_mib: int) -> None:
    assert Qemu(accel="tcg").overhead_mib(replace(SPEC, memory_mib=memory_mib, vcpus=vcpus)) > peak_mib * 3 // 2


@given(memory_mib=st.integers(1, 1 << 20), vcpus=st.integers(1, 255))
def test_overhead_grows_with_the_machine_and_holds_the_translation_buffer(memory_mib: int, vcpus: int) -> None:
    spec = replace(SPEC, memory_mib=memory_mib, vcpus=vcpus)
    tcg, kvm = Qemu(accel="tcg"), Qemu(accel="kvm")
    assert tcg.overhead_mib(spec) >= kvm.overhead_mib(spec) + tcg_buffer_mib(memory_mib)
    for one in (tcg, kvm, Fake()):
        assert one.overhead_mib(replace(spec, memory_mib=memory_mib + 128)) >= one.overhead_mib(spec)
        assert one.overhead_mib(replace(spec, vcpus=vcpus + 4)) > one.overhead_mib(spec)


def test_the_fake_needs_little_whatever_its_ram() -> None:
    assert Fake().overhead_mib(replace(SPEC, memory_mib=1 << 20)) == Fake().overhead_mib(SPEC) == 64
