"""What Nomad does with the node's CPUs: its partitions in the cgroup tree, and the topology that it sends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driver._pb import base_pb2
from vmlib.cores.cpulist import parse_cpus

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """The groups in which Nomad keeps its tasks; they need not exist. Nothing of ours is ever written there."""

    top: Path | None = None  # Nomad's own group; None where there is no cpuset controller
    reserve: Path | None = None  # tasks with `cores`; None where Nomad has no such group
    share: Path | None = None  # all other tasks
    old: bool = False  # before 1.7: each task's own list is the truth, the partition's is not


def find(root: Path = _CGROUPS) -> Partitions:
    """Where Nomad keeps its partitions on this host, or will. Cheap; they may come after us, so look again."""
    if (root / "cgroup.controllers").exists():
        top = root / "nomad.slice"
        reserve, share = top / "reserve.slice", top / "share.slice"
        if not reserve.is_dir() and any(top.glob("*.scope")):
            return Partitions(top=top, old=True)  # 1.3 to 1.6
        return Partitions(top=top, reserve=reserve, share=share)
    if not (root / "cpuset").is_dir():
        return Partitions()
    top = root / "cpuset" / "nomad"
    if not (top / "reserve").is_dir() and (top / "reserved").is_dir():
        return Partitions(top=top, reserve=top / "reserved", share=top / "shared", old=True)  # 1.1 to 1.6
    return Partitions(top=top, reserve=top / "reserve", share=top / "share")


def reserved_cpus(partitions: Partitions | None = None) -> frozenset[int]:
    """The CPUs that tasks with `cores` hold now."""
    where = find() if partitions is None else partitions
    if where.reserve is None:
        return _reserved_in_scopes(where)
    tasks = tuple(_groups(where.reserve))
    if not tasks:
        return frozenset()  # the list may be one that an earlier agent left
    return frozenset().union(*map(_cpus, tasks)) if where.old else _cpus(where.reserve)


def shared_cpus(partitions: Partitions | None = None) -> frozenset[int]:
    """The CPUs that tasks without `cores` run on now; empty when Nomad has not said so."""
    where = find() if partitions is None else partitions
    if where.top is None:
        return frozenset()
    if where.share is None:
        lists = _scopes(where)
        return frozenset.intersection(*lists) if lists else frozenset()
    # An empty list: nothing was ever reserved, or everything is.
    return _cpus(where.share) or _cpus(where.top) - reserved_cpus(where)


def watch_paths(partitions: Partitions) -> tuple[Path, ...]:
    """The files and directories whose changes can change the answers above, their own coming and going included.

    Take them anew after each change: before 1.7 each task has a file of its own.
    """
    top = partitions.top
    if top is None:
        return ()
    paths = [top.parent, top, top / "cpuset.cpus"]
    for group in (partitions.reserve, partitions.share):
        paths += [group, group / "cpuset.cpus"] if group is not None else []
    if partitions.old:
        paths += [task / "cpuset.cpus" for task in _groups(partitions.reserve or top)]
    return tuple(paths)


def _reserved_in_scopes(where: Partitions) -> frozenset[int]:
    """In 1.3 to 1.6 on v2 a task with `cores` has its own CPUs and the shared ones, any other the shared ones.

    What all tasks have is the shared pool. A single task with `cores` cannot be told from one without.
    """
    lists = _scopes(where)
    return frozenset().union(*lists) - frozenset.intersection(*lists) if lists else frozenset()


def _scopes(where: Partitions) -> tuple[frozenset[int], ...]:
    if where.top is None or not where.old:
        return ()
    return tuple(cpus for task in _groups(where.top) if (cpus := _cpus(task)))


def _groups(parent: Path) -> Iterator[Path]:
    try:
        yield from sorted(child for child in parent.iterdir() if child.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _cpus(group: Path) -> frozenset[int]:
    """The list as it was written; empty when the group is gone or goes while it is read."""
    try:
        return parse_cpus((group / "cpuset.cpus").read_text())
    except (OSError, ValueError):
        return frozenset()


# -- the topology that Nomad sends -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NomadCpus:
    """What Nomad says of the node's CPUs. All empty when it says nothing, as before 1.7."""

    usable: frozenset[int] = frozenset()  # shared out to tasks
    withheld: frozenset[int] = frozenset()  # by `reserved.cores` or `reservable_cores`
    mhz: Mapping[int, int] = field(default_factory=dict)  # what one CPU counts, by CPU; a speed not known is left out


def nomad_cpus(nomad: base_pb2.NomadConfig | None) -> NomadCpus:
    """Only ids and MHz: the structure that Nomad sends can be a flat fallback."""
    cores = nomad.driver.Topology.cores if nomad is not None else ()
    speeds = {core.core_id: core.base_speed or core.guess_speed or core.max_speed for core in cores}
    return NomadCpus(
        usable=frozenset(core.core_id for core in cores if not core.disable),
        withheld=frozenset(core.core_id for core in cores if core.disable),
        mhz={cpu: mhz for cpu, mhz in speeds.items() if mhz},
    )
