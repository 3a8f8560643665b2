"""The cores of one data directory, for whoever starts machines there: gives them out, confines, repairs, takes back.

All state is in the ledger and in the machines' run directories; every process that looks sees the same. The ledger's
lock is held for each step, so that no two processes give out one core.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmlib import cgroup, cpuset, living, process, vcpu_threads
from vmlib.cores import confine, plan
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.ledger import Book, Ledger, read_entries, reconcile
from vmlib.cores.plan import Host, Policy
from vmlib.cores.topology import Topology, TopologyCache
from vmlib.cores.words import Confinement, Entry, Placement
from vmlib.errors import HostError, VmError
from vmlib.kinds import EventKind
from vmlib.paths import Layout, RunPaths, run_key
from vmlib.resources import NumaCell
from vmlib.spec import MachineSpec

log = logging.getLogger(__name__)

_topology = TopologyCache()
_OUTSIDE = "chv-shared"  # our tree beside the partition


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """Whom to ask about this host, each time anew."""

    policy: Callable[[Topology], Policy] = field(default=lambda _: Policy())
    reserved: Callable[[], frozenset[int]] = field(default=frozenset)  # CPUs that the scheduler has given away whole
    topology: Callable[[], Topology] = field(default=_topology.get)
    rules: bool = True  # this process speaks for the whole host, and may give back a partition that it does not want


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a machine, in the words of a task event."""

    machine_id: str
    kind: EventKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One machine's cores, for people."""

    entry: Entry
    described: str  # the `cores` event


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a new machine got."""

    placement: Placement
    confinement: Confinement
    notices: tuple[Notice, ...]  # about others
    cells: tuple[NumaCell, ...] = ()  # its vCPUs by NUMA node


class Cores:
    """Gives out cores. Safe to be used by several threads and processes at once."""

    def __init__(self, layout: Layout, settings: CoreSettings, known: Callable[[], Iterable[Entry]]) -> None:
        """`known` lists every machine of the data directory that has a record, should the ledger be lost."""
        self._layout = layout
        self._settings = settings
        self._known = known
        self._ledger = Ledger(layout.ledger, layout.ledger_lock)

    # -- one machine ---------------------------------------------------------------------------------------------

    def reserve(self, spec: MachineSpec, *, renews: bool = False) -> Assigned:
        """Write down what a machine gets, whose VMM `renews` its threads or does not.

        Raises SpecError, HostError or NoCapacityError.
        """
        with self._ledger.open() as book:
            host = self.host()  # not before: whoever had the lock may have taken its time
            if not book.entries or book.quarantined:
                self._mourn(book)
            before = _list(book)
            rest = plan.housekeeping(host, before)
            try:
                decision = plan.decide(spec.cores, spec.vcpus, host, before)
            except VmError:  # perhaps somebody is in the ledger who is gone
                if not self._prune(book):
                    raise
                before = _list(book)
                decision = plan.decide(spec.cores, spec.vcpus, host, before)
            entry = Entry(
                id=spec.id,
                name=spec.name,
                owner=spec.owner,
                boot_id=process.boot_id(),
                run_dir=str(self._layout.run(spec.id).root),
                placement=decision.placement,
                level=decision.placement.level,
                renews=renews,
            )
            book.put(*decision.moved, entry)
            book.save()
            entries = _list(book)
            if spec.cores.given:
                host = replace(host, reserved=host.reserved | spec.cores.given)
            notices = [_yielded(moved) for moved in decision.moved]
            if decision.moved or plan.housekeeping(host, entries) != rest:
                notices += self._enforce(book, host, entries, quiet=True)
            return Assigned(
                placement=entry.placement,
                confinement=plan.confinements(host, entries)[entry.id],
                cells=_cells(host, entry.placement),
                notices=tuple(notices),
            )

    def confine(
        self, machine_id: str, groups: cgroup.MachineGroups, *, vmm_pid: int, vcpu_tids: tuple[int, ...]
    ) -> None:
        """Put every thread of a VMM where it belongs, and verify it. Raises HostError."""
        with self._ledger.open() as book:
            host, entries = self.host(), _list(book)
            if machine_id not in book.entries:
                raise HostError(f"machine {machine_id} is not in {self._layout.ledger}")
            entry = book.entries[machine_id]
            wanted = _sized(plan.confinements(host, entries)[machine_id], len(vcpu_tids), entry)
            run = RunPaths(Path(book.entries[machine_id].run_dir))
            _save_threads(run, vcpu_tids)
            confine.apply(groups, wanted, vmm_pid=vmm_pid, vcpu_tids=vcpu_tids)
            _save_wanted(run, wanted)

    def adopt(self, ledger: Path, machine_id: str) -> None:
        """Take over what the ledger of another data directory says of a machine, so that nobody gets its cores.

        Raises HostError.
        """
        found = [entry for entry in read_entries(ledger) if entry.id == machine_id]
        with self._ledger.open() as book:
            for sentence in reconcile(book, boot_id=process.boot_id(), lives=self._lives, all_known=found):
                log.info("ledger: %s", sentence)

    def groups(self, machine_id: str, placement: Placement) -> cgroup.MachineGroups:
        """Where a machine's processes belong. Raises HostError when the partition they belong to cannot be had."""
        host, layout = self.host(), cgroup.read_layout()
        if plan.in_partition(host, placement):
            self.partition()
        return _groups(layout, host, machine_id, placement)

    def partition(self) -> str:
        """Make the partition that the operator asked for, or give back one that is no longer wanted.

        One that a living process of another data directory holds, such as another agent's plugin, is left as it is.
        Returns what is wrong with it in the kernel's words or ours; "" when all is well.
        """
        host, top = self.host(), cgroup.read_layout().cpuset
        state = "" if top is None else cpuset.read_partition(top)
        try:
            stands = top is not None and state not in ("", "member")
            other = cgroup.held_by_other(top, self._layout.data_dir) if top is not None and stands else None
            if not host.policy.partition:
                if top is not None and stands and self._settings.rules and other is None:
                    cpuset.set_partition(top, (), "")
                return ""
            if top is None or cgroup.read_layout().kind != "v2":
                return "needs cgroup v2"
            if not host.policy.dedicated or host.dedicated != host.policy.dedicated:
                # More than the kernel's "invalid (not exclusive)", which it has become or is about to, would tell.
                return f"the scheduler shares out CPU {format_cpus(host.policy.dedicated - host.dedicated)} of it"
            if other is not None:
                return f"the host's partition is held for data directory {other}, expected one agent with one"
            if state != host.policy.partition and (why := self._strangers_inside(host, top)):
                return why
            cpuset.set_partition(top, host.dedicated, host.policy.partition)
            if self._settings.rules:
                cgroup.hold(top, process.itself(), self._layout.data_dir)
        except HostError as exc:
            return state if "invalid" in state else str(exc)
        return ""

    def _strangers_inside(self, host: Host, top: Path) -> str:
        """Machines from before the operator wanted a partition, who would find themselves on its cores."""
        names = [
            entry.name
            for entry in read_entries(self._layout.ledger)
            # A keeper's place is outside also when its VMM's is not.
            if (top / run_key(entry.id) / "keeper").exists()
            or (not plan.in_partition(host, entry.placement) and (top / run_key(entry.id) / "vmm").exists())
        ]
        return f"{', '.join(names)} started before there was one: restart it" if names else ""

    # -- all of them ---------------------------------------------------------------------------------------------

    def host(self) -> Host:
        topology = self._settings.topology()
        return Host(
            topology=topology,
            policy=self._settings.policy(topology),
            reserved=self._settings.reserved() & topology.online,
        )

    def entries(self) -> tuple[Entry, ...]:
        """Everyone in the ledger, oldest first."""
        with self._ledger.open() as book:
            return tuple(_list(book))

    def view(self, machine_id: str, vcpus: int) -> "View | None":
        """What a machine has now; None for one that is not in the ledger."""
        host, entries = self.host(), self.entries()
        found = next((entry for entry in entries if entry.id == machine_id), None)
        if found is None:
            return None
        return View(
            entry=found,
            described=plan.describe(found, host, entries, vcpus),
        )

    def reconcile(self) -> list[Notice]:
        """Bring ledger, cgroups and threads in line with what lives and what the scheduler has reserved.

        One that is called while all is well reads a few files a machine and writes nothing.
        """
        with self._ledger.open() as book:
            host = self.host()
            notices = self._mourn(book)
            self._prune(book)
            moved = plan.rearrange(host, _list(book))
            book.put(*moved)
            notices += [_yielded(entry) for entry in moved]
            notices += _levels(book, host)
            notices += self._partition_notices(book, host)
            book.save()
            notices += self._enforce(book, host, _list(book))
        return notices

    def _partition_notices(self, book: Book, host: Host) -> list[Notice]:
        """Tell each machine in the partition once what is wrong with it."""
        if not host.policy.partition:
            return []
        said = self.partition()
        notices = []
        for entry in _list(book):
            if plan.in_partition(host, entry.placement) and entry.warned != said:
                book.put(replace(entry, warned=said))
                if said:
                    notices.append(Notice(entry.id, "partition invalid", f"partition invalid: {said}"))
        return notices

    def _enforce(self, book: Book, host: Host, entries: list[Entry], *, quiet: bool = False) -> list[Notice]:
        """Put the threads of every running machine where they belong; `quiet` when they move because we say so."""
        notices = []
        layout = cgroup.read_layout()
        for machine_id, confinement in plan.confinements(host, entries).items():
            entry = book.entries[machine_id]
            run = RunPaths(Path(entry.run_dir))
            who, tids = process.load_identity(run.vmm), _load_threads(run)
            if who is None or tids is None or not process.alive(who):
                continue  # on its way up or down
            before, tids = tids, _renewed(run, who.pid, tids) if entry.renews else tids
            groups = _groups_of_running(layout, machine_id)
            wanted = _sized(confinement, len(tids), entry)
            try:
                if not confine.drift(groups, wanted, vmm_pid=who.pid, vcpu_tids=tids):
                    continue
                repaired = confine.apply(groups, wanted, vmm_pid=who.pid, vcpu_tids=tids)
            except (HostError, OSError, ValueError) as exc:  # one machine costs no other its cores
                if process.alive(who):
                    log.warning("cores not confined machine=%s: %s", machine_id, exc)
                continue
            if repaired and not (quiet or tids != before) and not self._expected(entry, wanted):
                book.put(replace(entry, repairs=entry.repairs + 1))
                notices.append(Notice(machine_id, "cores repaired", f"cores repaired: {'; '.join(repaired)}"))
            _save_wanted(run, wanted)
        return notices

    def _expected(self, entry: Entry, wanted: Confinement) -> bool:
        """Whether a machine moves because housekeeping or its placement changed, not because somebody meddled."""
        return _load_wanted(RunPaths(Path(entry.run_dir))) != _dump(wanted)

    def _mourn(self, book: Book) -> list[Notice]:
        """Enter machines that run and are missing, as after the loss of the ledger, or the return of an old one."""
        if book.quarantined:
            log.warning("ledger made anew: %s", book.reason)
        missing = [entry for entry in self._known() if entry.id not in book.entries and _vmm_lives(entry)]
        if not missing:
            return []
        said = reconcile(book, boot_id=process.boot_id(), lives=self._lives, all_known=missing, started_at=_vmm_started)
        for sentence in said:
            log.info("ledger: %s", sentence)
        entered = [book.entries[entry.id] for entry in missing if entry.id in book.entries]
        return [_yielded(entry) for entry in entered if entry.yielded]

    def _prune(self, book: Book) -> bool:
        """Drop those who are gone, and note who is about to be; true when there was somebody."""
        changed = False
        for entry in _list(book):
            if entry.boot_id != process.boot_id() or not self._lives(entry):
                log.info("ledger: machine %s is gone, CPU %s free", entry.id, format_cpus(entry.placement.cpus))
                book.drop(entry.id)
                changed = True
            elif not entry.draining and _vmm_ended(entry):
                book.put(replace(entry, draining=True))
                changed = True
        return changed

    def _lives(self, entry: Entry) -> bool:
        """A process of it lives, its cgroup is not empty, or somebody is starting it or taking it back right now."""
        run_dir = Path(entry.run_dir)
        return (
            living.vmm_or_keeper_lives(run_dir)
            or bool(_processes(entry.id))
            or living.being_handled(self._layout, entry.name)
        )


def drain(layout: Layout, machine_id: str) -> None:
    """A machine is about to end: whoever finds no core free may come again. Never raises for a full disk."""
    if not layout.ledger.exists():
        return
    try:
        with Ledger(layout.ledger, layout.ledger_lock).open() as book:
            if (entry := book.entries.get(machine_id)) is not None and not entry.draining:
                book.put(replace(entry, draining=True))
    except (OSError, HostError) as exc:
        log.warning("ledger not written, nobody knows that machine %s is about to end: %s", machine_id, exc)


def free(layout: Layout, machine_id: str) -> None:
    """The undo of `reserve`: needs neither policy nor topology. Raises HostError while a process is in the group."""
    if left := _processes(machine_id):
        raise HostError(f"cores of {machine_id}: process {left[0]} is still in its cgroup")
    if (who := process.load_identity(layout.run(machine_id).vmm)) is not None and process.alive(who):
        raise HostError(f"cores of {machine_id}: its VMM, process {who.pid}, still runs")
    if not layout.ledger.exists():
        return
    try:
        with Ledger(layout.ledger, layout.ledger_lock).open() as book:
            book.drop(machine_id)
    except (OSError, HostError) as exc:
        # A full disk. The machine is gone, and whoever next wants its cores sees that.
        log.warning("ledger not written, machine %s stays in it for now: %s", machine_id, exc)


def _groups(layout: cgroup.CgroupLayout, host: Host, machine_id: str, placement: Placement) -> cgroup.MachineGroups:
    """Where a machine's processes are. A partition holds VMMs on dedicated cores and nothing else."""
    key = run_key(machine_id)
    if not host.policy.partition or layout.kind != "v2":
        return cgroup.paths_for(layout, key)
    outside = cgroup.paths_for(layout, key, top=_OUTSIDE)
    if not plan.in_partition(host, placement):
        return outside
    return replace(cgroup.paths_for(layout, key), keeper=outside.keeper, keeper_cpuset=outside.keeper_cpuset)


def _groups_of_running(layout: cgroup.CgroupLayout, machine_id: str) -> cgroup.MachineGroups:
    """Where its start made them: the operator may have changed `partition` since."""
    key = run_key(machine_id)
    groups, outside = cgroup.paths_for(layout, key), cgroup.paths_for(layout, key, top=_OUTSIDE)
    if outside.vmm and outside.vmm[0].exists():
        return outside
    if outside.keeper and outside.keeper[0].exists():
        return replace(groups, keeper=outside.keeper, keeper_cpuset=outside.keeper_cpuset)
    return groups


def _vmm_lives(entry: Entry) -> bool:
    who = process.load_identity(RunPaths(Path(entry.run_dir)).vmm)
    return who is not None and process.alive(who)


def _vmm_ended(entry: Entry) -> bool:
    who = process.load_identity(RunPaths(Path(entry.run_dir)).vmm)
    return who is not None and not process.alive(who)


def _vmm_started(entry: Entry) -> float:
    who = process.load_identity(RunPaths(Path(entry.run_dir)).vmm)
    return 0.0 if who is None else float(who.start_time)


def _processes(machine_id: str) -> list[int]:
    """In the VMM's groups, wherever they are."""
    layout, key = cgroup.read_layout(), run_key(machine_id)
    groups = (cgroup.paths_for(layout, key), cgroup.paths_for(layout, key, top=_OUTSIDE))
    return [pid for one in groups for path in one.vmm for pid in cgroup.pids(path)]


def _list(book: Book) -> list[Entry]:
    return list(book.entries.values())


def _yielded(entry: Entry) -> Notice:
    return Notice(entry.id, "yielded", f"yielded: {entry.yielded}")


def _levels(book: Book, host: Host) -> list[Notice]:
    """Note in the ledger which level each machine really has now."""
    notices = []
    entries = _list(book)
    for entry in entries:
        level = plan.level_now(entry, host, entries)
        if level == entry.level:
            continue
        book.put(replace(entry, level=level))
        if not entry.yielded or entry.placement.cpus:  # that it yielded was said
            notices.append(Notice(entry.id, "cores", plan.level_words(entry, host, entries)))
    return notices


def _sized(wanted: Confinement, vcpus: int, entry: Entry) -> Confinement:
    """A machine that floats has all its vCPUs where the rest of it is."""
    return replace(wanted, vcpus=wanted.vcpus or (wanted.emulator,) * vcpus, wide=entry.renews)


def _cells(host: Host, placement: Placement) -> tuple[NumaCell, ...]:
    nodes: dict[int, list[int]] = {}
    for vcpu, cpu in enumerate(placement.vcpus):
        nodes.setdefault(host.topology.node_of(cpu) or 0, []).append(vcpu)
    return tuple(NumaCell(node=node, vcpus=tuple(vcpus)) for node, vcpus in sorted(nodes.items()))


def _renewed(run: RunPaths, pid: int, tids: tuple[int, ...]) -> tuple[int, ...]:
    """The threads of the vCPUs, which are others since the guest's last reboot. In the middle of one: those before."""
    found = vcpu_threads.by_name(pid)
    if len(found) != len(tids) or found == tids:
        return tids
    _save_threads(run, found)
    return found


# -- beside the machine: what only means something as long as it runs -------------------------------------------------


def _save_threads(run: RunPaths, tids: tuple[int, ...]) -> None:
    _put(run.threads, json.dumps(list(tids)))


def _load_threads(run: RunPaths) -> tuple[int, ...] | None:
    with contextlib.suppress(OSError, ValueError):
        return tuple(int(tid) for tid in json.loads(run.threads.read_text()))
    return None


def _save_wanted(run: RunPaths, wanted: Confinement) -> None:
    _put(run.confinement, _dump(wanted))


def _load_wanted(run: RunPaths) -> str:
    with contextlib.suppress(OSError):
        return run.confinement.read_text()
    return ""


def _dump(wanted: Confinement) -> str:
    return json.dumps(
        [
            sorted(wanted.cpus),
            [sorted(one) for one in wanted.vcpus],
            sorted(wanted.emulator),
            sorted(wanted.keeper),
            sorted(wanted.nodes),
        ]
    )


def _put(path: Path, text: str) -> None:
    """Not synced: it means nothing after a reboot."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.rename(path)
