"""How much memory a VMM may need beside its guest's RAM: what docs/memory.md measured, with room to spare. Pure.

These numbers go into the limit of a cgroup: too large a one costs nothing, too small a one costs a healthy machine.
"""

from vmlib.hypervisor.base import Accel
from vmlib.hypervisor.qemu_argv import tcg_buffer_mib
from vmlib.spec import MachineSpec, UserLink

# The program, its libraries and its heap, the devices that every machine has; and page cache, so that reading a disk
# does not have to win each page back at once.
_QEMU_BASE_MIB = 96
_QEMU_VCPU_MIB = 4  # thread, its stack, the kernel's state of it
_TCG_VCPU_MIB = 8  # and its cache of translated addresses, which grows with the memory that the guest works on
_TCG_TLB_SHARE = 64
_TCG_TLB_MAX_MIB = 64
_RAM_SHARE = 128  # page tables of ours and KVM's, dirty bitmaps, KVM's reverse maps: 8 bytes for each 4 KiB, each
_DISK_MIB = 8  # requests in flight and the threads that carry them out
_QCOW2_MIB = 40  # of each qcow2 layer: QEMU caches up to 32 MiB of its tables, and some refcounts
_FLASH_MIB = 8  # what firmware's flash may have at most, which is copied into the VMM's memory
# Of each virtiofsd, which is in the VMM's cgroup: the program, and a descriptor and an entry for each file that the
# guest knows.
_SHARE_MIB = 64
_TPM_MIB = 24  # of swtpm
_TAP_NIC_MIB = 4  # rings and frames on their way
_VFIO_MIB = 16  # of each device: its configuration, interrupts, tables
_IOMMU_SHARE = 256  # tables of the IOMMU for all RAM, 8 bytes for each 4 KiB, and such of the kernel's own beside them
_USER_NIC_MIB = 256  # two buffers of 128 KiB for each of about a thousand TCP connections

# Measured: 12 MiB with two of everything. The rest is page cache for the files that it reads.
_CH_BASE_MIB = 64
_CH_VCPU_MIB = 4
_CH_QCOW2_MIB = 8  # of each layer: a hundred clusters of its tables at most

_FAKE_BASE_MIB = 64
_FAKE_VCPUS_PER_MIB = 4  # a thread that sleeps


def qemu_overhead_mib(spec: MachineSpec, accel: Accel) -> int:
    """Of QEMU, for a machine with the disks and links that `spec` names."""
    needed = _QEMU_BASE_MIB + spec.vcpus * _QEMU_VCPU_MIB + spec.memory_mib // _RAM_SHARE
    if accel != "kvm":
        # The buffer itself, and what QEMU notes about each block in it.
        needed += tcg_buffer_mib(spec.memory_mib) * 5 // 4
        needed += spec.vcpus * (_TCG_VCPU_MIB + min(_TCG_TLB_MAX_MIB, spec.memory_mib // _TCG_TLB_SHARE))
    if spec.boot_firmware:
        needed += _FLASH_MIB
    needed += _SHARE_MIB * len(spec.mounts) + _TPM_MIB * spec.tpm
    return needed + _disks_mib(spec) + _nics_mib(spec) + _vfio_mib(spec)


def ch_overhead_mib(spec: MachineSpec) -> int:
    """Of Cloud Hypervisor, and the helpers in its group."""
    needed = _CH_BASE_MIB + spec.vcpus * _CH_VCPU_MIB + spec.memory_mib // _RAM_SHARE
    needed += _SHARE_MIB * len(spec.mounts) + _TPM_MIB * spec.tpm + _TAP_NIC_MIB * len(spec.nics)
    disks = (spec.root is not None) + (spec.seed is not None) + len(spec.disks)
    layers = sum(disk.format == "qcow2" for disk in spec.disks)
    if spec.root is not None:
        layers += (spec.root.mode == "overlay") + (spec.root.format == "qcow2")
    return needed + disks * _DISK_MIB + layers * _CH_QCOW2_MIB + _vfio_mib(spec)


def _vfio_mib(spec: MachineSpec) -> int:
    return len(spec.vfio) * _VFIO_MIB + spec.memory_mib // _IOMMU_SHARE if spec.vfio else 0


def _nics_mib(spec: MachineSpec) -> int:
    user = sum(isinstance(nic.link, UserLink) for nic in spec.nics)
    return user * _USER_NIC_MIB + (len(spec.nics) - user) * _TAP_NIC_MIB


def _disks_mib(spec: MachineSpec) -> int:
    disks = (spec.root is not None) + (spec.seed is not None)
    layers = 0
    if spec.root is not None:
        layers = (spec.root.mode == "overlay") + (spec.root.format == "qcow2")
    return disks * _DISK_MIB + layers * _QCOW2_MIB


def fake_overhead_mib(spec: MachineSpec) -> int:
    """Of the fake VMM: an interpreter and sleeping threads. It touches none of the RAM."""
    return _FAKE_BASE_MIB + spec.vcpus // _FAKE_VCPUS_PER_MIB
