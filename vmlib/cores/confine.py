"""Puts every thread of a running VMM where it belongs, by cgroup and by thread affinity, and sees whether it is there.

The group's CPUs hold those of every thread at all times. On cgroup v2 each vCPU's thread sits in a threaded group of
its own, which outlasts whatever is done to the group above; on v1, and on kernels that forget a thread's affinity when
its group's CPUs change, it has to be pinned again.
"""

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlib import cpuset
from vmlib.cgroup import MachineGroups
from vmlib.cores.cpulist import format_cpus, parse_cpus
from vmlib.cores.words import Confinement
from vmlib.errors import HostError

_PASSES = 25  # over threads that come and go


@dataclass(frozen=True, slots=True)
class _Thread:
    """A thread, as it was found and as it should be."""

    tid: int
    name: str  # for people
    found: frozenset[int]
    expected: frozenset[int]
    vcpu: int | None


def apply(groups: MachineGroups, wanted: Confinement, *, vmm_pid: int, vcpu_tids: Sequence[int]) -> list[str]:
    """Make it so, verify it, and return in words what was not so before; nothing when all was right.

    Processes in the group that are not the VMM (kernel threads of KVM, vhost workers) are not looked at: they go with
    the group. Taking memory nodes from a group with processes in it moves their memory, and this returns only when it
    has moved. Raises HostError.
    """
    _expect_consistent(wanted, vcpu_tids)
    found = drift(groups, wanted, vmm_pid=vmm_pid, vcpu_tids=vcpu_tids)
    threaded = _wants_thread_groups(groups, wanted)
    if not found and not (threaded and _lacks_thread_groups(groups, wanted)):
        return []
    if groups.keeper_cpuset is not None:
        _set_cpus(groups.keeper_cpuset, wanted.keeper)
    if groups.cpuset is None:
        _pin_all(groups, wanted, vmm_pid, vcpu_tids, threaded=False)
    else:
        _set_mems(groups.cpuset, wanted.nodes)
        # Wide enough for the old and the new at once: a group cannot be narrowed below a thread's only CPU otherwise.
        _set_cpus(groups.cpuset, cpuset.read_cpus(groups.cpuset)[1] | wanted.cpus)
        _pin_all(groups, wanted, vmm_pid, vcpu_tids, threaded=threaded)
        _set_cpus(groups.cpuset, wanted.cpus)
        # Older kernels forgot every thread's affinity just now.
        _pin_all(groups, wanted, vmm_pid, vcpu_tids, threaded=threaded)
    if left := drift(groups, wanted, vmm_pid=vmm_pid, vcpu_tids=vcpu_tids):
        raise HostError(f"process {vmm_pid} cannot be confined: {'; '.join(left)}")
    return found


def drift(groups: MachineGroups, wanted: Confinement, *, vmm_pid: int, vcpu_tids: Sequence[int]) -> list[str]:
    """Look only: a short phrase for each difference. Raises HostError when the VMM or its group is gone."""
    differences = []
    if groups.cpuset is not None:
        configured, effective = cpuset.read_cpus(groups.cpuset)
        if (configured, effective) != (wanted.cpus, wanted.cpus):
            shown = configured if configured != wanted.cpus else effective
            differences.append(_phrase("group", shown, wanted.cpus))
        if wanted.nodes and (nodes := cpuset.read_mems(groups.cpuset)[1]) != wanted.nodes:
            differences.append(_phrase("memory nodes", nodes, wanted.nodes))
    if groups.keeper_cpuset is not None and (cpus := cpuset.read_cpus(groups.keeper_cpuset)[1]) != wanted.keeper:
        differences.append(_phrase("keeper", cpus, wanted.keeper))
    return differences + _thread_phrases(_misplaced(wanted, vmm_pid, vcpu_tids))


# -- threads ---------------------------------------------------------------------------------------------------------


def _misplaced(wanted: Confinement, vmm_pid: int, vcpu_tids: Sequence[int]) -> list[_Thread]:
    return [thread for thread in _threads(wanted, vmm_pid, vcpu_tids) if thread.found != thread.expected]


def _threads(wanted: Confinement, vmm_pid: int, vcpu_tids: Sequence[int]) -> list[_Thread]:
    """Every thread that the process has right now. Raises HostError when a vCPU's is none of them."""
    places = _places(wanted, vcpu_tids)
    threads = []
    for tid in _thread_ids(vmm_pid):
        status = _status(vmm_pid, tid)
        if status is None:
            continue
        vcpu, expected = places.pop(tid, (None, wanted.emulator))
        name = f"thread {tid} ({status['Name']})" if vcpu is None else f"vCPU {vcpu} (thread {tid})"
        threads.append(_Thread(tid, name, parse_cpus(status["Cpus_allowed_list"]), expected, vcpu))
    for tid, (vcpu, _) in places.items():
        raise HostError(f"thread {tid} of vCPU {vcpu} is none of process {vmm_pid}")
    return threads


def _places(wanted: Confinement, vcpu_tids: Sequence[int]) -> dict[int, tuple[int | None, frozenset[int]]]:
    """By thread: its first vCPU, and where it belongs. An emulator may run several vCPUs in one thread."""
    places: dict[int, tuple[int | None, frozenset[int]]] = {}
    for vcpu, (tid, cpus) in enumerate(zip(vcpu_tids, wanted.vcpus, strict=True)):
        first, others = places.get(tid, (vcpu, frozenset()))
        places[tid] = (first, cpus | others)
    return places


def _thread_ids(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise HostError(f"process {pid} is gone") from exc


def _status(pid: int, tid: int) -> Mapping[str, str] | None:
    """None for a thread that has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _pin_all(
    groups: MachineGroups, wanted: Confinement, vmm_pid: int, vcpu_tids: Sequence[int], *, threaded: bool
) -> None:
    """Pin until a look at all threads finds none that is new or misplaced."""
    if threaded:
        _fit_thread_groups(groups, wanted, vcpu_tids)
    seen: set[int] = set()
    for _ in range(_PASSES):
        threads = _threads(wanted, vmm_pid, vcpu_tids)
        todo = [thread for thread in threads if thread.tid not in seen or thread.found != thread.expected]
        if not todo:
            return
        for thread in todo:
            if threaded:
                _seat(groups, thread, vmm_pid)
            _pin(thread)
        seen |= {thread.tid for thread in threads}
    if left := _thread_phrases(_misplaced(wanted, vmm_pid, vcpu_tids)):
        raise HostError(f"process {vmm_pid} cannot be confined: {'; '.join(left)}")


def _pin(thread: _Thread) -> None:
    try:
        os.sched_setaffinity(thread.tid, thread.expected)
    except ProcessLookupError:
        return
    except OSError as exc:
        why = ": its cgroup has none of these" if exc.errno == errno.EINVAL else ""
        raise HostError(
            f"{thread.name} cannot run on {format_cpus(thread.expected)}: {cpuset.explain(exc, {})}{why}"
        ) from exc


# -- groups ----------------------------------------------------------------------------------------------------------


def _set_cpus(group: Path, cpus: frozenset[int]) -> None:
    if cpuset.read_cpus(group) == (cpus, cpus):
        return
    cpuset.allow_all_above(group, group.parent.parent)  # they may lack what came back by hotplug
    cpuset.write_cpus(group, cpus)


def _set_mems(group: Path, nodes: frozenset[int]) -> None:
    if nodes and cpuset.read_mems(group)[1] != nodes:
        cpuset.write_mems(group, nodes)


def _wants_thread_groups(groups: MachineGroups, wanted: Confinement) -> bool:
    """A machine that floats needs none; one that had cores before keeps those it has."""
    if not groups.threaded or groups.cpuset is None or not wanted.vcpus:
        return False
    pinned = any(cpus != wanted.emulator for cpus in wanted.vcpus)
    return pinned or cpuset.thread_group_paths(groups.cpuset, 0)[0].exists()


def _lacks_thread_groups(groups: MachineGroups, wanted: Confinement) -> bool:
    assert groups.cpuset is not None
    emulator, places = cpuset.thread_group_paths(groups.cpuset, len(wanted.vcpus))
    return not all(group.exists() for group in (emulator, *places))


def _fit_thread_groups(groups: MachineGroups, wanted: Confinement, vcpu_tids: Sequence[int]) -> None:
    assert groups.cpuset is not None
    emulator, places = cpuset.thread_groups(groups.cpuset, len(wanted.vcpus))
    by_vcpu = dict(_places(wanted, vcpu_tids).values())
    for vcpu, group in enumerate(places):
        _fit(group, by_vcpu.get(vcpu, wanted.vcpus[vcpu]))
    _fit(emulator, wanted.cpus if wanted.wide else wanted.emulator)


def _fit(group: Path, cpus: frozenset[int]) -> None:
    if cpuset.read_cpus(group) != (cpus, cpus):
        cpuset.write_cpus(group, cpus)


def _seat(groups: MachineGroups, thread: _Thread, vmm_pid: int) -> None:
    """Into the threaded group where the thread belongs, if it is in another."""
    assert groups.cpuset is not None
    group = groups.cpuset / ("emu" if thread.vcpu is None else f"v{thread.vcpu}")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{vmm_pid}/task/{thread.tid}/cgroup").read_text().splitlines()
        ending = "/".join(("", *group.parts[-3:]))
        if not any(line.startswith("0::") and line.endswith(ending) for line in lines):
            cpuset.move_thread(group, thread.tid)


# -- words -----------------------------------------------------------------------------------------------------------


def _expect_consistent(wanted: Confinement, vcpu_tids: Sequence[int]) -> None:
    if len(wanted.vcpus) != len(vcpu_tids):
        raise HostError(f"{len(vcpu_tids)} vCPU threads, expected {len(wanted.vcpus)}")
    for cpus in (wanted.emulator, *wanted.vcpus):
        if not cpus or cpus - wanted.cpus:
            raise ValueError(f"threads on {format_cpus(cpus)!r}, expected some of {format_cpus(wanted.cpus)!r}")


def _thread_phrases(threads: Sequence[_Thread]) -> list[str]:
    """One for each vCPU, one for all others that are in the same wrong place."""
    phrases = [_phrase(thread.name, thread.found, thread.expected) for thread in threads if thread.vcpu is not None]
    others: dict[frozenset[int], list[_Thread]] = {}
    for thread in threads:
        if thread.vcpu is None:
            others.setdefault(thread.found, []).append(thread)
    for found, together in others.items():
        more = f" and {len(together) - 1} more" if len(together) > 1 else ""
        phrases.append(_phrase(f"{together[0].name}{more}", found, together[0].expected))
    return phrases


def _phrase(what: str, found: frozenset[int], expected: frozenset[int]) -> str:
    return f"{what} on {format_cpus(found) or 'none'}, expected {format_cpus(expected)}"
