"""Boots the lab node once a round and has it run all other tests of this tier. Each of them is a subtest here."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from tests.lab import node

ROUND_S = 900.0  # some eight minutes on a machine with nothing else to do
# One boot each: a node that hangs costs a part of the tier, and a file server is no neighbour for what counts CPUs.
FILES = ("test_nfs.py", "test_nfs_agent.py", "test_shares.py")
HYPERVISOR = ("test_cloud_hypervisor.py",)
# What every hypervisor promises, shown on the real one.
CONTRACT = "tests/integration/test_hypervisor_contract.py"
COMMAND = "python3 -m pytest -o timeout=300 -o cache_dir=/tmp/pytest --junitxml=/lab/results/junit.xml -v "
FAILED_TESTS = 1  # pytest's exit code when it ran to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one boot is for. Without a Cloud Hypervisor in the node, auto is QEMU there."""

    tests: str
    later_kernel: bool = False
    programs: tuple[str, ...] = ("nomad",)


ROUNDS = {
    "cpus": Asked(tests=" ".join(f"--ignore=tests/lab/{name}" for name in (*FILES, *HYPERVISOR)) + " tests/lab"),
    "files": Asked(tests=" ".join(f"tests/lab/{name}" for name in FILES)),
    # The later kernel has the Landlock that it uses.
    "hypervisor": Asked(
        tests=" ".join(f"tests/lab/{name}" for name in HYPERVISOR) + f" {CONTRACT} -k 'cloud-real or test_cloud'",
        later_kernel=True,
        programs=("nomad", "cloud-hypervisor"),
    ),
}
MARKS = {"hypervisor": pytest.mark.needs("cloud-hypervisor")}


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
@pytest.mark.parametrize("which", [pytest.param(name, marks=MARKS.get(name, ())) for name in ROUNDS])
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

    def run(files: Path) -> node.Round:
        return node.run(
            COMMAND + asked.tests,
            cache=cache,
            files=files,
            timeout_s=ROUND_S,
            later_kernel=asked.later_kernel,
            programs=asked.programs,
        )

    try:
        done = run(tmp_path / "first")
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
