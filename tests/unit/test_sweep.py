"""What nobody wants any more is removed after its time; what others own, or somebody wants, never."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from vmlib import process
from vmlib.errors import HostError
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.record import MachineRecord, Mark
from vmlib.settings import HostSettings
from vmlib.sweep import Sweeper


@dataclass
class Host:
    """A data directory with machines in it; none of them has a process of its own."""

    directory: Path

    def __post_init__(self) -> None:
        self.layout = Layout(self.directory / "data", self.directory / "run")
        settings = HostSettings(layout=self.layout)
        self.machines = Machines(settings, _never, _never)

    def add(self, name: str, *, owner: str = "nomad", wanted: bool = True, running: bool = False) -> Path:
        """A machine of an alloc whose directory is there, or not. A running one is this very process."""
        paths = self.layout.machine(name)
        (paths.root / "disk").mkdir(parents=True)
        alive_while = self.directory / "allocs" / name
        if wanted:
            alive_while.mkdir(parents=True)
        Mark(name=name, owner=owner, alive_while=str(alive_while)).save(paths.mark)
        if running:
            self._record(name, owner)
        return paths.root

    def _record(self, name: str, owner: str) -> None:
        me = process.identify(os.getpid())
        assert me is not None
        MachineRecord(
            id=name,
            name=name,
            owner=owner,
            boot_id=process.boot_id(),
            started_at=0.0,
            run_dir=str(self.layout.run(name).root),
            hypervisor="fake",
            reason="",
            vcpus=1,
            memory_mib=1,
            uid=0,
            vmm_pid=me.pid,
            vmm_start_time=me.start_time,
        ).save(self.layout.machine(name).record)

    def sweeper(self, *, dry_run: bool = False) -> Sweeper:
        return Sweeper(machines=self.machines, owner="nomad", gone_s=60, orphan_grace_s=300, dry_run=dry_run)


def _never(*_: object) -> NoReturn:
    raise AssertionError("a sweep starts nothing and talks to no VMM")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_removes_a_machine_a_minute_after_its_directory_is_gone(host: Host) -> None:
    root = host.add("a/web", wanted=False)
    sweeper = host.sweeper()
    assert sweeper.sweep(1000.0) == []
    assert sweeper.sweep(1059.9) == []
    assert root.exists()
    assert sweeper.sweep(1060.0) == ["a/web"]
    assert not root.parent.exists()
    assert sweeper.sweep(1061.0) == []


def test_keeps_what_is_wanted_and_what_others_own(host: Host) -> None:
    kept = [
        host.add("a/web"),
        host.add("b/web", owner="dev", wanted=False),
        host.add("c/web", owner="run", wanted=False),
    ]
    sweeper = host.sweeper()
    for now_s in (0.0, 100.0, 10_000.0):
        assert sweeper.sweep(now_s) == []
    assert all(root.exists() for root in kept)


def test_a_machine_that_nobody_gave_an_end_is_kept(host: Host) -> None:
    root = host.add("a/web")
    Mark(name="a/web", owner="nomad", alive_while="").save(root / "mark.json")
    sweeper = host.sweeper()
    assert [sweeper.sweep(now_s) for now_s in (0.0, 10_000.0)] == [[], []]
    assert root.exists()


def test_a_directory_that_comes_back_starts_the_time_anew(host: Host) -> None:
    host.add("a/web", wanted=False)
    sweeper = host.sweeper()
    sweeper.sweep(0.0)
    back = host.directory / "allocs/a/web"
    back.mkdir(parents=True)
    assert sweeper.sweep(59.0) == []
    back.rmdir()
    assert sweeper.sweep(61.0) == []
    assert sweeper.sweep(120.0) == []
    assert sweeper.sweep(121.0) == ["a/web"]


def test_a_machine_that_still_runs_has_the_orphans_grace(host: Host) -> None:
    host.add("a/web", wanted=False, running=True)
    sweeper = host.sweeper()
    assert [sweeper.sweep(now_s) for now_s in (0.0, 299.0)] == [[], []]
    assert sweeper.sweep(300.0) == ["a/web"]


def test_a_dry_run_only_names_it(host: Host) -> None:
    root = host.add("a/web", wanted=False)
    sweeper = host.sweeper(dry_run=True)
    sweeper.sweep(0.0)
    assert sweeper.sweep(60.0) == ["a/web"]
    assert root.exists()


def test_one_that_cannot_be_removed_stops_no_other_and_is_tried_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add("a/web", wanted=False)
    other = host.add("b/web", wanted=False)
    sweeper = host.sweeper()
    sweeper.sweep(0.0)
    remove = Machines.remove

    def stubborn(machines: Machines, name: str, *, unless: Callable[[], bool]) -> bool:
        if name == "a/web":
            raise HostError("process 7 survives SIGKILL")
        return remove(machines, name, unless=unless)

    monkeypatch.setattr(Machines, "remove", stubborn)
    assert sorted(sweeper.sweep(60.0)) == ["a/web", "b/web"]
    assert not other.exists()
    monkeypatch.undo()
    assert sweeper.sweep(61.0) == ["a/web"]


def test_a_mark_that_cannot_be_read_hides_no_other(host: Host) -> None:
    (host.add("a/web", wanted=False) / "mark.json").write_text("{")
    host.add("b/web", wanted=False)
    sweeper = host.sweeper()
    sweeper.sweep(0.0)
    assert sweeper.sweep(60.0) == ["b/web"]
