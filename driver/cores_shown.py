"""What the device plugin makes of the cores that the driver published: groups, reservations, statistics. Pure.

The file itself is described, and written, in `driver.cores_file`, which knows more than this plugin has to load.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from google.protobuf import timestamp_pb2, wrappers_pb2

from driver._pb import attribute_pb2, stats_pb2
from driver._pb import device_pb2 as pb
from driver.tokens import env_of, token
from vmlib.errors import HostError

VENDOR, TYPE = "chv", "core"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownUnit:
    """One dedicated unit: a physical core, or with smt = thread one logical CPU."""

    id: int
    cpus: tuple[int, ...]
    node: int
    l3: int
    package: int
    kind: str  # "" where all cores of the host are alike
    mhz: int  # 0 where nobody says


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The dedicated units of this host by id; none where the driver has not said anything yet."""

    units: tuple[ShownUnit, ...] = ()
    smt: Literal["core", "thread"] = "core"

    def by_node(self) -> dict[int, list[ShownUnit]]:
        found: dict[int, list[ShownUnit]] = {}
        for unit in self.units:
            found.setdefault(unit.node, []).append(unit)
        return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Of one CPU since boot, in clock ticks."""

    busy: int
    total: int


def parse(text: str, *, boot_id: str) -> Shown:
    """What the file says, and nothing when it is of another boot. Raises ValueError on what is not that file."""
    try:
        data = json.loads(text)
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']!r}: expected {_VERSION}")
        if data["boot_id"] != boot_id:
            return Shown()
        if data["smt"] not in ("core", "thread"):
            raise ValueError(f"smt {data['smt']!r}: expected core or thread")
        units = [
            ShownUnit(
                id=int(unit["id"]),
                cpus=tuple(int(cpu) for cpu in unit["cpus"]),
                node=int(unit["node"]),
                l3=int(unit["l3"]),
                package=int(unit["package"]),
                kind=str(unit["kind"]),
                mhz=int(unit["mhz"]),
            )
            for unit in data["units"]
        ]
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"{type(exc).__name__}: {exc}") from exc
    return Shown(units=tuple(sorted(units, key=lambda unit: unit.id)), smt=data["smt"])


# -- groups ----------------------------------------------------------------------------------------------------------


def group_name(node: int) -> str:
    return f"numa{node}"


def groups(shown: Shown) -> list[pb.DeviceGroup]:
    """One for each NUMA node with dedicated units."""
    return [
        pb.DeviceGroup(
            vendor=VENDOR,
            device_type=TYPE,
            device_name=group_name(node),
            devices=[pb.DetectedDevice(ID=token(unit.id), healthy=True) for unit in units],
            attributes=attributes(node, units, shown.smt),
        )
        for node, units in shown.by_node().items()
    ]


def attributes(node: int, units: Iterable[ShownUnit], smt: str) -> dict[str, attribute_pb2.Attribute]:
    """What holds for each of these units, so that a constraint on it holds whichever is chosen. They are not none."""
    units = list(units)
    found = {
        "numa_node": attribute_pb2.Attribute(int_val=node),
        "smt": attribute_pb2.Attribute(string_val=smt),
        "threads": attribute_pb2.Attribute(int_val=min(len(unit.cpus) for unit in units)),
    }
    if mhz := min(unit.mhz for unit in units):
        found["mhz"] = attribute_pb2.Attribute(int_val=mhz, unit="MHz")
    packages, caches, kinds = ({getattr(unit, key) for unit in units} for key in ("package", "l3", "kind"))
    if len(packages) == 1:
        found["package"] = attribute_pb2.Attribute(int_val=packages.pop())
    if len(caches) == 1:
        found["l3"] = attribute_pb2.Attribute(int_val=caches.pop())
    if len(kinds) == 1 and (kind := kinds.pop()):
        found["kind"] = attribute_pb2.Attribute(string_val=kind)
    return found


# -- reservations ----------------------------------------------------------------------------------------------------


def reservation(shown: Shown, device_ids: Iterable[str]) -> pb.ContainerReservation:
    """The environment by which the driver knows how many units of which node the task holds. Raises HostError."""
    wanted = list(dict.fromkeys(device_ids))
    if not wanted:
        raise HostError("device_ids = []: expected at least one")
    units = {token(unit.id): unit for unit in shown.units}
    if unknown := [name for name in wanted if name not in units]:
        raise HostError(f"device {', '.join(unknown)}: not among the dedicated cores of this node")
    by_node: dict[int, list[int]] = {}
    for name in wanted:
        by_node.setdefault(units[name].node, []).append(units[name].id)
    envs = {key: value for node, ids in by_node.items() for key, value in env_of(node, ids).items()}
    return pb.ContainerReservation(envs=envs)


# -- statistics ------------------------------------------------------------------------------------------------------


def cpu_times(stat: str) -> dict[int, CpuTime]:
    """From /proc/stat, by CPU. A guest's time is in `user` already; waiting for a disk is not being busy."""
    found: dict[int, CpuTime] = {}
    for line in stat.splitlines():
        name, _, rest = line.partition(" ")
        number = name.removeprefix("cpu")
        if name == number or not number.isdecimal():
            continue
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(int, rest.split())
        busy = user + nice + system + irq + softirq + steal
        found[int(number)] = CpuTime(busy, busy + idle + iowait)
    return found


def busy_percent(cpus: Iterable[int], before: Mapping[int, CpuTime], now: Mapping[int, CpuTime]) -> float | None:
    """Of the time of these CPUs between two looks, 100 when all were busy. None when nothing can be said."""
    both = [(before[cpu], now[cpu]) for cpu in cpus if cpu in before and cpu in now]
    total = sum(late.total - early.total for early, late in both)
    if total <= 0:
        return None
    # The kernel's count of idle time may go backwards by a little.
    return min(100.0, max(0.0, 100.0 * sum(late.busy - early.busy for early, late in both) / total))


def stats_groups(
    shown: Shown,
    holders: Mapping[int, str],
    before: Mapping[int, CpuTime],
    now: Mapping[int, CpuTime],
    *,
    at: float,
) -> list[pb.DeviceGroupStats]:
    """One look at all units. `holders` by CPU; `at` in seconds since 1970."""
    timestamp = timestamp_pb2.Timestamp(seconds=int(at), nanos=int(at % 1 * 1e9))
    return [
        pb.DeviceGroupStats(
            vendor=VENDOR,
            type=TYPE,
            name=group_name(node),
            instance_stats={
                token(unit.id): _stats(_holder(unit, holders), busy_percent(unit.cpus, before, now), timestamp)
                for unit in units
            },
        )
        for node, units in shown.by_node().items()
    ]


def _holder(unit: ShownUnit, holders: Mapping[int, str]) -> str:
    return ", ".join(dict.fromkeys(holders[cpu] for cpu in unit.cpus if cpu in holders)) or "free"


def _stats(holder: str, percent: float | None, timestamp: timestamp_pb2.Timestamp) -> pb.DeviceStats:
    # The summary is all that `nomad node status` shows of an instance.
    text = holder if percent is None else f"{holder}, {percent:.0f} % busy"
    words = {"holder": _text(holder, "The machine that runs on this core")}
    if percent is not None:
        words["busy"] = stats_pb2.StatValue(
            float_numerator_val=wrappers_pb2.DoubleValue(value=round(percent, 1)),
            unit="%",
            desc="Share of the core's time that was used",
        )
    return pb.DeviceStats(
        summary=_text(text, "Holder and use"), stats=stats_pb2.StatObject(attributes=words), timestamp=timestamp
    )


def _text(text: str, desc: str) -> stats_pb2.StatValue:
    return stats_pb2.StatValue(string_val=wrappers_pb2.StringValue(value=text), desc=desc)
