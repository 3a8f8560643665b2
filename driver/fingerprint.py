"""What this node offers, as attributes and one sentence of health. Pure, on facts that a probe has found."""

from dataclasses import dataclass, field
from typing import Literal

from driver import __version__

Value = str | bool | int
Health = Literal["undetected", "unhealthy", "healthy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What the probe found. `problems` keep machines from running at all, `warnings` do not."""

    hypervisors: tuple[str, ...] = ()
    qemu_version: str = ""
    accel: str = ""
    networks: tuple[tuple[str, str], ...] = ()  # name, mode
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
    if facts.qemu_version:
        attributes["driver.chv.qemu.version"] = facts.qemu_version
    if facts.accel:
        attributes["driver.chv.accel"] = facts.accel
    for name, mode in facts.networks:
        attributes[f"driver.chv.network.{name}"] = mode
    if facts.problems:
        return Fingerprint(health="unhealthy", text="; ".join(facts.problems), attributes=attributes)
    return Fingerprint(health="healthy", text="; ".join(facts.warnings) or "Healthy", attributes=attributes)
