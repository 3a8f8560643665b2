"""What is left of starts that nobody knows any more: neither journal nor record names them. Found by our own marks.

A run directory and a cgroup bear the owner and the data directory they belong to, a link its owner and run directory;
mounts, machines' directories and temporary files are ours by where they lie. What bears no mark is left alone.
"""

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmlib import cgroup, files, postflight
from vmlib.disk import nfs
from vmlib.errors import HostError
from vmlib.journal import Journal
from vmlib.net.names import link_mark, read_mark
from vmlib.net.stray import marked_links, remove_link
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.record import load_machine, load_run_mark

Kind = Literal["run", "cgroup", "link", "mount", "directory", "file"]

_TORN = re.compile(r"\..+\.[0-9a-f]{8}")  # what is written beside its target, before it is renamed
_SETTLED_S = 60.0  # nobody is still at work on what has not changed for so long
_OF_NOBODY = re.compile(r"lock|.+\.corrupt-.+|\..+\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """One thing that nobody owns."""

    kind: Kind
    name: str  # of a link, and the path of everything else; of a cgroup, the one in the last hierarchy
    why: str  # for the log
    mark: str = ""  # of a link or cgroup

    @property
    def path(self) -> Path:
        return Path(self.name)


def find(layout: Layout, owner: str) -> list[Stray]:
    """Everything of that owner's that nobody knows. What is just being made is known: its journal comes first."""
    # First what there is, then who knows it, so that what is made meanwhile is not taken for stray.
    runs = files.names(layout.runs)
    mounts = files.names(layout.nfs)
    groups = {read: path for path, mark in cgroup.marked() if (read := read_mark(mark)) is not None}
    links = [link for link in marked_links() if link.owner == owner and link.run_dir.parent == layout.runs]
    known = _known(layout)
    if not layout.machines.is_dir():  # perhaps its filesystem is not mounted just now: nobody can say who is known
        return []

    def lost(run_dir: Path) -> bool:
        return run_dir.name not in known and not run_dir.exists()

    found = [*_runs(layout, owner, [name for name in runs if name not in known])]
    found += [
        Stray(kind="cgroup", name=str(path), why=f"{run_dir} is gone", mark=link_mark(whose, run_dir))
        for (whose, run_dir), path in groups.items()
        if whose == owner and run_dir.parent == layout.runs and lost(run_dir)
    ]
    found += [
        Stray(kind="link", name=link.name, why=f"{link.run_dir} is gone", mark=link.mark)
        for link in links
        if lost(link.run_dir)
    ]
    found += [
        Stray(kind="mount", name=str(layout.nfs / name), why=f"{layout.runs / name} is gone")
        for name in mounts
        if lost(layout.runs / name) and _ours_alone(layout.nfs / name)
    ]
    return [*found, *_directories(layout), *_torn(layout)]


def remove(stray: Stray, layout: Layout) -> bool:
    """True when it is gone by that, False when somebody is at work on it. Raises HostError, OSError."""
    match stray.kind:
        case "run":
            _remove_run(RunPaths(stray.path), layout)
        case "cgroup":
            same = [path for path, mark in cgroup.marked(stray.path.name) if mark == stray.mark]
            for path in same:
                cgroup.kill_all(path)
            for path in same:
                cgroup.remove(path)
        case "link":
            remove_link(stray.name, mac="", mark=stray.mark)
        case "mount":
            nfs.clear(stray.path)
            return not stray.path.exists()
        case "directory":
            return _remove_directory(stray.path)
        case "file":
            return _remove_torn(stray.path, layout)
    return True


def _known(layout: Layout) -> frozenset[str]:
    """The names of all starts that a journal or a record of this data directory names, whoever owns them."""
    found = set()
    for path in files.each(layout.machines, "journal"):
        # One that is unwound meanwhile is gone when it is read.
        for undo in Journal(path, {}).pending():
            found |= {Path(undo.args[key]).name for key in ("run_dir", "path") if key in undo.args}
    for path in files.each(layout.machines, "machine.json"):
        if (record := load_machine(path)) is not None:
            found.add(Path(record.run_dir).name)
    return frozenset(found)


# -- kinds -----------------------------------------------------------------------------------------------------------


def _runs(layout: Layout, owner: str, names: list[str]) -> Iterator[Stray]:
    # Another directory in the place of ours, be it that of an unmounted filesystem, knows nothing of our machines.
    identity = files.directory_identity(layout.data_dir)
    for name in names:
        run = RunPaths(layout.runs / name)
        mark = load_run_mark(run.mark)
        if mark is None:
            if not files.names(run.root) and _settled(run.root):
                yield Stray(kind="run", name=str(run.root), why="it is empty")
        elif (mark.owner, mark.data_dir) == (owner, str(layout.data_dir)) and mark.data_identity in ("", identity):
            yield Stray(kind="run", name=str(run.root), why=f"neither journal nor record of {mark.name} names it")


def _ours_alone(top: Path) -> bool:
    """A place for mounts with nothing in it that is none of ours."""
    mounted = nfs.mounted_beneath(top)
    return all(path in mounted or not files.names(path) for path in _children(top) if not path.name.startswith("."))


def _remove_run(run: RunPaths, layout: Layout) -> None:
    mark = load_run_mark(run.mark)
    if mark is None:
        with contextlib.suppress(FileNotFoundError):
            run.root.rmdir()
    elif failures := postflight.take_back_run(run, mark.id, layout):
        raise HostError(f"{run.root}: {failures[0]}")


def _directories(layout: Layout) -> Iterator[Stray]:
    """Of machines that were never begun, of allocs without machines, and of persistent disks that were removed."""
    for alloc in files.names(layout.machines):
        tasks = files.names(layout.machines / alloc)
        if not tasks and _settled(layout.machines / alloc):
            yield Stray(kind="directory", name=str(layout.machines / alloc), why="it is empty")
        for task in tasks:
            paths = layout.machine(f"{alloc}/{task}")
            if all(_OF_NOBODY.fullmatch(name) for name in files.names(paths.root)) and _settled(paths.root):
                yield Stray(kind="directory", name=str(paths.root), why="no machine was begun in it")
    for name in files.names(layout.disks):
        if _TORN.fullmatch(name):
            yield Stray(kind="directory", name=str(layout.disks / name), why="its disk was removed")


def _remove_directory(path: Path) -> bool:
    if _TORN.fullmatch(path.name):
        shutil.rmtree(path)
        return True
    lock = MachinePaths(path).lock
    if not lock.exists():
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        return True
    try:
        with files.locked(lock, blocking=False):
            if not all(_OF_NOBODY.fullmatch(name) for name in files.names(path)):
                return False  # somebody has begun
            shutil.rmtree(path)
    except BlockingIOError:
        return False
    return True


def _torn(layout: Layout) -> Iterator[Stray]:
    """What somebody wrote who was killed before it had its name."""
    before = time.time() - _SETTLED_S
    machines = [root for alloc in files.names(layout.machines) for root in _children(layout.machines / alloc)]
    within = [Path(root, name) for root in machines for name in ("", "disk", "boot")]
    disks = [path for path in _children(layout.disks) if not path.name.startswith(".")]
    for directory in (layout.data_dir, layout.cache / "seen", *within, *disks):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(".") and _TORN.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < before:
                            yield Stray(kind="file", name=entry.path, why="whoever wrote it was killed")


def _remove_torn(path: Path, layout: Layout) -> bool:
    """Unless somebody holds the lock of what it is about."""
    for above in path.parents[:2]:
        lock = MachinePaths(above).lock
        if layout.data_dir in above.parents and lock.exists():
            try:
                with files.locked(lock, blocking=False):
                    path.unlink(missing_ok=True)
            except BlockingIOError:
                return False
            return True
    path.unlink(missing_ok=True)
    return True


def _settled(directory: Path) -> bool:
    """A directory in which nobody is just about to make something."""
    try:
        status = directory.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_mtime < time.time() - _SETTLED_S


def _children(directory: Path) -> list[Path]:
    return [directory / name for name in files.names(directory)]
