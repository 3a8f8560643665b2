"""Devices of the host's for guests: what makes one ready, who holds a group, and the limits that follow."""

import os
from pathlib import Path

import pytest

from tests.fakes.sysfs import write_pci_device
from vmlib import vfio
from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.hypervisor.overhead import ch_overhead_mib, qemu_overhead_mib
from vmlib.memory import memory_lock_bytes
from vmlib.resources import PciDevice
from vmlib.spec import MachineSpec
from vmlib.vfio import Lack

GPU, SOUND, BRIDGE = "0000:65:00.0", "0000:65:00.1", "0000:64:00.0"


def lack(root: Path) -> Lack:
    found = vfio.look(GPU, root)
    assert isinstance(found, Lack)
    return found


def test_a_device_whose_whole_group_is_bound_is_ready(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    write_pci_device(tmp_path, SOUND, driver="pci-stub")
    write_pci_device(tmp_path, BRIDGE, driver="pcieport", class_="0x060400")
    write_pci_device(tmp_path, "0000:64:01.0", driver="", class_="0x060000")
    assert vfio.look(GPU, tmp_path) == PciDevice(address=GPU, group="12")


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert lack(tmp_path).found == "this host has no such PCI device"


@pytest.mark.parametrize(
    ("driver", "words"),
    [("nvidia", "is bound to the driver nvidia, expected vfio-pci"), ("", "is bound to no driver, expected vfio-pci")],
)
def test_a_device_of_another_driver_is_told_with_the_cure(tmp_path: Path, driver: str, words: str) -> None:
    write_pci_device(tmp_path, GPU, driver=driver)
    found = lack(tmp_path)
    assert found.found == words
    assert f"driverctl set-override {GPU} vfio-pci" in found.cure
    assert f"echo vfio-pci > /sys/bus/pci/devices/{GPU}/driver_override" in found.cure


def test_a_device_without_a_group_needs_an_iommu(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU, group="")
    assert lack(tmp_path).found == "is in no IOMMU group"
    assert "intel_iommu=on" in lack(tmp_path).cure


def test_the_other_devices_of_its_group_must_be_free_as_well(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    write_pci_device(tmp_path, SOUND, driver="snd_hda_intel", class_="0x040300")
    assert lack(tmp_path).found == (
        f"its IOMMU group 12 has {SOUND} as well, which is bound to the driver snd_hda_intel, expected vfio-pci"
    )
    assert SOUND in lack(tmp_path).cure


def test_what_is_called_a_bridge_and_has_a_driver_is_no_harmless_one(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    write_pci_device(tmp_path, "0000:00:1f.0", driver="lpc_ich", class_="0x060100")
    assert "lpc_ich" in lack(tmp_path).found


def test_a_group_without_a_node_is_told(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    (tmp_path / "dev/vfio/12").unlink()
    assert lack(tmp_path).found == "/dev/vfio/12: no such device node"


def test_a_start_is_refused_with_key_value_and_cure(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=rf"^vfio = '{GPU}': this host has no such PCI device$"):
        vfio.devices([GPU], tmp_path)
    with pytest.raises(SpecError, match=r"expected a PCI address, as 0000:65:00.0"):
        vfio.devices(["../.."], tmp_path)


def test_a_group_that_another_machine_holds_is_named_with_it(tmp_path: Path) -> None:
    device = PciDevice(address=GPU, group="12")
    claim = tmp_path / "alloc/web/vfio"
    claim.parent.mkdir(parents=True)
    claim.write_bytes(vfio.dump_claim([device, device]))
    torn = tmp_path / "alloc/db/vfio"
    torn.parent.mkdir(parents=True)
    torn.write_text("[")
    held = vfio.load_claims([claim, torn, tmp_path / "none/none/vfio"])
    assert held == {"12": "alloc/web"}
    vfio.expect_free([PciDevice(address=GPU, group="13")], held)
    with pytest.raises(NoCapacityError, match=rf"vfio = '{GPU}': its IOMMU group 12 is held by machine alloc/web"):
        vfio.expect_free([device], held)


def test_each_node_is_handed_over_once_and_only_where_it_is_needed(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    write_pci_device(tmp_path, SOUND)
    wanted = vfio.devices([GPU, SOUND], tmp_path)
    found = list(vfio.handovers(wanted, 210_000, tmp_path))
    assert [(one.path, one.uid, one.was) for one in found] == [(tmp_path / "dev/vfio/12", 210_000, os.getuid())]
    assert list(vfio.handovers(wanted, 0, tmp_path)) == []


def test_a_container_that_is_not_open_to_all_is_told(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    (tmp_path / "dev/vfio/vfio").chmod(0o600)
    with pytest.raises(HostError, match="expected mode 0666"):
        list(vfio.handovers(vfio.devices([GPU], tmp_path), 210_000, tmp_path))


def test_giving_back_touches_no_other_file_and_nothing_of_somebody_else(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    node = tmp_path / "dev/vfio/12"
    vfio.give_back(node, uid=os.getuid() + 1, was=os.getuid() + 2)
    assert node.stat().st_uid == os.getuid()
    vfio.give_back(tmp_path / "dev/vfio/99", uid=1, was=2)
    for path in (tmp_path / "dev/vfio/vfio", tmp_path / "12"):
        with pytest.raises(HostError, match="is no node of an IOMMU group"):
            vfio.give_back(path, uid=os.getuid(), was=os.getuid())


def test_a_vmm_with_devices_may_lock_all_ram_and_its_own() -> None:
    bare = MachineSpec(id="a", name="a/b", owner="nomad", vcpus=1, memory_mib=1024)
    spec = MachineSpec(id="a", name="a/b", owner="nomad", vcpus=1, memory_mib=1024, vfio=(GPU,))
    assert memory_lock_bytes(bare, 100) == 0
    assert memory_lock_bytes(spec, 100) == 1124 << 20
    assert qemu_overhead_mib(spec, "kvm") - qemu_overhead_mib(bare, "kvm") == 20
    assert ch_overhead_mib(spec) - ch_overhead_mib(bare) == 20
