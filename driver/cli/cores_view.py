"""What `chv cores` knows of a node: each CPU and who it is for, as a value, and as JSON for programs."""

from dataclasses import dataclass
from typing import Any, Literal

from vmlib.cores.topology import Topology
from vmlib.cores.words import Entry

Word = Literal["machine", "reserved", "dedicated", "housekeeping", "shared", "withheld"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresView:
    """All that the picture shows."""

    topology: Topology
    entries: tuple[Entry, ...] = ()
    dedicated: frozenset[int] = frozenset()
    housekeeping: frozenset[int] = frozenset()
    usable: frozenset[int] = frozenset()  # the scheduler shares them out
    reserved_by_nomad: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one CPU is for now."""

    word: Word
    entry: Entry | None = None  # of the machine that has it
    vcpu: int | None = None
    emulator: bool = False
    contested: bool = False  # the scheduler has given it to somebody else since


def uses(view: CoresView) -> dict[int, Use]:
    """Of every CPU that is online. A machine comes first: what it holds, it holds."""
    found: dict[int, Use] = {}
    for cpu in view.topology.online:
        word: Word = "withheld"
        if cpu in view.reserved_by_nomad:
            word = "reserved"
        elif cpu in view.dedicated:
            word = "dedicated"
        elif cpu in view.housekeeping:
            word = "housekeeping"
        elif cpu in view.usable:
            word = "shared"
        found[cpu] = Use(word=word)
    for entry in view.entries:
        placement = entry.placement
        pins = {cpu: vcpu for vcpu, cpu in enumerate(placement.vcpus)}
        for cpu in view.topology.online.intersection(placement.cpus):
            found[cpu] = Use(
                word="machine",
                entry=entry,
                vcpu=pins.get(cpu),
                emulator=cpu in placement.emulator,
                contested=cpu in view.reserved_by_nomad and placement.source != "given",
            )
    return found


# -- for programs ----------------------------------------------------------------------------------------------------


def as_json(view: CoresView) -> dict[str, Any]:
    """The keys are a contract."""
    topology = view.topology
    use = uses(view)
    return {
        "smt": {"active": topology.smt_active, "control": topology.smt_control},
        "online": sorted(topology.online),
        "offline": sorted(topology.offline),
        "isolated": sorted(topology.isolated),
        "nohz_full": sorted(topology.nohz_full),
        "usable": sorted(view.usable),
        "dedicated": sorted(view.dedicated),
        "housekeeping": sorted(view.housekeeping),
        "reserved": sorted(view.reserved_by_nomad),
        "nodes": [
            {
                "id": node.id,
                "cpus": sorted(node.cpus),
                "memory_mib": node.memory_bytes >> 20,
                "distances": {str(other): distance for other, distance in node.distances.items()},
            }
            for node in topology.nodes
        ],
        "cores": [
            {
                "id": core.id,
                "package": core.package,
                "die": core.die,
                "node": core.node,
                "l3": core.l3,
                "kind": core.kind,
                "cpus": [_cpu_json(cpu, use[cpu]) for cpu in core.cpus],
            }
            for core in topology.cores
        ],
        "machines": [
            {
                "id": entry.id,
                "task": entry.name,
                "owner": entry.owner,
                "level": entry.level,
                "source": entry.placement.source,
                "cpus": list(entry.placement.cpus),
                "vcpus": list(entry.placement.vcpus),
                "emulator": list(entry.placement.emulator),
                "nodes": list(entry.placement.nodes),
                "draining": entry.draining,
                "repairs": entry.repairs,
                "yielded": entry.yielded,
            }
            for entry in view.entries
        ],
    }


def _cpu_json(cpu: int, use: Use) -> dict[str, Any]:
    return {
        "cpu": cpu,
        "use": use.word,
        "machine": use.entry.id if use.entry is not None else None,
        "vcpu": use.vcpu,
        "emulator": use.emulator,
        "contested": use.contested,
    }
