"""Taking back what a start of a machine made, by whoever is there to do it: the undo actions behind the journal."""

import contextlib
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vmlib import cgroup, files, hook_run, living, process, vfio
from vmlib.cores import service as cores
from vmlib.disk import nfs
from vmlib.disk.persistent import Holder, PersistentDisks
from vmlib.errors import HostError
from vmlib.journal import Journal
from vmlib.net.names import read_mark
from vmlib.net.stray import marked_links, remove_link
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.record import load_machine, load_run_mark

log = logging.getLogger(__name__)

_KEEPER_S = 5.0  # for a keeper to write down the end of a VMM that was killed
_KILLED_S = 10.0


def actions(layout: Layout) -> Mapping[str, Callable[..., None]]:
    """Every undo that a journal of this data directory may name."""

    def remove_run_dir(path: str) -> None:
        # Only what lies directly in our own run directory: a damaged journal must not cost anything else.
        if Path(path).parent != layout.runs:
            raise HostError(f"{path} is not beneath {layout.runs}")
        # It says which process is the VMM: as long as that lives, somebody must be able to find it.
        _expect_ended(RunPaths(Path(path)))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def free_uid(path: str, run_dir: str) -> None:
        if Path(path).name != "uid" or layout.machines not in Path(path).parents:
            raise HostError(f"{path} is not beneath {layout.machines}")
        # Another machine with the uid of one that lives could reach its memory.
        _expect_ended(RunPaths(Path(run_dir)))
        Path(path).unlink(missing_ok=True)

    def free_vfio(path: str, run_dir: str) -> None:
        if Path(path).name != "vfio" or layout.machines not in Path(path).parents:
            raise HostError(f"{path} is not beneath {layout.machines}")
        _expect_ended(RunPaths(Path(run_dir)))
        Path(path).unlink(missing_ok=True)

    def give_back_vfio(node: str, uid: str, was: str, run_dir: str) -> None:
        _expect_ended(RunPaths(Path(run_dir)))
        vfio.give_back(Path(node), uid=int(uid), was=int(was))

    def hook_postflight(hook: str, state: str, machine: str, machine_id: str, run_dir: str) -> None:
        # What the hook gave is the VMM's as long as that lives.
        _expect_ended(RunPaths(Path(run_dir)))
        hook_run.run_postflight(hook, json.loads(state), machine=machine, machine_id=machine_id)

    def unmount(path: str, run_dir: str) -> None:
        if Path(path).parent.parent != layout.nfs:
            raise HostError(f"{path} is not beneath {layout.nfs}")
        _expect_ended(RunPaths(Path(run_dir)))
        nfs.unmount(Path(path))

    return {
        "run_dir.remove": remove_run_dir,
        "uid.free": free_uid,
        "vfio.free": free_vfio,
        "vfio.give_back": give_back_vfio,
        "hook.postflight": hook_postflight,
        "nfs.unmount": unmount,
        "link.remove": lambda name, mac, mark: remove_link(name, mac=mac, mark=mark),
        "disk.release": lambda directory, machine_id: persistent_disks(layout).release(Path(directory), machine_id),
        "cgroup.remove": lambda path: _remove_cgroup(Path(path)),
        "cores.free": lambda machine_id: cores.free(layout, machine_id),
        "machine.end": lambda run_dir: end_run(RunPaths(Path(run_dir)), layout),
    }


def persistent_disks(layout: Layout) -> PersistentDisks:
    def busy(holder: Holder) -> bool:
        if holder.boot_id != process.boot_id():
            return False
        return living.vmm_or_keeper_lives(Path(holder.run_dir)) or living.being_handled(layout, holder.name)

    def claims(directory: Path) -> Iterator[Holder]:
        for path in files.each(layout.machines, "journal"):
            undos = Journal(path, {}).pending()
            run_dir = next((undo.args.get("path", "") for undo in undos if undo.action == "run_dir.remove"), "")
            name = f"{path.parent.parent.name}/{path.parent.name}"
            for undo in undos:
                if undo.action == "disk.release" and undo.args.get("directory") == str(directory) and run_dir:
                    id_ = undo.args.get("machine_id", "")
                    yield Holder(machine_id=id_, name=name, boot_id=process.boot_id(), run_dir=run_dir)

    return PersistentDisks(layout.disks, busy, claims)


def clear(paths: MachinePaths, layout: Layout) -> None:
    """Take back what the last start in this directory made. Its disks and its exit record stay.

    Raises HostError when something could not be taken back; it is then tried again at the next call.
    """
    failures = Journal(paths.journal, actions(layout)).unwind()
    for run, machine_id in () if failures else _forgotten(paths, layout):
        failures += take_back_run(run, machine_id, layout)
    if failures:
        raise HostError(f"{paths.root}: {failures[0]}", hint="the next start, DestroyTask or sweep tries again")
    for path in (paths.record, paths.uid, paths.vfio):
        path.unlink(missing_ok=True)


def _forgotten(paths: MachinePaths, layout: Layout) -> Iterator[tuple[RunPaths, str]]:
    """Starts in this directory of which something is left although the journal names it no more."""
    record = load_machine(paths.record)
    if record is not None:
        run = RunPaths(Path(record.run_dir))
        if run.root.exists() or _groups_of(run):
            yield run, record.id
    # An unwound journal leaves no uid and no devices behind: with those here, it was lost.
    if not (any(paths.root.glob("*.corrupt-*")) or paths.uid.exists() or paths.vfio.exists()):
        return
    name = str(paths.root.relative_to(layout.machines))
    for path in layout.runs.glob("*/mark.json"):
        mark = load_run_mark(path)
        if mark is not None and (mark.name, mark.data_dir) == (name, str(layout.data_dir)):
            yield RunPaths(path.parent), mark.id


def take_back_run(run: RunPaths, machine_id: str, layout: Layout) -> list[Exception]:
    """Take back one start without a journal, by the marks of what it has made. Returns what went wrong."""
    if run.root.parent != layout.runs:
        return [HostError(f"{run.root} is not beneath {layout.runs}")]

    def links() -> None:
        for link in marked_links():
            if link.run_dir == run.root:
                remove_link(link.name, mac="", mark=link.mark)

    def groups() -> None:
        for path in _groups_of(run):
            _remove_cgroup(path)

    def mounts() -> None:
        nfs.clear(layout.mounts(run.root))

    def directory() -> None:
        _expect_ended(run)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(run.root)

    failures: list[Exception] = []
    free = functools.partial(cores.free, layout, machine_id)
    for step in (functools.partial(end_run, run, layout), groups, free, links, mounts, directory):
        try:
            step()
        except Exception as exc:  # noqa: BLE001  as in a journal: one failed undo must not stop the rest
            log.warning("not taken back run=%s: %s", run.root, exc)
            failures.append(exc)
    return failures


def _groups_of(run: RunPaths) -> list[Path]:
    """The cgroups that bear the mark of this start."""
    found = ((path, read_mark(mark)) for path, mark in cgroup.marked(run.root.name))
    return [path for path, mark in found if mark is not None and mark[1] == run.root]


def _expect_ended(run: RunPaths) -> None:
    who = process.load_identity(run.vmm)
    if who is not None and process.alive(who):
        raise HostError(f"{run.root} belongs to process {who.pid}, which still runs")


def end_run(run: RunPaths, layout: Layout) -> None:
    """End the VMM and the keeper of one start. Raises HostError when one of them survives SIGKILL."""
    _kill(run, layout)
    if not _keeper_gone(run, _KEEPER_S):
        if (kept := process.load_identity(run.keeper)) is not None:
            process.send_signal(kept, 9)
        if not _keeper_gone(run, _KILLED_S):
            raise HostError(f"the keeper of {run.root} does not end")
    # A keeper that was about to start the VMM may have done it in between.
    _kill(run, layout)
    for helper in run.helpers():  # of a keeper that was killed; what they have started goes with the cgroup
        _kill_helper(helper)


def _kill(run: RunPaths, layout: Layout) -> None:
    who = process.load_identity(run.vmm)
    if who is not None and not kill_vmm(who, run, layout):
        raise HostError(f"process {who.pid} survives SIGKILL")


def _kill_helper(identity_file: Path) -> None:
    who = process.load_identity(identity_file)
    if who is None:
        return
    process.send_signal(who, 9)
    if not process.wait_gone(who, _KILLED_S):
        raise HostError(f"process {who.pid} survives SIGKILL")


def kill_vmm(who: process.Identity, run: RunPaths, layout: Layout) -> bool:
    """SIGKILL to the VMM of one start, which is freed from a file server that is silent. False when it lives on."""
    process.send_signal(who, 9)
    return nfs.free(layout.mounts(run.root), lambda wait_s: process.wait_gone(who, wait_s), timeout_s=_KILLED_S)


def _keeper_gone(run: RunPaths, timeout_s: float) -> bool:
    """Wait until no keeper holds the machine. By its lock, which one that has not said its name yet holds as well."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with files.locked(run.keeper_lock, blocking=False):
                return True
        except FileNotFoundError:
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(0.02)


def _remove_cgroup(path: Path) -> None:
    cgroup.kill_all(path)
    cgroup.remove(path)
