"""What `chv doctor` says of the host's cores, and of what the agent's file does with them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from driver.cli.doctor_agent import AgentSettings
from driver.cli.doctor_check import Check
from driver.cli.doctor_directories import may_hang
from driver.config_plugin import PluginConfig
from driver.core_health import Finding, core_findings
from driver.cores_file import published_mhz
from driver.partitions import reserved_cpus, shared_cpus
from vmlib import cgroup, cpuset
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.topology import Topology, read_topology
from vmlib.errors import HostError
from vmlib.paths import Layout

_TOLERANCE = 0.1  # Nomad measures a CPU's MHz in other ways than we do


def cores_checks(config: PluginConfig, settings: AgentSettings) -> Iterator[Check]:
    """What Nomad uses stands in its cgroups; until those exist, its file says what it will use."""
    try:
        topology = read_topology()
        withheld = settings.withheld(topology.online)
    except (HostError, ValueError) as exc:
        yield Check("cores", "problem", str(exc), "correct the list in client { reserved { cores } }")
        return
    reserved = reserved_cpus()
    usable = shared_cpus() | reserved
    if not usable and settings.has_client:
        usable = topology.online - withheld
    groups = cgroup.read_layout()
    layout = Layout(config.data_dir, config.run_dir)
    speeds = topology.mhz if may_hang(config.data_dir) else {**topology.mhz, **published_mhz(layout.cores)}
    found = core_findings(
        config.cores,
        topology,
        usable=usable,
        withheld=topology.online - usable if usable else frozenset(),
        reserved=reserved,
        mhz=speeds,
        cgroups=groups.kind,
        partition=cpuset.read_partition(groups.cpuset) if groups.cpuset is not None else "",
    )
    if config.cores.dedicated_auto and not usable:
        # Before Nomad has made its cgroups nobody can say what it withholds.
        found = tuple(one for one in found if one.subject != "cores.dedicated")
    wanted = withheld if config.cores.dedicated_auto else config.cores.dedicated
    if (shared := wanted & usable) and shared <= withheld:
        restart = "restart the Nomad agent, whose file withholds them by now"
        found = tuple(replace(one, cure=restart) if one.subject == "cores.dedicated" else one for one in found)
    yield from core_checks(config, topology, found, usable=usable)
    yield from reservation_checks(settings, topology, speeds)


def core_checks(
    config: PluginConfig, topology: Topology, found: Sequence[Finding], *, usable: frozenset[int]
) -> list[Check]:
    """The topology, and one line for each finding, or one that says that a thing is well."""
    threads = "with SMT" if any(len(core.cpus) > 1 for core in topology.cores) else "without SMT"
    with_cpus = sum(1 for node in topology.nodes if node.cpus)
    checks = [
        Check(
            "cores", "ok", f"{len(topology.cores)} cores {threads}, {len(topology.online)} CPUs, {with_cpus} NUMA nodes"
        )
    ]
    cores = config.cores
    dedicated = "auto" if cores.dedicated_auto else format_cpus(cores.dedicated)
    for subject, fine in (
        ("cores.dedicated", dedicated or "none: machines have cores that Nomad shares out, level driver"),
        ("cores.housekeeping", format_cpus(cores.housekeeping or ()) or "what nobody holds"),
        ("cores.partition", cores.partition or "none"),
        ("nomad reservation", f"Nomad uses CPU {format_cpus(usable)}" if usable else "Nomad has no cgroups here yet"),
    ):
        faults = [Check(subject, "warning", one.found, one.cure) for one in found if one.subject == subject]
        checks += faults or [Check(subject, "ok", fine)]
    return checks


def reservation_checks(settings: AgentSettings, topology: Topology, mhz: Mapping[int, int]) -> Iterator[Check]:
    """Whether the file withholds the MHz of the cores that it withholds: Nomad does not do so by itself.

    It would place tasks with `cpu` where no core is left for them.
    """
    withheld = settings.withheld(topology.online)
    if not withheld:
        return
    check, shown = "nomad withheld MHz", f"CPU {format_cpus(withheld)} is withheld"
    speeds = {cpu: mhz.get(cpu) or settings.total_mhz // len(topology.online) for cpu in topology.online}
    if not all(speeds.values()):
        if settings.reserved_mhz:
            yield Check(check, "ok", f"{shown}, with {settings.reserved_mhz} MHz")
        else:
            yield Check(check, "warning", f"{shown}, its MHz are not", _cure(settings, "the MHz of these cores"))
        return
    theirs = sum(speeds[cpu] for cpu in withheld)
    counted = (settings.total_mhz or sum(speeds.values())) - settings.reserved_mhz
    excess = counted - (sum(speeds.values()) - theirs)
    if excess > theirs * _TOLERANCE:
        found = f"{shown}, but {excess} of its {theirs} MHz still count, for tasks that then have no core"
        yield Check(check, "warning", found, _cure(settings, str(settings.reserved_mhz + excess)))
    else:
        yield Check(check, "ok", f"{shown}, and so are its MHz")


def _cure(settings: AgentSettings, number: str) -> str:
    cores = "" if settings.reservable_cores else f'cores = "{settings.reserved_cores}"  '
    return f"set client {{ reserved {{ {cores}cpu = {number} }} }}"
