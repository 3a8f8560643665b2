"""What this node offers, as attributes and one sentence of health. Pure, on facts that a probe has found."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from driver import __version__
from driver.network_health import NetworkFacts

Value = str | bool | int
Health = Literal["undetected", "unhealthy", "healthy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFacts:
    """Whole cores on this node, counted in what one vCPU gets: physical cores or logical CPUs, by `cores.smt`."""

    dedicated: int = 0
    free: int = 0  # for the next exclusive machine: dedicated ones where there are any, else those of the pool
    largest_numa_block: int = 0  # of the free ones, on one NUMA node
    mhz_floor: int = 0  # what Nomad counts for the slowest CPU; 0 = nobody says
    smt: bool = False  # physical cores have more than one thread


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What the probe found. `problems` keep machines from running at all, `warnings` do not."""

    hypervisors: tuple[str, ...] = ()
    cloud_hypervisor_version: str = ""
    qemu_version: str = ""
    accel: str = ""
    networks: tuple[NetworkFacts, ...] = ()
    nfs: tuple[tuple[str, str], ...] = ()  # name, "rw" or "ro"; those whose server answers
    vfio: tuple[str, ...] = ()  # PCI addresses of devices that machines can take over
    cores: CoreFacts | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """One answer of the Fingerprint stream."""

    health: Health
    text: str
    attributes: dict[str, Value] = field(default_factory=dict)


def fingerprint(facts: NodeFacts) -> Fingerprint:
    """Health is a sentence that says what to do; attributes list only what is usable."""
    attributes: dict[str, Value] = {"driver.chv": True, "driver.chv.version": __version__}
    if facts.hypervisors:
        attributes["driver.chv.hypervisors"] = ",".join(facts.hypervisors)
    if facts.cloud_hypervisor_version:
        attributes["driver.chv.cloud_hypervisor.version"] = facts.cloud_hypervisor_version
    if facts.qemu_version:
        attributes["driver.chv.qemu.version"] = facts.qemu_version
    if facts.accel:
        attributes["driver.chv.accel"] = facts.accel
    for network in facts.networks:
        attributes |= _of_network(network)
    for name, mode in facts.nfs:
        attributes[f"driver.chv.nfs.{name}"] = mode
    if facts.vfio:
        attributes["driver.chv.vfio"] = ",".join(facts.vfio)
    if facts.cores is not None:
        attributes |= {f"driver.chv.cores.{name}": value for name, value in asdict(facts.cores).items()}
    if facts.problems:
        return Fingerprint(health="unhealthy", text="; ".join(facts.problems), attributes=attributes)
    odd = [f"network {network.name}: {network.complaint}" for network in facts.networks if network.complaint]
    return Fingerprint(health="healthy", text="; ".join([*facts.warnings, *odd]) or "Healthy", attributes=attributes)


def _of_network(network: NetworkFacts) -> dict[str, Value]:
    """Nothing of one that no machine can be plugged into, so that a job can ask for its name."""
    if network.lack:
        return {}
    name = f"driver.chv.network.{network.name}"
    more: dict[str, Value] = {f"{name}.parent": network.parent, f"{name}.state": network.state}
    if network.router:
        return {name: network.mode, f"{name}.router": network.router}
    return {name: network.mode} | (more if network.parent else {})
