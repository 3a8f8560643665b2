"""What a memory cgroup says about a process that the kernel killed, v1 and v2; and the sentence made of it."""

from pathlib import Path

import pytest

from vmlib.keeper import oom
from vmlib.keeper.oom import Oom
from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import RunPaths

MIB = 1 << 20
V1_KILLED = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "memory.failcnt": "68\n",
    "memory.limit_in_bytes": f"{356 * MIB}\n",
}
V2_KILLED = {
    "memory.events": "low 0\nhigh 0\nmax 95\noom 1\noom_kill 1\noom_group_kill 0\n",
    "memory.max": f"{356 * MIB}\n",
}
OLD_PLAN = b'{"id": "a", "run_dir": "/r", "exit_record": "e", "stdout": "o", "stderr": "s", "argv": []}'
REACHED = "out of memory on the host: the kernel killed the VMM, which had reached its limit of 356 MiB"
WITHIN = "out of memory on the host: the kernel killed the VMM, which was within its limit of 356 MiB"
UNLIMITED = "out of memory on the host: the kernel killed the VMM, which has no limit of its own"


def group(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (V1_KILLED, REACHED),
        (V1_KILLED | {"memory.failcnt": "0\n"}, WITHIN),
        (V1_KILLED | {"memory.limit_in_bytes": "9223372036854771712\n"}, UNLIMITED),
        (V1_KILLED | {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"}, ""),
        # Linux before 4.13 does not count.
        (V1_KILLED | {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, ""),
        (V2_KILLED, REACHED),
        (V2_KILLED | {"memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n"}, WITHIN),
        (V2_KILLED | {"memory.max": "max\n"}, UNLIMITED),
        (V2_KILLED | {"memory.events": "low 0\nhigh 0\nmax 95\noom 0\noom_kill 0\n"}, ""),
        (V2_KILLED | {"memory.events": "nonsense\noom_kill x\n\n"}, ""),
        ({}, ""),
    ],
)
def test_the_group_tells(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert oom.report(group(tmp_path, files)) == expected


@pytest.mark.parametrize("where", ["", "/nowhere/memory/chv/x/vmm"])
def test_without_a_group_nothing_is_claimed(where: str) -> None:
    assert oom.report(where) == ""


def test_a_run_knows_its_group_from_the_plan(tmp_path: Path) -> None:
    where = group(tmp_path, V1_KILLED)
    run = RunPaths(tmp_path)
    assert oom.report_of_run(run) == ""
    plan = KeeperPlan(
        id="a", run_dir=str(tmp_path), exit_record="e", stdout="o", stderr="s", argv=["x"], memory_group=where
    )
    run.plan.write_bytes(plan.dump())
    assert oom.report_of_run(run) == REACHED


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"id": "a"}'])
def test_a_damaged_plan_claims_nothing(tmp_path: Path, text: bytes) -> None:
    run = RunPaths(tmp_path)
    run.plan.write_bytes(text)
    assert oom.report_of_run(run) == ""


def test_a_plan_of_an_earlier_version_has_no_group() -> None:
    plan = KeeperPlan.load(OLD_PLAN)
    assert plan.memory_group == ""


def test_v1_and_v2_say_the_same_thing() -> None:
    expected = Oom(kills=1, at_limit=True, limit_bytes=356 * MIB)
    assert oom.parse_v1(*V1_KILLED.values()) == expected
    assert oom.parse_v2(*V2_KILLED.values()) == expected
