"""Fixed places on a guest's PCI bus, so that its names for devices (enp0s2) do not change when another one is added."""

SHARES_SLOT = 0x01  # all of them in one slot, by function
_FIRST_NIC_SLOT = 0x02
FIRST_DISK_SLOT = 0x08
OWN_SLOT = 0x1C  # what every machine has, by function
NIC_SLOTS = (*range(_FIRST_NIC_SLOT, FIRST_DISK_SLOT), 0x1D, 0x1E)
MAX_NICS = len(NIC_SLOTS)
MAX_DISKS = OWN_SLOT - FIRST_DISK_SLOT
MAX_SHARES = 8
VFIO_SLOT = OWN_SLOT - 1  # of a machine with such devices the last place of a disk; a port for each, by function
MAX_VFIO = 8


def slot(number: int) -> tuple[str, str]:
    return ("addr", f"{number:#04x}")
