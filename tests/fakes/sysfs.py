"""What /sys says of the CPUs of hosts that we do not have: a regular machine, to be bent by its caller."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from vmlib.cores.cpulist import format_cpus

CPU = "devices/system/cpu"
NODE = "devices/system/node"


def sysfs_files(
    *,
    packages: int = 1,
    nodes_per_package: int = 1,
    l3_per_node: int = 1,
    cores_per_l3: int = 4,
    threads: int = 1,
    numbering: Literal["adjacent", "split"] = "split",
    offline: Iterable[int] = (),
    isolated: Iterable[int] = (),
    numa: bool = True,
    l3: bool = True,
    base_mhz: int = 0,
    memory_mib_per_node: int = 1024,
) -> dict[str, str]:
    """Text by path below /sys, as the kernel writes it.

    `numbering`: siblings are 2i, 2i+1 (adjacent) or i, i+N (split). CPUs that are offline have no topology and are in
    no list but `present`.
    """
    nodes, l3s = packages * nodes_per_package, packages * nodes_per_package * l3_per_node
    cores = l3s * cores_per_l3
    off = frozenset(offline)
    cpus_of = [
        [core * threads + one if numbering == "adjacent" else core + one * cores for one in range(threads)]
        for core in range(cores)
    ]
    all_cpus = sorted(cpu for cpus in cpus_of for cpu in cpus)

    def listed(first: int, count: int) -> str:
        """All that is online of `count` cores."""
        return f"{format_cpus(cpu for cpus in cpus_of[first : first + count] for cpu in cpus if cpu not in off)}\n"

    files = {
        f"{CPU}/online": f"{format_cpus(set(all_cpus) - off)}\n",
        f"{CPU}/present": f"{format_cpus(all_cpus)}\n",
        f"{CPU}/isolated": f"{format_cpus(isolated)}\n",
        f"{CPU}/smt/active": "1\n" if threads > 1 else "0\n",
        f"{CPU}/smt/control": "on\n" if threads > 1 else "notsupported\n",
    }
    for core, cpus in enumerate(cpus_of):
        own_l3 = core // cores_per_l3
        for cpu in set(cpus) - off:
            here = f"{CPU}/cpu{cpu}"
            files |= {
                f"{here}/topology/thread_siblings_list": listed(core, 1),
                f"{here}/topology/core_id": f"{core % (cores // packages)}\n",
                f"{here}/topology/physical_package_id": f"{core // (cores // packages)}\n",
                f"{here}/topology/die_id": "0\n",
                f"{here}/cache/index0/level": "1\n",
                f"{here}/cache/index0/shared_cpu_list": listed(core, 1),
            }
            if l3:
                files[f"{here}/cache/index3/level"] = "3\n"
                files[f"{here}/cache/index3/shared_cpu_list"] = listed(own_l3 * cores_per_l3, cores_per_l3)
            if base_mhz:
                files[f"{here}/cpufreq/base_frequency"] = f"{base_mhz * 1000}\n"
    if numa:
        files[f"{NODE}/online"] = f"{format_cpus(range(nodes))}\n"
    for node in range(nodes) if numa else ():
        files |= {
            f"{NODE}/node{node}/cpulist": listed(node * cores // nodes, cores // nodes),
            f"{NODE}/node{node}/distance": " ".join("10" if other == node else "20" for other in range(nodes)) + "\n",
            f"{NODE}/node{node}/meminfo": f"Node {node} MemTotal:       {memory_mib_per_node * 1024} kB\n"
            f"Node {node} MemFree:        1024 kB\n",
        }
    return files


def write_sysfs(root: Path, files: Mapping[str, str]) -> None:
    """A tree to read, in place of /sys."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def write_pci_device(
    root: Path, address: str, *, driver: str = "vfio-pci", group: str = "12", class_: str = "0x030000"
) -> None:
    """A device in a tree in place of /, whose group has a node in dev/vfio that everybody but the kernel calls one."""
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{class_}\n")
    if driver:
        (device / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
    if group:
        members = root / "sys/kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(f"../../../../bus/pci/devices/{address}")
        (device / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
        (root / "dev/vfio").mkdir(parents=True, exist_ok=True)
        for name, mode in ((group, 0o600), ("vfio", 0o666)):
            (root / "dev/vfio" / name).touch()
            (root / "dev/vfio" / name).chmod(mode)
