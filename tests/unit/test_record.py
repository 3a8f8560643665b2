"""What is on disk about a machine is read back as it was written, and a damaged file hides nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vmlib.record import ExitRecord, MachineRecord, Mark, NicRecord, load_exit, load_machine, load_mark

MACHINE = MachineRecord(
    id="alloc/web/1",
    name="alloc/web",
    owner="nomad",
    boot_id="b",
    started_at=1.5,
    run_dir="/run/chv/m/x",
    hypervisor="qemu",
    reason="qemu with tcg",
    vcpus=2,
    memory_mib=128,
    uid=200000,
    vmm_pid=42,
    vmm_start_time=4711,
    nics=(NicRecord(network="lan", mac="52:54:00:12:34:56", addresses=("10.0.0.9/24",), link="chv0", ifindex=7),),
    alive_while="/alloc",
)
DAMAGED = ["", "{", "[]", "null", "3", '{"id": "alloc/web/1"}', '{"version": 1}', '{"id": "alloc/web/1", "later": 1}']


def test_a_machine_is_read_back(tmp_path: Path) -> None:
    MACHINE.save(tmp_path / "machine.json")
    assert load_machine(tmp_path / "machine.json") == MACHINE


def test_a_machine_of_another_version_is_not_understood(tmp_path: Path) -> None:
    MACHINE.save(tmp_path / "machine.json")
    data = json.loads((tmp_path / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps(data | {"version": 2}))
    assert load_machine(tmp_path / "machine.json") is None


def test_an_exit_counts_only_for_its_own_start(tmp_path: Path) -> None:
    record = ExitRecord(id="alloc/web/1", at=2.5, exit_code=137, signal=9, message="killed")
    record.save(tmp_path / "exit.json")
    assert load_exit(tmp_path / "exit.json", "alloc/web/1") == record
    assert load_exit(tmp_path / "exit.json", "alloc/web/2") is None


def test_a_mark_is_read_back(tmp_path: Path) -> None:
    mark = Mark(name="alloc/web", owner="dev", alive_while="/alloc")
    mark.save(tmp_path / "mark.json")
    assert load_mark(tmp_path / "mark.json") == mark


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert load_machine(path) is None
    assert load_exit(path, "alloc/web/1") is None
    assert load_mark(path) is None


def test_no_record_is_none(tmp_path: Path) -> None:
    assert load_machine(tmp_path / "no") is None
    (tmp_path / "file").touch()
    assert load_mark(tmp_path / "file" / "below") is None


def test_the_record_is_private_and_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    MACHINE.save(path)
    replace(MACHINE, vcpus=3).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["machine.json"]
    assert path.stat().st_mode & 0o777 == 0o600
