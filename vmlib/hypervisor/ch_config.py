"""Cloud Hypervisor's machine config as a function of what was asked for and what exists. Nothing here touches the host.

Cloud Hypervisor opens files by name, and again at each reboot of the guest. What it is given as a descriptor has the
name `/proc/self/fd/N`, which leads to that very file, whatever lies at its path by then. It passes over keys that it
does not know without a word; tests hold every body against its API's description.
"""

import re
from collections.abc import Iterator, Mapping

from vmlib.errors import SpecError
from vmlib.hypervisor.base import Request
from vmlib.hypervisor.options import BALLOON_AND_DEVICE, pci_address, plain
from vmlib.resources import DiskAttachment, Nic, NumaCell, OpenFile, PciDevice, Resources, ShareAttachment, TapNic
from vmlib.spec import MachineSpec
from vmlib.vfio import node

VSOCK = "vsock"  # the socket in the VMM's directory that leads into the guest
VSOCK_CID = 3
VMM_DIR = "vmm-dir"  # its name among the files that the VMM inherits
HUGE_PAGE_BYTES = 2 << 20

_MIB = 1 << 20
MAX_VCPUS = 254  # above it a guest needs an IOMMU that remaps interrupts
_CPUS_WITH_A_NAME = 1024  # it pins its threads to these only; to others they are pinned from outside
_MAX_CMDLINE_BYTES = 2047  # Linux on x86 reads 2048 with the final NUL
_MAX_STRING_BYTES = _MAX_CMDLINE_BYTES  # an answer that holds a far longer one has killed the VMM
_MAX_SERIAL_BYTES = 20
_MAX_TAG_BYTES = 36
MAX_DEVICES = 28  # on the one PCI bus, beside those that every machine has; a balloon is one
_REFILL_MS = 1000  # a rate is bytes a second

_DISK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

Body = dict[str, object]


def requests(spec: MachineSpec, res: Resources) -> tuple[Request, ...]:
    """All that makes the machine, in order: `vm.create`, which takes no descriptors, then each interface.

    Raises SpecError for values that Cloud Hypervisor would not take as they are meant.
    """
    _check(spec, res)
    interfaces = (_interface(nic, asked.rate_bytes) for nic, asked in zip(res.nics, spec.nics, strict=True))
    made = (Request(call="vm.create", body=vm_config(spec, res)), *interfaces)
    if (size := max(longest_string(one.body) for one in made)) > _MAX_STRING_BYTES:
        raise SpecError(f"a value of {size} bytes, expected at most {_MAX_STRING_BYTES}")
    return made


def inherited_files(res: Resources) -> dict[str, int]:
    """What the VMM needs to inherit, by name; the descriptors of interfaces are sent to it later."""
    return {name: file.fd for name, file in _files(res)}


def vm_config(spec: MachineSpec, res: Resources) -> Body:
    """The body of `vm.create`."""
    config: Body = {
        "payload": _payload(res),
        "cpus": _cpus(spec, res),
        "memory": _memory(spec, res),
        "disks": [_disk(index, disk) for index, disk in enumerate(res.disks)],
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Pty"},  # the one that keeps every byte over a change of readers
        "console": {"mode": "Off"},  # its default is our standard output
        "pvpanic": True,
    }
    if (numa := _numa(res.cells)) is not None:
        config["numa"] = numa
    if res.vmm_dir is not None:
        config["vsock"] = {"id": "vsock0", "cid": VSOCK_CID, "socket": f"{res.vmm_dir.inherited_path}/{VSOCK}"}
    if res.shares:
        config["fs"] = [_share(share, res) for share in res.shares]
    if res.tpm is not None:
        config["tpm"] = {"socket": helper_socket(res.tpm.name, res)}
    if spec.balloon:
        # Nothing is taken from the guest; it gives back what it does not use, and has it again when it needs it.
        config["balloon"] = {"id": "balloon0", "size": 0, "deflate_on_oom": True, "free_page_reporting": True}
    if res.vfio:
        config["devices"] = [_device(index, device) for index, device in enumerate(res.vfio)]
    if res.landlock:
        config["landlock_enable"] = True
        # It makes the rules for all that the config names by itself.
        rules = [_rule(disk.backing.inherited_path, "r") for disk in res.disks if disk.backing is not None]
        # For a device it makes one that leads nowhere: it takes the device's address for the group's number.
        if rules := rules + [_rule(path, "rw") for path in _vfio_nodes(res.vfio)]:
            config["landlock_rules"] = rules
    return config


def helper_socket(name: str, res: Resources) -> str:
    """Where a helper of the VMM's listens: the VMM connects itself, at each boot of its guest."""
    if res.vmm_dir is None:
        raise ValueError("a helper needs a directory in which the VMM finds its socket")
    return f"{res.vmm_dir.inherited_path}/{name}.sock"


def _check(spec: MachineSpec, res: Resources) -> None:
    if not 1 <= spec.vcpus <= MAX_VCPUS:
        raise SpecError(f"vcpus = {spec.vcpus}: expected 1 to {MAX_VCPUS}")
    if spec.memory_mib < 1:
        raise SpecError(f"memory = {spec.memory_mib}: expected at least 1 MiB")
    if spec.cores.expose and spec.vcpus % 2:
        raise SpecError(f"vcpus = {spec.vcpus}: expected an even number with threads = 'expose', two for each core")
    if spec.hugepages and spec.memory_mib * _MIB % HUGE_PAGE_BYTES:
        raise SpecError(f"memory = {spec.memory_mib}: expected a multiple of 2 MiB with hugepages = true")
    if spec.guest_os == "windows" and spec.boot is not None:
        raise SpecError("guest_os = 'windows': boots by UEFI from a disk, expected no kernel")
    if spec.balloon and res.vfio:
        raise SpecError(BALLOON_AND_DEVICE)
    if res.boot is None and res.firmware is None:
        raise SpecError("nothing to boot with: expected a kernel or a firmware file")
    if res.boot is None and not res.disks:
        raise SpecError("nothing to boot from: expected image or kernel")
    if len({disk.name for disk in res.disks}) != len(res.disks):
        raise SpecError(f"disk names {', '.join(disk.name for disk in res.disks)}: expected each once")
    devices = len(res.disks) + len(res.nics) + len(res.shares) + len(res.vfio) + spec.balloon
    if devices > MAX_DEVICES:
        raise SpecError(f"{devices} disks, interfaces, shares and devices: expected at most {MAX_DEVICES}")


def _payload(res: Resources) -> Body:
    if res.boot is None:
        assert res.firmware is not None
        return {"firmware": res.firmware.code.inherited_path}
    payload: Body = {
        "kernel": res.boot.kernel.inherited_path,
        "cmdline": plain(res.boot.cmdline, key="cmdline", max_bytes=_MAX_CMDLINE_BYTES),
    }
    if res.boot.initrd is not None:
        payload["initramfs"] = res.boot.initrd.inherited_path
    return payload


def _cpus(spec: MachineSpec, res: Resources) -> Body:
    threads = 2 if spec.cores.expose else 1
    cpus: Body = {
        "boot_vcpus": spec.vcpus,
        "max_vcpus": spec.vcpus,
        # vCPU 2i and 2i+1 are the two threads of core i, as they are on the host.
        "topology": {
            "threads_per_core": threads,
            "cores_per_die": spec.vcpus // threads,
            "dies_per_package": 1,
            "packages": 1,
        },
        "nested": False,
    }
    if spec.guest_os == "windows":
        cpus["kvm_hyperv"] = True
    if spec.cores.exclusive:
        cpus["core_scheduling"] = "Off"  # nobody else is on its cores
    if res.affinity and all(cpu < _CPUS_WITH_A_NAME for host_cpus in res.affinity for cpu in host_cpus):
        cpus["affinity"] = [
            {"vcpu": vcpu, "host_cpus": sorted(host_cpus)} for vcpu, host_cpus in enumerate(res.affinity)
        ]
    return cpus


def _memory(spec: MachineSpec, res: Resources) -> Body:
    # A virtiofsd reads and writes the guest's RAM as well.
    pages: Body = {"shared": bool(res.shares)}
    if spec.hugepages:
        # All are taken now: one that lacks later would kill the VMM in the middle of its work.
        pages |= {"hugepages": True, "hugepage_size": HUGE_PAGE_BYTES, "prefault": True}
    if len(res.cells) < 2:
        return {"size": spec.memory_mib * _MIB, **pages}
    return {"size": 0, "zones": [{**zone, **pages} for zone in _zones(spec, res.cells)]}


def _zones(spec: MachineSpec, cells: tuple[NumaCell, ...]) -> Iterator[Body]:
    """RAM on each node in proportion to the vCPUs there, in whole huge pages; the last one has the rest."""
    left = spec.memory_mib * _MIB
    for index, cell in enumerate(cells):
        size = spec.memory_mib * _MIB * len(cell.vcpus) // spec.vcpus // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if index == len(cells) - 1:
            size = left
        left -= size
        yield {"id": f"mem{index}", "size": size, "host_numa_node": cell.node}


def _numa(cells: tuple[NumaCell, ...]) -> list[Body] | None:
    if len(cells) < 2:
        return None
    return [
        {"guest_numa_id": index, "cpus": list(cell.vcpus), "memory_zones": [f"mem{index}"]}
        for index, cell in enumerate(cells)
    ]


def _disk(index: int, disk: DiskAttachment) -> Body:
    _expect_name(disk)
    if disk.backing is not None and (disk.format != "qcow2" or disk.backing_format is None):
        raise SpecError(f"disk {disk.name!r}: only qcow2 has a backing image, and the format of that must be known")
    body: Body = {
        "id": f"disk{index}",
        "path": disk.file.inherited_path,
        "readonly": disk.readonly,
        # Never guessed: a guest writes what it likes into the first sector of a raw disk.
        "image_type": "Qcow2" if disk.format == "qcow2" else "Raw",
        "backing_files": disk.backing is not None,
        # One of its own making would tell the guest the host's device and inode.
        "serial": plain(disk.serial, key=f"serial of disk {disk.name}", max_bytes=_MAX_SERIAL_BYTES),
    }
    if disk.rate_bytes:
        body["rate_limiter_config"] = _rate(disk.rate_bytes)
    return body


def _interface(nic: Nic, rate_bytes: int) -> Request:
    if not isinstance(nic, TapNic):
        raise SpecError("network_interface: cloud-hypervisor has no user-mode network")
    if _MAC.fullmatch(nic.mac) is None:
        raise SpecError(f"mac = {nic.mac!r}: expected six pairs of lower case hex digits, as 52:54:00:12:34:56")
    body: Body = {"id": nic.name, "mac": nic.mac, "num_queues": 2 * len(nic.queues)}
    if rate_bytes:
        body["rate_limiter_config"] = _rate(rate_bytes)
    return Request(call="vm.add-net", body=body, fds=tuple(file.fd for file in nic.queues))


def _rate(bytes_a_second: int) -> Body:
    return {"bandwidth": {"size": bytes_a_second, "refill_time": _REFILL_MS}}


def _share(share: ShareAttachment, res: Resources) -> Body:
    return {
        "id": share.name,
        "tag": plain(share.tag, key=f"tag of the share at {share.guest_path}", max_bytes=_MAX_TAG_BYTES),
        "socket": helper_socket(share.name, res),
        "num_queues": 1,
        "queue_size": 1024,
    }


def _device(index: int, device: PciDevice) -> Body:
    return {"id": f"vfio{index}", "path": f"/sys/bus/pci/devices/{pci_address(device)}"}


def _vfio_nodes(devices: tuple[PciDevice, ...]) -> list[str]:
    if not devices:
        return []
    return [str(node(name)) for name in ("vfio", *sorted({device.group for device in devices}))]


def _rule(path: str, access: str) -> Body:
    return {"path": path, "access": access}


def _expect_name(disk: DiskAttachment) -> None:
    if _DISK_NAME.fullmatch(disk.name) is None:
        raise SpecError(f"disk name = {disk.name!r}: expected a lower case letter, then at most 15 of a-z 0-9 _ -")


def _files(res: Resources) -> Iterator[tuple[str, OpenFile]]:
    if res.boot is not None:
        yield "kernel", res.boot.kernel
        if res.boot.initrd is not None:
            yield "initrd", res.boot.initrd
    elif res.firmware is not None:
        yield "firmware", res.firmware.code
    for disk in res.disks:
        yield f"disk.{disk.name}", disk.file
        if disk.backing is not None:
            yield f"disk.{disk.name}.backing", disk.backing
    if res.vmm_dir is not None:
        yield VMM_DIR, res.vmm_dir


def longest_string(value: object) -> int:
    """Bytes of the longest string in a body."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogateescape"))
    if isinstance(value, Mapping):
        return max((longest_string(one) for one in value.values()), default=0)
    if isinstance(value, list | tuple):
        return max((longest_string(one) for one in value), default=0)
    return 0
