"""What the release that changed the format last has left on disk is understood: recorded, for clones without history.

tests/integration/test_upgrade.py does it with that release itself.
"""

import inspect
import json
from pathlib import Path

import pytest

from driver.handle import Handle
from vmlib import version
from vmlib.cores.ledger import Ledger
from vmlib.disk.persistent import PersistentDisks
from vmlib.journal import Journal
from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.postflight import actions
from vmlib.record import damaged, load_exit, load_machine, load_mark

DATA = Path(__file__).parent / "data/last-format"
ALLOC = "0b5ea1a5-0000-4000-8000-000000000001"
ID, NAME = f"{ALLOC}/web/00000001", f"{ALLOC}/web"
PATHS = MachinePaths(DATA)


def test_a_machine_and_its_end_are_understood() -> None:
    mark, record, exit_ = load_mark(PATHS.mark), load_machine(PATHS.record), load_exit(PATHS.exit_record, ID)
    assert mark is not None
    assert record is not None
    assert exit_ is not None
    assert mark.name == record.name == NAME
    assert record.placement is not None
    assert record.placement.cpus == (0,)
    assert list(damaged(PATHS)) == []


def test_every_undo_is_one_that_can_be_done() -> None:
    known = actions(Layout(Path("/var/lib/chv"), Path("/run/chv")))
    undos = Journal(PATHS.journal, {}).pending()
    assert len(undos) == len(PATHS.journal.read_text().splitlines())
    for undo in undos:
        inspect.signature(known[undo.action]).bind(**undo.args)


def test_a_keeper_can_be_given_what_it_was_told() -> None:
    plan = KeeperPlan.load((DATA / "run-plan.json").read_bytes())
    assert plan.id == ID
    assert RunPaths(plan.run).root == Path("/run/chv/m/0ba211d194ae")


def test_ledger_disk_and_handle_are_understood(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    ledger.write_bytes((DATA / "ledger.json").read_bytes())
    with Ledger(ledger, tmp_path / "lock").open() as book:
        assert book.quarantined == ""
        assert list(book.entries) == [ID]
    directory = tmp_path / "disks/8cd97b8f8afb"
    directory.mkdir(parents=True)
    for name in ("disk.json", "holder.json"):
        (directory / name).write_bytes((DATA / name).read_bytes())
    (disk,) = PersistentDisks(tmp_path / "disks", lambda _: True).list()
    assert disk.holder is not None
    assert disk.holder.machine_id == ID
    handle = Handle.decode((DATA / "handle").read_bytes())
    assert (handle.layout, handle.name) == (Layout(Path("/var/lib/chv"), Path("/run/chv")), NAME)


def test_the_data_directory_is_ours(tmp_path: Path) -> None:
    (tmp_path / "version").write_bytes((DATA / "version").read_bytes())
    version.claim(Layout(tmp_path, tmp_path))


@pytest.mark.parametrize("name", ["mark.json", "machine.json", "exit.json", "handle"])
def test_what_a_later_release_of_this_version_adds_is_passed_over(name: str, tmp_path: Path) -> None:
    data = json.loads((DATA / name).read_bytes())
    path = tmp_path / name
    path.write_text(json.dumps(data | {"of_tomorrow": {"x": 1}}))
    paths = MachinePaths(tmp_path)
    match name:
        case "handle":
            assert Handle.decode(path.read_bytes()) == Handle.decode((DATA / name).read_bytes())
        case "mark.json":
            assert load_mark(paths.mark) == load_mark(PATHS.mark)
        case "machine.json":
            assert load_machine(paths.record) == load_machine(PATHS.record)
        case _:
            assert load_exit(paths.exit_record, ID) == load_exit(PATHS.exit_record, ID)
