"""What InspectTask tells of a task's machine."""

from vmlib.running import Machine


def attributes(machine: Machine) -> dict[str, str]:
    """What the machine is, where its vCPUs run, and its interfaces."""
    record = machine.record
    return {
        "hypervisor": record.hypervisor,
        "reason": record.reason,
        "pid": str(record.vmm_pid),
        "vcpus": str(record.vcpus),
        "memory_mib": str(record.memory_mib),
        **_link_attributes(machine),
        **_cores_attributes(machine),
    }


def _link_attributes(machine: Machine) -> dict[str, str]:
    """Nothing for a machine without interfaces."""
    nics = machine.nics()
    found = {}
    for index, nic in enumerate(nics):
        found[f"nic{index}"] = " ".join((nic.network, nic.mac, *nic.addresses))
        if nic.lost:
            found[f"nic{index}_lost"] = nic.lost
    if addresses := [address for nic in nics for address in nic.addresses]:
        found["addresses"] = ", ".join(addresses)
    return found


def _cores_attributes(machine: Machine) -> dict[str, str]:
    entry = machine.ledger_entry()
    if entry is None:
        return {"level": "shared"}
    return {
        "placement": "exclusive" if entry.placement.cpus else "shared",
        "level": entry.level,
        "cores_repaired": str(entry.repairs),
        **{f"vcpu{vcpu}": str(cpu) for vcpu, cpu in enumerate(entry.placement.vcpus)},
    }
