"""The one-file executable starts itself, by the name that it is built with, too, which has a dot in it."""

import sys
from pathlib import Path

import pytest

from driver.cli.itself import this_command


@pytest.mark.parametrize("name", ["chv", "chv-0.1.0-py311"])
def test_an_executable_is_started_again_by_its_own_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / name), "run"])
    assert this_command() == [str(tmp_path / name)]


def test_a_module_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "main.py")])
    assert this_command()[0] == sys.executable
