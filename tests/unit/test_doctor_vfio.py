"""What doctor says of the host's devices that jobs may take."""

from pathlib import Path

from driver.cli.doctor import device_checks
from driver.cli.doctor_check import Check
from tests.fakes.sysfs import write_pci_device
from vmlib.vfio import bind_words

GPU, NIC, GONE = "0000:65:00.0", "0000:66:00.0", "0000:67:00.0"


def test_each_device_has_a_line_and_one_that_is_not_ready_its_cure(tmp_path: Path) -> None:
    write_pci_device(tmp_path, GPU)
    write_pci_device(tmp_path, NIC, driver="ixgbe", group="13")
    assert list(device_checks((GPU, NIC, GONE), tmp_path)) == [
        Check(f"vfio {GPU}", "ok", "bound to vfio-pci, as all of IOMMU group 12"),
        Check(f"vfio {NIC}", "warning", "is bound to the driver ixgbe, expected vfio-pci", bind_words(NIC)),
        Check(f"vfio {GONE}", "warning", "this host has no such PCI device", "lspci -D lists those that it has"),
    ]


def test_a_node_that_gives_no_device_away_has_no_such_line() -> None:
    assert list(device_checks(())) == []
