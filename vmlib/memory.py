"""How much memory the VMM's cgroup may use. docs/memory.md says why and what was measured."""

from vmlib.spec import MachineSpec

_MIB = 1 << 20


def memory_limit_bytes(spec: MachineSpec, overhead_mib: int) -> int:
    """The limit under which a healthy machine is never killed: its RAM and the VMM's overhead, or more if asked for.

    Huge pages are none of the memory cgroup's: what is left for it then is the overhead alone, whatever
    `memory_max_mib` says of RAM.
    """
    if spec.hugepages:
        return overhead_mib * _MIB
    return max(spec.memory_mib + overhead_mib, spec.memory_max_mib) * _MIB


def memory_lock_bytes(spec: MachineSpec, overhead_mib: int) -> int:
    """How much memory the VMM may lock: a device that the guest has taken over reaches all RAM, which stays in place.

    0 = as little as everybody.
    """
    return (spec.memory_mib + overhead_mib) * _MIB if spec.vfio else 0
