"""What a look of the sweep costs on a full node, and what removing costs: beside a bare walk over the same files."""

import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tests.bench.measure import Line, Settings, in_turns, line, say
from vmlib import process
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.journal import Journal
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.postflight import actions
from vmlib.record import MachineRecord, Mark, RunMark
from vmlib.settings import HostSettings
from vmlib.sweep import Sweeper

T = TypeVar("T")

_MACHINES = 1000
_STALE = 10_000
_GRACE_S = 300.0
_RECORD = MachineRecord(
    id="",
    name="",
    owner="nomad",
    boot_id="",
    started_at=0.0,
    run_dir="",
    hypervisor="fake",
    reason="by the benchmark",
    vcpus=1,
    memory_mib=64,
    uid=0,
    vmm_pid=1,
    vmm_start_time=0,
)


def run(settings: Settings) -> list[Line]:
    base = settings.directory("sweep")
    layout = Layout(base / "data", base / "run")
    logging.getLogger("vmlib.sweep").setLevel(logging.ERROR)  # 10,000 lines are somebody else's cost
    say(f"{_MACHINES} machines on disk, {_STALE} stale files")
    _make_machines(layout, base)
    machines = Machines(HostSettings(layout=layout), lambda _: (Fake(), "by the benchmark"), attach)

    def sweeper() -> Sweeper:
        return Sweeper(machines=machines, owner="nomad", gone_s=60.0, orphan_grace_s=_GRACE_S)

    def removed() -> float:
        _make_stale(layout)
        one = sweeper()
        one.sweep(0.0)
        seconds, gone = _timed(lambda: one.sweep(_GRACE_S))
        if len(gone) != _STALE:
            raise RuntimeError(f"{len(gone)} of {_STALE} stale files were removed")
        return seconds

    def unlinked() -> float:
        _make_stale(layout)
        return _timed(lambda: _unlink_stale(base))[0]

    removal = in_turns((unlinked, removed), pairs=settings.pairs)
    _make_stale(layout)

    def bare() -> object:
        return [os.stat(path) for path in _walk(base)]

    looks = in_turns((lambda: _timed(bare)[0], lambda: _timed(lambda: sweeper().sweep(0.0))[0]), pairs=settings.pairs)
    of = f"{_MACHINES} machines and {_STALE} stale files"
    return [
        line("sweep, look", f"a sweep's look at {of} / walk and stat", ours=looks[1], baseline=looks[0]),
        line("sweep, removal", "the same with their removal / walk and unlink", ours=removal[1], baseline=removal[0]),
    ]


def _make_machines(layout: Layout, base: Path) -> None:
    known = actions(layout)
    for number in range(_MACHINES):
        name = f"alloc{number:04d}/web"
        id_ = f"{name}/00000001"
        paths, run_paths, alloc = layout.machine(name), layout.run(id_), base / "allocs" / f"{number:04d}"
        for directory in (paths.disk_dir, paths.boot_dir, run_paths.root, alloc):
            directory.mkdir(parents=True)
        Mark(name=name, owner="nomad", alive_while=str(alloc)).save(paths.mark)
        RunMark(id=id_, name=name, owner="nomad", data_dir=str(layout.data_dir)).save(run_paths.mark)
        record = replace(_RECORD, id=id_, name=name, boot_id=process.boot_id(), run_dir=str(run_paths.root))
        record.save(paths.record)
        journal = Journal(paths.journal, known)
        journal.note("run_dir.remove", path=str(run_paths.root))
        groups = (f"/sys/fs/cgroup/x/chv/{number}/{leaf}" for leaf in ("vmm", "keeper"))
        journal.note_all("cgroup.remove", [{"path": path} for path in groups])
        journal.note("machine.end", run_dir=str(run_paths.root))
        for path in (paths.lock, paths.seed, paths.disk_dir / "root-overlay.qcow2", paths.boot_dir / "kernel"):
            path.touch()


def _make_stale(layout: Layout) -> None:
    long_ago = time.time() - 3600
    roots = itertools.cycle(sorted(layout.machines.glob("*/*/disk")))
    for number in range(_STALE):
        path = next(roots) / f".root-copy.raw.{number:08x}"
        path.touch()
        os.utime(path, (long_ago, long_ago))


def _walk(base: Path) -> list[str]:
    return [os.path.join(top, name) for top, _, names in os.walk(base) for name in names]


def _unlink_stale(base: Path) -> None:
    for path in _walk(base):
        if os.path.basename(path).startswith(".root-copy."):
            os.unlink(path)


def _timed(do: Callable[[], T]) -> tuple[float, T]:
    begin = time.perf_counter()
    found = do()
    return time.perf_counter() - begin, found
