"""Looks for what a test left behind: processes, sockets, files, mounts, links, namespaces, cgroups.

A whole machine is looked at, but only what belongs to us and to the given directories counts, so that a second test
run beside this one does no harm: a process is ours when it is one of our programs *and* works in those directories.
"""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Self

OUR_PROGRAMS = ("qemu-system-", "cloud-hypervisor", "virtiofsd", "swtpm", "passt", "chv")
OUR_SCRIPTS = ("vmlib/keeper", "vmlib/launcher", "driver.main", "driver/main", "/chv")
_STAYS_S = 2.0
STAYS_IN_DATA_DIR = ("version", "*.lock", ".lock", "ledger.json", "cores.json", "machines/*", "disks/*", "cache/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What there is at one moment, each thing as a line for people."""

    processes: frozenset[str]
    sockets: frozenset[str]
    files: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]

    def beyond(self, before: "Snapshot") -> list[str]:
        """What is here and was not `before`."""
        return [
            f"{field.name}: {line}"
            for field in fields(self)
            for line in sorted(getattr(self, field.name) - getattr(before, field.name))
        ]


def open_files() -> int:
    """How many files this process has open, those that nothing can reach any more not counted."""
    gc.collect()  # else a file of an earlier test closes in the middle of this one
    return len(os.listdir("/proc/self/fd"))


def look(*, run_dir: Path, data_dir: Path | None = None, temp_dir: Path | None = None) -> Snapshot:
    """Everything that a machine could leave behind. `run_dir` is to be empty at last, `data_dir` keeps its records.

    `temp_dir` is the TMPDIR of the processes that were tested, if it is theirs alone: plugin sockets lie there.
    """
    directories = tuple(str(path) for path in (run_dir, data_dir) if path is not None)
    return Snapshot(
        processes=frozenset(_processes(directories)),
        sockets=frozenset(_sockets(directories)),
        files=frozenset(_files(run_dir, ()))
        | frozenset(_files(data_dir, STAYS_IN_DATA_DIR) if data_dir is not None else ())
        | frozenset(_temporary_files(temp_dir) if temp_dir is not None else ()),
        mounts=frozenset(_mounts(directories)),
        links=frozenset(_names(Path("/sys/class/net"))),
        namespaces=frozenset(_names(Path("/run/netns"))),
        cgroups=frozenset(_cgroups(directories)),
    )


@contextlib.contextmanager
def none_left(
    *,
    run_dir: Path,
    data_dir: Path | None = None,
    temp_dir: Path | None = None,
    settle_s: float = 10.0,
    ignore: Callable[[str], bool] | None = None,
) -> Iterator[None]:
    """Fail when something is left `settle_s` after the block. What ends by itself within that time is fine.

    After a block that raised nothing is checked: the first failure is the one to read.
    """
    before = look(run_dir=run_dir, data_dir=data_dir, temp_dir=temp_dir)
    yield
    deadline = time.monotonic() + settle_s
    while True:
        left = look(run_dir=run_dir, data_dir=data_dir, temp_dir=temp_dir).beyond(before)
        left = [line for line in left if ignore is None or not ignore(line)]
        if not left:
            return
        if time.monotonic() > deadline:
            # A group that is being made or removed has no process yet by which a test beside this one is told.
            time.sleep(_STAYS_S)
            again = set(look(run_dir=run_dir, data_dir=data_dir, temp_dir=temp_dir).beyond(before))
            left = [line for line in left if line in again]
            if not left:
                return
            raise AssertionError("left behind:\n  " + "\n  ".join(left))
        time.sleep(0.1)


class Runs:
    """Notes the names that runs of machines have had in a run directory. Their cgroups have the same ones, and nothing
    else says whose those are. A machine's run directory is there before its cgroups and goes after them.
    """

    def __init__(self, run_dir: Path) -> None:
        self.keys: set[str] = set()
        self._runs = run_dir / "m"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(0.02):
            with contextlib.suppress(OSError):
                self.keys.update(os.listdir(self._runs))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# processes


def _processes(directories: tuple[str, ...]) -> Iterator[str]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        proc = Path("/proc", pid)
        # A process may end while we look at it.
        with contextlib.suppress(OSError):
            argv = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if not argv:
                if _is_our_zombie(proc):
                    yield f"{pid} zombie, a child of this one that nobody waited for"
            elif _is_our_program(argv) and _works_in(proc, argv, directories):
                yield f"{pid} {' '.join(argv)[:200]}"


def _is_our_program(argv: list[str]) -> bool:
    if Path(argv[0]).name.startswith(OUR_PROGRAMS):
        return True
    return any(script in word for word in argv[:6] for script in OUR_SCRIPTS)


def _works_in(proc: Path, argv: list[str], directories: tuple[str, ...]) -> bool:
    """Whether the process names, stands in or holds open something beneath `directories`, be it deleted since."""
    if any(directory in word for word in argv for directory in directories):
        return True
    held = [proc / "cwd", *(proc / "fd").iterdir()]
    return any(os.readlink(link).startswith(directories) for link in held)


def _is_our_zombie(proc: Path) -> bool:
    state, parent = (proc / "stat").read_text().rpartition(")")[2].split()[:2]
    return state == "Z" and int(parent) == os.getpid()


# ---------------------------------------------------------------------------------------------------------------------
# everything else


def _sockets(directories: tuple[str, ...]) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        path = line.split(maxsplit=7)[7:]
        if path and path[0].startswith(directories):
            yield path[0]


def _files(directory: Path, stays: tuple[str, ...]) -> Iterator[str]:
    for parent, _, names in os.walk(directory):
        for name in names:
            relative = str(Path(parent, name).relative_to(directory))
            if not any(fnmatch(relative, pattern) for pattern in stays):
                yield str(directory / relative)


def _temporary_files(temp_dir: Path) -> Iterator[str]:
    """Directories for plugin sockets. Those that are named plugin* are Nomad's own."""
    return (str(temp_dir / name) for name in _names(temp_dir) if name.startswith("chv"))


def _mounts(directories: tuple[str, ...]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4].startswith(directories):
            yield f"{words[4]} ({words[words.index('-') + 1]})"


def _cgroups(directories: tuple[str, ...]) -> Iterator[str]:
    """The groups beneath our trees but those in which somebody else's machine lives; the trees themselves may stay."""
    root = Path("/sys/fs/cgroup")
    for top in (root, *(path for path in root.glob("*") if path.is_dir())):
        for tree in (top / "chv.slice", top / "chv"):
            for key in _names(tree):
                if (tree / key).is_dir() and not _of_others(tree / key, directories):
                    # os.walk does not mind a group that goes away while it looks.
                    yield from (group for group, _, _ in os.walk(tree / key))


def _of_others(group: Path, directories: tuple[str, ...]) -> bool:
    """True when processes are in there, and none that works in our directories."""
    pids = [pid for path, _, _ in os.walk(group) for pid in _words(Path(path, "cgroup.procs"))]
    return bool(pids) and not any(_known(Path("/proc", pid), directories) for pid in pids)


def _known(proc: Path, directories: tuple[str, ...]) -> bool:
    with contextlib.suppress(OSError):
        argv = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        return _works_in(proc, argv, directories)
    return False


def _words(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().split()
    return []


def _names(directory: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)
    return []
