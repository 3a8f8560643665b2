"""How a machine comes to be: preflight, spawn, verify, boot. With `preflight` the one module that sees all parts.

Synchronous on purpose: whoever has an event loop calls from a thread, whoever has none just calls.
"""

import contextlib
import errno
import glob
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vmlib import cgroup, failpoint, files, helpers, hugepages, memory, postflight, probe, process, stray, version
from vmlib.aside import set_aside
from vmlib.cores.service import Assigned, Cores, Notice
from vmlib.cores.words import Entry
from vmlib.disk import nfs
from vmlib.disk.cache import ImageCache
from vmlib.disk.intake import Tell
from vmlib.disk.nfs_probe import silence
from vmlib.disk.volume import explain_lock
from vmlib.errors import HostError, HypervisorError, LaunchError, NoCapacityError, SpecError, VmError
from vmlib.hypervisor.base import Hypervisor, LaunchPlan, Vmm
from vmlib.journal import Journal
from vmlib.keeper import client as keeper
from vmlib.keeper.plan import Cage, HelperPlan, KeeperPlan, reboot_timeout_s
from vmlib.limits import vmm_limits
from vmlib.net.names import link_mark
from vmlib.net.user import explain_forward_failure
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.preflight import Preflight, firmware_of, handed_over, make_private, nic_record
from vmlib.record import MachineRecord, Mark, RunMark, damaged, load_machine, load_mark
from vmlib.resources import Resources
from vmlib.running import Machine, take_back
from vmlib.settings import HostSettings
from vmlib.spec import MachineSpec
from vmlib.stray import Stray

_LAST_WORDS_S = 2.0
_MAX_THREADS = 1024  # of a VMM beside its vCPUs: each disk's pool has up to 64

Choose = Callable[[MachineSpec], tuple[Hypervisor, str]]


class Machines:
    """All machines of one data directory."""

    def __init__(self, settings: HostSettings, choose: Choose, attach: Callable[[str, Path], Vmm]) -> None:
        self._settings = settings
        self._layout = settings.layout
        self._preflight = Preflight(settings)
        self._choose = choose
        self._attach = attach
        self.cores = Cores(settings.layout, settings.cores, self._known)

    # -- start ---------------------------------------------------------------------------------------------------

    def bring_images(self, spec: MachineSpec, tell: Tell | None = None) -> None:
        """Do the part of a start that may take minutes: unpack and copy into the image cache what the job brings along.

        For a caller that wants to tell of it, or to have it done elsewhere than the rest; a start does without.
        Raises VmError.
        """
        try:
            self._preflight.bring_images(spec, tell)
        except OSError as exc:
            raise _translate(exc) from exc

    @property
    def images(self) -> ImageCache:
        return self._preflight.images

    def start(self, spec: MachineSpec) -> Machine:
        """Start a machine and let its guest run. A second call with the same id returns what the first one made.

        Raises VmError; whatever was made until then is gone again.
        """
        try:
            return self._start_once(spec, self._layout.machine(spec.name))
        except OSError as exc:
            raise _translate(exc) from exc
        finally:
            keeper.reap()

    def _start_once(self, spec: MachineSpec, paths: MachinePaths) -> Machine:
        version.expect_ours(self._layout)
        for directory in (self._layout.data_dir, self._layout.machines, self._layout.run_dir):
            make_private(directory)
        version.claim(self._layout)
        make_private(paths.root)
        with files.locked(paths.lock):
            _set_aside_damaged(paths)
            if (machine := self._already_started(paths, spec.id)) is not None:
                return machine
            postflight.clear(paths, self._layout)
            paths.exit_record.unlink(missing_ok=True)
            Mark(name=spec.name, owner=spec.owner, alive_while=str(spec.alive_while or "")).save(paths.mark)
            return self._start(spec, paths)

    def _already_started(self, paths: MachinePaths, machine_id: str) -> Machine | None:
        record = load_machine(paths.record)
        if record is None or record.id != machine_id:
            return None
        machine = self._machine(record, paths)
        if record.boot_id == process.boot_id() and machine.run.committed.exists():
            if not machine.running():
                machine.settle_locked()
            return machine
        return machine if machine.exit_record() is not None else None

    def _start(self, spec: MachineSpec, paths: MachinePaths) -> Machine:
        hypervisor, reason = self._choose(spec)
        run = self._layout.run(spec.id)
        journal = Journal(paths.journal, postflight.actions(self._layout))
        with journal.rollback_on_error(), ExitStack() as ours:
            failpoint.hit("start.journal")
            journal.note("run_dir.remove", path=str(run.root))
            make_private(run.root.parent)
            run.root.mkdir(mode=0o700)
            RunMark(
                id=spec.id,
                name=spec.name,
                owner=spec.owner,
                data_dir=str(self._layout.data_dir),
                data_identity=files.directory_identity(self._layout.data_dir),
            ).save(run.mark)
            failpoint.hit("start.run_dir")

            spec, given = self._preflight.with_hooks(spec, run, ours, journal)
            failpoint.hit("start.hooks")
            if self._settings.hooks:
                hypervisor, reason = self._choose(spec)  # they may have changed what the machine needs
            spec = self._preflight.mounted(spec, run, journal)
            failpoint.hit("start.mounted")
            who = self._preflight.credentials(hypervisor, paths, run, journal)
            devices = self._preflight.devices(spec, who, paths, run, journal)
            failpoint.hit("start.devices")
            plugged = self._preflight.plugged(spec, hypervisor, run, ours, journal)
            spec = replace(spec, nics=tuple(one.spec for one in plugged))
            nics = tuple(one.nic for one in plugged)
            res, told = self._preflight.resources(spec, given, nics, paths, run, who, ours, journal)
            res = replace(res, vfio=devices, firmware=firmware_of(spec, hypervisor, paths, ours))
            if hypervisor.capabilities.opens_files:
                try:
                    res = handed_over(res, paths, self._layout, run, ours)
                except SpecError as exc:  # found only now; another one may take the files as they are
                    hypervisor, reason = self._choose(replace(spec, avoid={hypervisor.name: str(exc)}))
                    if hypervisor.capabilities.opens_files:
                        raise
                    res = replace(res, firmware=firmware_of(spec, hypervisor, paths, ours))
            failpoint.hit("start.files")
            journal.note("cores.free", machine_id=spec.id)
            can = hypervisor.capabilities
            assigned = self.cores.reserve(spec, renews=not can.threads_before_boot)
            failpoint.hit("start.ledger")
            groups = self._groups(spec, assigned, hypervisor, run, journal)
            failpoint.hit("start.cgroups")

            if not can.threads_before_boot:
                res = _placed(res, assigned)
            plan = hypervisor.plan(spec, res, reason=reason)
            journal.note("machine.end", run_dir=str(run.root))
            keeper_plan = _keeper_plan(spec, plan, paths, run, groups, helpers.plans(res, run, groups, self._layout))
            memory_lock = memory.memory_lock_bytes(spec, hypervisor.overhead_mib(spec))
            keeper_plan = replace(
                keeper_plan,
                memory_lock_bytes=memory_lock,
                limits=vmm_limits(spec, res, image_max_bytes=self._settings.image_max_size_bytes),
                cage=_cage(plan, self._layout),
            )
            if not can.threads_before_boot:
                # They inherit it from the first thread; a vCPU leaves for its own place by itself, or by us.
                keeper_plan = replace(keeper_plan, cpus=sorted(assigned.confinement.emulator))
            try:
                lease, vmm_identity = keeper.start_keeper(keeper_plan)
            except LaunchError as exc:
                raise self._explained(exc, spec) from exc
            ours.enter_context(lease)
            failpoint.hit("start.spawned")
            try:
                vmm = hypervisor.prepare(plan, run.root, console=lease.show_console)
                ours.callback(vmm.close)
                if can.threads_before_boot:
                    self._verify_and_pin(vmm, spec, groups, vmm_identity)
                    vmm.boot()
                else:
                    vmm.boot()
                    self._verify_and_pin(vmm, spec, groups, vmm_identity)
            except HypervisorError as exc:
                raise self._explained(_with_last_words(exc, lease, vmm_identity), spec) from exc
            failpoint.hit("start.booted")
            record = MachineRecord(
                id=spec.id,
                name=spec.name,
                owner=spec.owner,
                boot_id=process.boot_id(),
                started_at=time.time(),
                run_dir=str(run.root),
                hypervisor=hypervisor.name,
                reason=reason,
                vcpus=spec.vcpus,
                memory_mib=spec.memory_mib,
                hugepages=spec.hugepages,
                uid=who.uid,
                vmm_pid=vmm_identity.pid,
                vmm_start_time=vmm_identity.start_time,
                placement=assigned.placement,
                renews=not can.threads_before_boot,
                nics=tuple(nic_record(one) for one in plugged),
                vfio=spec.vfio,
                alive_while=str(spec.alive_while or ""),
                agent=spec.agent,
            )
            record.save(paths.record)
            failpoint.hit("start.recorded")
            try:
                lease.commit()
            except HypervisorError:
                paths.record.unlink()  # it was no start after all
                raise
            failpoint.hit("start.committed")
        machine = self._machine(record, paths)
        odd = [Notice(spec.id, "link lost", one.notice) for one in plugged if one.notice]
        machine.notices = (*assigned.notices, *told, *odd)
        return machine

    def _verify_and_pin(self, vmm: Vmm, spec: MachineSpec, groups: cgroup.MachineGroups, who: process.Identity) -> None:
        threads = _verified_threads(vmm, spec)
        _expect_only_given_files(vmm)
        failpoint.hit("start.verified")
        self.cores.confine(spec.id, groups, vmm_pid=who.pid, vcpu_tids=threads)
        failpoint.hit("start.pinned")

    def _groups(
        self, spec: MachineSpec, assigned: Assigned, hypervisor: Hypervisor, run: RunPaths, journal: Journal
    ) -> cgroup.MachineGroups:
        """Make the machine's cgroups, so that the VMM is born where it belongs and its memory with it."""
        wanted = assigned.confinement
        if spec.hugepages:
            hugepages.check(spec.memory_mib, wanted.nodes)
        groups = self.cores.groups(spec.id, assigned.placement)
        journal.note_all("cgroup.remove", [{"path": str(path)} for path in (*groups.vmm, *groups.keeper)])
        limits = cgroup.Limits(
            memory_bytes=memory.memory_limit_bytes(spec, hypervisor.overhead_mib(spec)),
            pids=_MAX_THREADS + spec.vcpus,
            cpu_shares=spec.cores.cpu_shares or None,
        )
        mark = link_mark(spec.owner, run.root)
        cgroup.prepare(groups, limits=limits, cpus=wanted.cpus, mems=wanted.nodes, keeper_cpus=wanted.keeper, mark=mark)
        return groups

    def _explained(self, exc: HypervisorError, spec: MachineSpec) -> VmError:
        for nic in spec.nics:
            if (sentence_ := explain_forward_failure(f"{exc}\n{exc.log_tail}", nic.link)) is not None:
                return NoCapacityError(sentence_)
        if (sentence_ := explain_lock(exc.log_tail, spec.mounts)) is not None:
            return NoCapacityError(sentence_)
        exports = {export.name: export for export in nfs.exports_of(spec)}
        for name, why in silence(exports.values()).items():
            if why:  # a VMM that waits for it answers nobody
                return NoCapacityError(f"nfs.{name} ({exports[name].server}): {why}")
        return exc

    # -- later ---------------------------------------------------------------------------------------------------

    def recover(self, name: str, machine_id: str) -> Machine:
        """Find a machine that an earlier process started; it may have ended meanwhile.

        Raises HostError when nothing is known of it, or when the data directory is of another version.
        """
        version.expect_ours(self._layout)
        machine = self.find(name)
        if machine is None or machine.id != machine_id:
            raise HostError(f"no record of machine {machine_id} in {self._layout.machine(name).root}")
        return machine

    def destroy(self, name: str, machine_id: str) -> None:
        """Take back everything of that very start, running or not, known to this process or not.

        Does nothing when the machine's directory belongs to another start by now. Raises HostError when something is
        left.
        """
        version.expect_ours(self._layout)
        paths = self._layout.machine(name)
        if not paths.root.exists():
            return
        with files.locked(paths.lock):
            take_back(paths, self._layout, machine_id)

    def records(self) -> list[MachineRecord]:
        """Every machine of the data directory, whoever owns it."""
        found = (load_machine(path) for path in files.each(self._layout.machines, "machine.json"))
        return [record for record in found if record is not None]

    def all(self, prefix: str = "") -> list[Machine]:
        """Every machine whose name begins so, whoever owns it and whichever start it was."""
        paths = sorted(self._layout.machines.glob(f"{glob.escape(prefix)}*/*/machine.json"))
        records = (load_machine(path) for path in paths)
        return [self._machine(one, self._layout.machine(one.name)) for one in records if one is not None]

    def find(self, name: str) -> Machine | None:
        """The machine of that name, whichever start it was; None when none came to run."""
        paths = self._layout.machine(name)
        record = load_machine(paths.record)
        return None if record is None else self._machine(record, paths)

    def marks(self) -> list[Mark]:
        """Every machine's directory, also of those that never came to run. Where the mark is damaged, by its record."""
        found = (self._mark(MachinePaths(path)) for path in self._layout.machines.glob("*/*"))
        return [mark for mark in found if mark is not None]

    def _mark(self, paths: MachinePaths) -> Mark | None:
        if (mark := load_mark(paths.mark)) is not None:
            return mark
        record = load_machine(paths.record)
        return None if record is None else Mark(name=record.name, owner=record.owner, alive_while=record.alive_while)

    def stray(self, owner: str) -> list[Stray]:
        """What is left of that owner's machines here and nobody knows any more. Raises OtherVersionError."""
        version.expect_ours(self._layout)
        return stray.find(self._layout, owner)

    def remove_stray(self, one: Stray) -> bool:
        """False when somebody is at work on it. Raises HostError, OSError."""
        return stray.remove(one, self._layout)

    def remove(self, name: str, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """End what runs in a machine's directory and remove it, disks and all. Raises HostError.

        False when it was gone already, or when `unless` says so once nobody else is at work there.
        """
        version.expect_ours(self._layout)
        paths = self._layout.machine(name)
        try:
            with files.locked(paths.lock):
                if unless():
                    return False
                _set_aside_damaged(paths)
                postflight.clear(paths, self._layout)
                # Whoever is killed here leaves the mark: the next one goes on.
                for path in paths.root.iterdir():
                    if path not in (paths.mark, paths.lock):
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                shutil.rmtree(paths.root)
        except OSError as exc:
            # Another one was faster, or waited for the lock and goes on now.
            if paths.root.exists() and exc.errno != errno.ENOTEMPTY:
                raise
            return False
        with contextlib.suppress(OSError):
            paths.root.parent.rmdir()  # the alloc's, once its last machine is gone
        return True

    def _known(self) -> Iterator[Entry]:
        for record in self.records():
            if record.placement is not None:
                yield Entry(
                    id=record.id,
                    name=record.name,
                    owner=record.owner,
                    boot_id=record.boot_id,
                    run_dir=record.run_dir,
                    placement=record.placement,
                    level=record.placement.level,
                    renews=record.renews,
                )

    def _machine(self, record: MachineRecord, paths: MachinePaths) -> Machine:
        return Machine(record, paths, self._layout, lambda run_dir: self._attach(record.hypervisor, run_dir))


def _set_aside_damaged(paths: MachinePaths) -> None:
    """For whoever holds the machine's lock."""
    for path, why in damaged(paths):
        set_aside(path, why)


def _keeper_plan(
    spec: MachineSpec,
    plan: LaunchPlan,
    paths: MachinePaths,
    run: RunPaths,
    groups: cgroup.MachineGroups,
    helper_plans: list[HelperPlan],
) -> KeeperPlan:
    return KeeperPlan(
        id=spec.id,
        run_dir=str(run.root),
        exit_record=str(paths.exit_record),
        stdout=str(spec.stdout),
        stderr=str(spec.stderr),
        argv=list(plan.argv),
        files=dict(plan.files),
        listeners=dict(plan.listeners),
        environment=dict(plan.environment),
        uid=plan.credentials.uid,
        gid=plan.credentials.gid,
        groups=list(plan.credentials.groups),
        netns=plan.netns,
        routes=plan.routes,
        helpers=helper_plans,
        cgroups=[str(path) for path in groups.vmm],
        keeper_cgroups=[str(path) for path in groups.keeper],
        memory_group=str(groups.memory or ""),
        dialect=plan.dialect,
        monitor=plan.monitor,
        channel=plan.channel,
        reboot_timeout_s=reboot_timeout_s(spec.memory_mib, hugepages=spec.hugepages, helpers=bool(helper_plans)),
        on_reboot=plan.on_reboot,
        on_panic=plan.on_panic,
    )


def _cage(plan: LaunchPlan, layout: Layout) -> Cage | None:
    if not probe.may_shut_in():
        return None
    return Cage(
        shows=list(plan.shows),
        nodes=list(plan.nodes),
        hides=[str(layout.data_dir), str(layout.run_dir)],
        own_network=plan.own_network and not plan.netns,
        terminals=plan.terminals,
    )


def _placed(res: Resources, assigned: Assigned) -> Resources:
    """What a VMM is told of its vCPUs' places. Those that may have to yield are moved from outside only."""
    fixed = assigned.placement.level == "node"
    return replace(res, affinity=assigned.confinement.vcpus if fixed else (), cells=assigned.cells if fixed else ())


def _verified_threads(vmm: Vmm, spec: MachineSpec) -> tuple[int, ...]:
    """The threads of the vCPUs, by index."""
    threads = sorted(vmm.vcpus(), key=lambda thread: thread.index)
    if [thread.index for thread in threads] != list(range(spec.vcpus)):
        raise LaunchError(f"the VMM runs {len(threads)} vCPU threads, expected {spec.vcpus}")
    return tuple(thread.thread_id for thread in threads)


def _expect_only_given_files(vmm: Vmm) -> None:
    """An image whose header was checked may have got another one before the VMM read it: the job can write there."""
    if found := vmm.foreign_files():
        raise SpecError(f"an image names {found[0]!r} in its header, expected one that is complete in itself")


def _with_last_words(exc: HypervisorError, lease: keeper.Lease, who: process.Identity) -> HypervisorError:
    """A VMM that ends before its guest runs says why on its stderr, which its keeper read; so may one that hangs."""
    if exc.says_why:
        return exc
    if (found := _farewell(lease)) is not None:
        reason, words, _ = found
        return LaunchError(reason, log_tail=words) if reason else exc
    process.send_signal(who, 9)  # it is of no use any more
    _, _, complaint = _farewell(lease) or ("", "", "")
    return LaunchError(f"{exc}: {complaint}") if complaint else exc


def _farewell(lease: keeper.Lease) -> tuple[str, str, str] | None:
    """Why the VMM ended, its last words, and the last thing that it complained of; None when it has not ended."""
    with contextlib.suppress(OSError):
        while (message := lease.receive(_LAST_WORDS_S)) is not None:
            match message:
                case {"exit": dict(), "reason": str(reason), "stderr": str(words), "complaint": str(complaint)}:
                    return reason, words.strip(), complaint
    return None


def _translate(exc: OSError) -> VmError:
    """An error of the host's that no part put into words."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return NoCapacityError(f"{exc.filename or 'host'}: {(exc.strerror or str(exc)).lower()}")
    return HostError(f"{exc.filename or 'host'}: {(exc.strerror or str(exc)).lower()}")
