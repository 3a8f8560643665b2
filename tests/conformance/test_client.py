"""The real go-plugin client drives the installed plugin. What is checked stands in the Go tests; here they are run."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance import gobuild
from tests.leftovers import none_left

_OUTCOME = re.compile(r"^--- (PASS|FAIL|SKIP): (\w+)", re.MULTILINE)
_TIMEOUT_S = 120


@pytest.mark.parametrize("name", gobuild.go_tests())
def test_go(name: str, programs: gobuild.Programs, chv: Path, short_dir: Path) -> None:
    environment = {**os.environ, "CHV_TEST_PLUGIN": str(chv), "CHV_TEST_DIR": str(short_dir)}
    (run_dir := short_dir / "run").mkdir()
    (data_dir := short_dir / "data").mkdir()
    # Whatever else comes and goes meanwhile belongs to others.
    with none_left(run_dir=run_dir, data_dir=data_dir, ignore=lambda line: str(short_dir) not in line):
        done = subprocess.run(
            [str(programs.tests), f"-test.run=^{name}$", "-test.v", f"-test.timeout={_TIMEOUT_S - 20}s"],
            cwd=short_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        outcome = {test: result for result, test in _OUTCOME.findall(done.stdout)}.get(name, "no result")
        if done.returncode != 0 or outcome != "PASS":
            pytest.fail(f"{name}: {outcome}, exit code {done.returncode}\n{done.stdout}", pytrace=False)


def test_every_go_test_is_run(programs: gobuild.Programs) -> None:
    listed = subprocess.run(
        [str(programs.tests), "-test.list=."], capture_output=True, text=True, timeout=30, check=True
    ).stdout.split()
    assert sorted(gobuild.go_tests()) == sorted(listed)
