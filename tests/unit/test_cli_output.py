"""Where nobody takes what a command prints, or somebody has had enough of it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from driver import cli
from driver.cli import completion


def printed(target: int, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The exit code, and that the interpreter's own last flush finds nothing to complain of."""
    with os.fdopen(target, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            return cli.main(words)
        except SystemExit as exc:
            return None if exc.code is None else int(exc.code)
        finally:
            stream.flush()


@pytest.mark.parametrize("words", [["completion", "bash"], ["config", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_message(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHV_CONFIG", str(tmp_path / "agent.hcl"))
    (tmp_path / "agent.hcl").write_text(f'plugin "chv" {{ config {{ data_dir = "{tmp_path}/data" }} }}\n')
    read, write = os.pipe()
    os.close(read)
    assert printed(write, words, monkeypatch) == 1
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_a_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(os.open("/dev/full", os.O_WRONLY), ["completion", "bash"], monkeypatch) == 1
    assert capfd.readouterr().err == "chv: no space left on device\n"


def test_an_interrupt_is_its_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(completion, "bash", interrupted)
    assert cli.main(["completion", "bash"]) == 130
    assert capfd.readouterr().err == ""


def test_a_closed_standard_input_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["validate", "-"]) == 2
