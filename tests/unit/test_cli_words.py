"""What the command line makes of words that name nothing."""

import argparse
import json
from pathlib import Path

import pytest

from driver import cli
from driver.cli.common import load_config
from driver.cli.doctor_directories import directory_checks
from driver.cli.run_life import start
from driver.cli.run_settings import RunSettings
from vmlib.disk.persistent import PersistentDisks, disk_id
from vmlib.paths import Layout
from vmlib.settings import HostSettings
from vmlib.spec import DiskKey, MachineSpec
from vmlib.version import OtherVersionError

KEY = DiskKey(namespace="default", job="web", group="g", index=0, name="data")


@pytest.fixture
def layout(short_dir: Path) -> Layout:
    return Layout(short_dir / "data", short_dir / "run")


@pytest.fixture
def config(layout: Layout, short_dir: Path) -> Path:
    """An agent file of a node that has one persistent disk."""
    directory = PersistentDisks(layout.disks, lambda _: False).directory(KEY)
    directory.mkdir(parents=True)
    note = {"key": {"namespace": "default", "job": "web", "group": "g", "index": 0, "name": "data"}, "format": "raw"}
    (directory / "disk.json").write_text(json.dumps({**note, "created_at": 1}))
    (directory / "disk.raw").write_bytes(bytes(512))
    file = short_dir / "agent.hcl"
    file.write_text(
        f'plugin "chv" {{ config {{\n data_dir = "{layout.data_dir}"\n run_dir = "{layout.run_dir}"\n}} }}\n'
    )
    return file


@pytest.mark.parametrize("words", [["disks", "remove"], ["stop"], ["reboot"], ["inspect"], ["console"]])
def test_an_empty_word_is_no_prefix_of_everything(config: Path, layout: Layout, words: list[str]) -> None:
    command, *more = words
    assert cli.main([command, "--config", str(config), *more, ""]) == 2
    assert (layout.disks / disk_id(KEY) / "disk.raw").exists()


def test_a_disk_in_a_data_directory_of_a_later_release_is_not_removed(
    config: Path, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.version.write_text("99\n")
    assert cli.main(["disks", "--config", str(config), "remove", disk_id(KEY)]) == 1
    assert "says 99, expected 1" in capsys.readouterr().err
    assert (layout.disks / disk_id(KEY) / "disk.raw").exists()


def test_a_run_in_a_data_directory_of_a_later_release_leaves_nothing(layout: Layout) -> None:
    layout.data_dir.mkdir()
    layout.version.write_text("99\n")
    settings = RunSettings(host=HostSettings(layout=layout))
    spec = MachineSpec(id="run-1", name="run-1/vm", owner="run", vcpus=1, memory_mib=64)
    with pytest.raises(OtherVersionError), start(settings, spec, stop_timeout_s=1.0):
        pass
    assert list(layout.data_dir.iterdir()) == [layout.version]


def test_doctor_says_what_health_says_of_the_data_directory(config: Path, layout: Layout) -> None:
    node = load_config(argparse.Namespace(config=config))
    (layout.data_dir / "ledger.json.corrupt-1").touch()
    layout.version.write_text("99\n")
    found = [(one.verdict, one.text) for one in directory_checks(node) if one.check == "data_dir"]
    assert any(verdict == "problem" and "says 99" in text for verdict, text in found)
    assert any(verdict == "warning" and "ledger.json.corrupt-1" in text for verdict, text in found)


def test_a_disk_whose_holder_cannot_be_read_is_shown_and_can_be_removed(
    config: Path, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    (layout.disks / disk_id(KEY) / "holder.json").write_text("{")
    assert cli.main(["disks", "--config", str(config), "--ids"]) == 0
    assert capsys.readouterr().out == f"{disk_id(KEY)}\n"
    assert cli.main(["disks", "--config", str(config), "remove", disk_id(KEY)]) == 0
    assert not (layout.disks / disk_id(KEY)).exists()
