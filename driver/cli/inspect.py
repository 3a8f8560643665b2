"""`chv inspect ID`: all there is to know about one machine. Nomad has no place for most of it."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from driver.cli.common import add_common, add_id, find_machine, load_config, print_json, print_pairs, state_of
from vmlib.cores.cpulist import format_cpus
from vmlib.counters import MachineCount, Memory, sum_memory
from vmlib.errors import HypervisorError
from vmlib.guest.known import load as load_guest
from vmlib.hypervisor.base import Counters, Usage
from vmlib.running import Machine, NicView


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "inspect",
        help="show one machine",
        description="Show all there is to know about one machine.",
        epilog="Exit codes: 0 fine; 1 no such machine.",
    )
    add_id(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = describe(find_machine(load_config(args), args.id))
    if args.json:
        print_json(facts)
    else:
        print_pairs(facts)
    return 0


def describe(machine: Machine) -> dict[str, Any]:
    """The keys are a contract."""
    record, nics = machine.record, machine.nics()
    used, counted_here = _used(machine), machine.counter().read() if machine.running() else None
    counted = used.nics if isinstance(used, Usage) else ()
    facts: dict[str, Any] = {
        "id": record.id,
        "task": record.name,
        "owner": record.owner,
        "hypervisor": record.hypervisor,
        "reason": record.reason,
        "pid": record.vmm_pid,
        "uid": record.uid,
        "state": state_of(machine),
        **_cores(machine),
        "memory_mib": record.memory_mib,
        "vcpus": _vcpus(machine, counted_here),
        "addresses": [address for nic in nics for address in nic.addresses],
        "nics": [_nic(nic, moved) for nic, moved in zip_longest(nics, counted[: len(nics)])],
        **_counted(counted_here),
        **_moved(used),
        **({"vfio": list(record.vfio)} if record.vfio else {}),
        **_guest(machine),
    }
    if (ended := machine.exit_record()) is not None:
        facts["exit"] = {"code": ended.exit_code, "signal": ended.signal, "message": ended.message}
    return facts


def _guest(machine: Machine) -> dict[str, Any]:
    """What its agent said last; nothing of a guest that has none, or that is over."""
    known = load_guest(machine.run.guest)
    if not known.at or not machine.running():
        return {}
    said = known.report
    return {
        "guest": {
            "load": list(said.load),
            "memory": dict(said.memory),
            "uptime_s": said.uptime_s,
            "addresses": list(said.addresses),
            "age_s": round(known.age_s(), 1),
        }
    }


def _nic(nic: NicView, moved: Counters | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"network": nic.network, "mac": nic.mac, "link": nic.link, "addresses": list(nic.addresses)}
    if moved is not None:
        shown |= {
            "received_bytes": moved.read_bytes,
            "sent_bytes": moved.write_bytes,
            "received_frames": moved.read_ops,
            "sent_frames": moved.write_ops,
        }
    return {**shown, **({"lost": nic.lost} if nic.lost else {})}


def _used(machine: Machine) -> Usage | str:
    """What its devices have moved so far, or why that is not known: a VMM that hangs is given up after seconds."""
    if not machine.running():
        return ""
    try:
        return machine.usage()
    except HypervisorError as exc:
        return str(exc)


def _moved(used: Usage | str) -> dict[str, Any]:
    if isinstance(used, str):
        return {"usage": f"not told: {used}"} if used else {}
    return {"memory_actual_mib": used.memory_bytes >> 20, "disks": [asdict(disk) for disk in used.disks]}


def _cores(machine: Machine) -> dict[str, Any]:
    """What the ledger says; a machine that has ended holds nothing."""
    entry = machine.ledger_entry()
    if entry is None:
        return {"placement": "shared", "level": "shared", "cores": "", "emulator": "", "numa_nodes": [], "repairs": 0}
    return {
        "placement": "exclusive" if entry.placement.cpus else "shared",
        "level": entry.level,
        "cores": format_cpus(entry.placement.cpus),
        "emulator": format_cpus(entry.placement.emulator),
        "numa_nodes": list(entry.placement.nodes),
        "repairs": entry.repairs,
        **({"yielded": entry.yielded} if entry.yielded else {}),
    }


def _counted(count: MachineCount | None) -> dict[str, Any]:
    """What it has used of its host since its start, the VMM and its keeper together."""
    if count is None:
        return {}
    times = [part.cpu for part in (count.vmm, count.keeper) if part.cpu is not None]
    memories = [part.memory for part in (count.vmm, count.keeper) if part.memory is not None]
    memory = sum_memory(memories) if memories else Memory()
    return {
        "cpu": {
            "total_s": _seconds(one.total_ns for one in times),
            "user_s": _seconds(one.user_ns for one in times),
            "system_s": _seconds(one.system_ns for one in times),
            "throttled_s": _seconds(one.throttled_ns or 0 for one in times),
        },
        "memory": {name: value for name, value in asdict(memory).items() if value is not None},
    }


def _seconds(times_ns: Iterable[int]) -> float:
    return round(sum(times_ns) / 1e9, 3)


def _vcpus(machine: Machine, count: MachineCount | None) -> list[dict[str, Any]]:
    """A shared machine's vCPUs have no core of their own."""
    if not machine.running():
        return []
    entry = machine.ledger_entry()
    pins = dict(enumerate(entry.placement.vcpus)) if entry is not None else {}
    try:
        found = [{"vcpu": one.index, "core": pins.get(one.index), "tid": one.thread_id} for one in machine.vcpus()]
    except HypervisorError:
        return []
    times = () if count is None else count.vcpus
    used = [{"cpu_s": _seconds([part.cpu.total_ns])} if part.cpu else {} for part in times[: len(found)]]
    return [{**shown, **(more or {})} for shown, more in zip_longest(found, used)]
