"""Boots the lab node once a round and has it run all other tests of this tier. Each of them is a subtest here."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from tests.lab import node
from tests.lab.rounds import ROUNDS
from tests.package import build

ROUND_S = 1200.0  # some ten minutes for the longest on a machine with nothing else to do
COMMAND = "python3 -m pytest -o timeout=300 -o cache_dir=/tmp/pytest --junitxml=/lab/results/junit.xml -v "
FAILED_TESTS = 1  # pytest's exit code when it ran to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """One test in the node, as the file that it wrote tells it."""

    name: str
    outcome: Literal["passed", "skipped", "failed"]
    text: str = ""


def outcomes(junit: Path) -> Iterator[Inner]:
    for case in ET.parse(junit).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = [part for kind in ("failure", "error") for part in case.iter(kind)]
        skipped = case.find("skipped")
        if bad:
            yield Inner(name=name, outcome="failed", text="\n".join(part.text or "" for part in bad))
        elif skipped is not None:
            yield Inner(name=name, outcome="skipped", text=skipped.get("message", ""))
        else:
            yield Inner(name=name, outcome="passed")


@pytest.mark.timeout(2 * ROUND_S + 300)
@pytest.mark.parametrize(
    "which", [pytest.param(name, marks=pytest.mark.needs(*asked.needs)) for name, asked in ROUNDS.items()]
)
def test_what_only_the_node_can_show(
    which: str,
    tmp_path: Path,
    cache: Path,
    subtests: pytest.Subtests,
    capsys: pytest.CaptureFixture[str],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    # The console is captured: it is shown when the test fails.
    asked, retries = ROUNDS[which], 0
    packages = build.build(tmp_path / "dist") if asked.packages else []

    def run(files: Path) -> node.Round:
        return node.run(
            COMMAND + asked.tests,
            cache=cache,
            files=files,
            timeout_s=ROUND_S,
            later_kernel=asked.later_kernel,
            programs=asked.programs,
            packages=packages,
        )

    try:
        done = run(tmp_path / "first")
        for inner in outcomes(done.files / "junit.xml") if done.rc == FAILED_TESTS else ():
            if fault := node.guest_fault(inner.text if inner.outcome == "failed" else ""):
                raise node.NodeFaultError(f"a guest in it is lost: {inner.name}: {fault}")
    except node.NodeFaultError as exc:
        retries = 1
        warnings.warn(f"the lab's round was done again: {exc}", stacklevel=1)
        done = run(tmp_path / "second")
    record_testsuite_property(f"lab_retries.{which}", retries)
    assert done.rc in {0, FAILED_TESTS}, f"pytest in the node ended with {done.rc}"
    found = list(outcomes(done.files / "junit.xml"))
    assert found, "the node ran no test"
    with capsys.disabled():
        print(f"\nlab node, {done.took_s:.0f} s, {retries} retries:")
        for inner in found:
            print(f"  {inner.outcome:7} {inner.name} {inner.text if inner.outcome == 'skipped' else ''}".rstrip())
    for inner in found:
        with subtests.test(inner.name):
            if inner.outcome == "failed":
                pytest.fail(inner.text, pytrace=False)
            if inner.outcome == "skipped":
                pytest.skip(inner.text)
    assert (done.rc == FAILED_TESTS) == any(inner.outcome == "failed" for inner in found)


def test_a_node_that_the_emulator_resets_is_told_from_one_that_ends_too_soon(tmp_path: Path, cache: Path) -> None:
    kinds = {"triple": node.NodeFaultError, "acpi": node.RoundError}
    for kind, error in kinds.items():
        command = f"echo {kind} >/sys/kernel/reboot/type && busybox reboot -f && sleep 60"
        with pytest.raises(node.RoundError) as raised:
            node.run(command, cache=cache, files=tmp_path / kind, programs=())
        assert type(raised.value) is error
