"""What of the operator's `cores` block does not fit this node or Nomad's settings, each with what to do. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from driver.config_plugin import CoresConfig
from driver.fingerprint import CoreFacts
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.plan import Host, free_dedicated, held
from vmlib.cores.topology import Topology
from vmlib.cores.words import Entry

Subject = Literal["cores.dedicated", "cores.housekeeping", "cores.partition", "nomad reservation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that does not fit."""

    subject: Subject
    found: str
    cure: str

    def __str__(self) -> str:
        return f"{self.found}, {self.cure}"


def core_findings(
    config: CoresConfig,
    topology: Topology,
    *,
    usable: AbstractSet[int] = frozenset(),
    withheld: AbstractSet[int] = frozenset(),
    reserved: AbstractSet[int] = frozenset(),
    mhz: Mapping[int, int] | None = None,
    cgroups: Literal["v1", "hybrid", "v2", "none", ""] = "",
    partition: str = "",
) -> tuple[Finding, ...]:
    """Of Nomad: `usable` CPUs (empty: unknown), `withheld` ones, those `reserved` by tasks with `cores`, MHz by CPU.

    Of the host: which `cgroups` it has ("": unknown) and what our own group's cpuset.cpus.partition says.
    """
    dedicated = frozenset(withheld & topology.online if config.dedicated_auto else config.dedicated)
    speeds = topology.mhz if mhz is None else mhz
    return (
        *_of_dedicated(config, topology, dedicated, usable),
        *_of_housekeeping(config, topology, dedicated),
        *_of_partition(config, cgroups, partition),
        *_of_reservation(topology, dedicated, usable, reserved, speeds),
    )


def core_facts(host: Host, entries: Iterable[Entry], *, mhz_floor: int) -> CoreFacts:
    """The node's whole cores as attributes."""
    known = list(entries)
    dedicated = host.units(host.dedicated)
    if host.policy.dedicated_only:
        free = free_dedicated(host, known)
        spare = 0
    else:
        taken = held(known) | host.reserved | host.policy.housekeeping
        free = host.units(host.shared_out - taken)
        # The last one is never given away where nothing else is left for housekeeping.
        spare = 0 if (host.policy.housekeeping & host.topology.online) - held(known) else 1
    nodes = [unit.node for unit in free]
    count = max(0, len(free) - spare)
    return CoreFacts(
        dedicated=len(dedicated),
        free=count,
        largest_numa_block=min(count, max((nodes.count(node) for node in nodes), default=0)),
        mhz_floor=mhz_floor,
        smt=any(len(core.cpus) > 1 for core in host.topology.cores),
    )


def _of_dedicated(
    config: CoresConfig, topology: Topology, dedicated: frozenset[int], usable: AbstractSet[int]
) -> Iterator[Finding]:
    if config.dedicated_auto and not dedicated:
        yield Finding(
            subject="cores.dedicated",
            found='cores.dedicated "auto": Nomad reports no core as withheld',
            cure='set client { reserved { cores = "…" } } in the agent\'s file',
        )
        return
    shown = f"cores.dedicated {format_cpus(dedicated)}"
    if shared := dedicated & usable:
        yield Finding(
            subject="cores.dedicated",
            found=f"{shown}: Nomad still shares out {format_cpus(shared)}",
            cure=f'set client {{ reserved {{ cores = "{format_cpus(dedicated)}" }} }}',
        )
    if gone := dedicated - topology.online:
        yield Finding(
            subject="cores.dedicated",
            found=f"{shown}: CPU {format_cpus(gone)} {_are(gone)} not online",
            cure="bring it online or take it off the list",
        )
    if config.smt == "core":
        split = topology.split(dedicated)[1]
        for core_id in sorted({core.id for cpu in split if (core := topology.core_of(cpu)) is not None}):
            core = topology.core_of(core_id)
            assert core is not None  # its id is one of its CPUs
            yield Finding(
                subject="cores.dedicated",
                found=f"{shown}: core {core.id} is CPU {format_cpus(core.cpus)}, and not all of it is on the list",
                cure='name all of its threads or none, or set smt = "thread"',
            )


def _of_housekeeping(config: CoresConfig, topology: Topology, dedicated: frozenset[int]) -> Iterator[Finding]:
    housekeeping = config.housekeeping or frozenset()
    shown = f"cores.housekeeping {format_cpus(housekeeping)}"
    if gone := housekeeping - topology.online:
        yield Finding(
            subject="cores.housekeeping",
            found=f"{shown}: CPU {format_cpus(gone)} {_are(gone)} not online",
            cure="bring it online or take it off the list",
        )
    if both := housekeeping & dedicated:
        yield Finding(
            subject="cores.housekeeping",
            found=f"{shown}: CPU {format_cpus(both)} {_are(both)} dedicated",
            cure="take it off one of the two lists",
        )


def _of_partition(config: CoresConfig, cgroups: str, partition: str) -> Iterator[Finding]:
    if config.partition and cgroups not in ("", "v2"):
        yield Finding(
            subject="cores.partition",
            found=f'cores.partition "{config.partition}": this host has cgroups {cgroups}, partitions need v2',
            cure='boot with systemd.unified_cgroup_hierarchy=1, or set partition = ""',
        )
    elif config.partition and partition not in ("", config.partition):
        yield Finding(
            subject="cores.partition",
            found=f'cores.partition "{config.partition}" is not valid: {partition.strip()}',
            cure='withhold the dedicated cores from Nomad again (client { reserved { cores } }), or set partition = ""',
        )


def _of_reservation(
    topology: Topology,
    dedicated: frozenset[int],
    usable: AbstractSet[int],
    reserved: AbstractSet[int],
    mhz: Mapping[int, int],
) -> Iterator[Finding]:
    """The scheduler counts MHz of cores that nobody can use, and places a task with `cpu` where no core is left."""
    withheld = dedicated - usable
    if not (withheld and usable and usable <= reserved):
        return
    speeds = [mhz.get(cpu, 0) for cpu in withheld & topology.online]
    number = str(sum(speeds)) if speeds and all(speeds) else "the MHz of these cores"
    yield Finding(
        subject="nomad reservation",
        found=f"every core that Nomad uses ({format_cpus(usable)}) is reserved, and unless reserved.cpu is set the MHz"
        f" of cores.dedicated {format_cpus(withheld)} still count, for tasks that then have no core",
        cure=f'set client {{ reserved {{ cores = "{format_cpus(withheld)}"  cpu = {number} }} }}',
    )


def _are(cpus: AbstractSet[int]) -> str:
    return "is" if len(cpus) == 1 else "are"
