"""What a cage is made of, and how its program is found; that it holds is shown on living machines."""

import json
import os
from pathlib import Path

import pytest

from vmlib import cage
from vmlib.keeper.plan import Cage, HelperPlan, KeeperPlan


def program(path: Path, *, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(mode)
    return path


def test_a_program_is_looked_for_as_an_exec_would(tmp_path: Path) -> None:
    there = program(tmp_path / "b/vmm")
    program(tmp_path / "a/vmm", mode=0o644)
    (tmp_path / "link").symlink_to(there)
    assert cage.program_path("vmm", f"{tmp_path}/a:{tmp_path}/b") == str(there)
    assert cage.program_path(str(tmp_path / "link"), "") == str(there)


def test_what_is_no_program_is_named_with_the_reason(tmp_path: Path) -> None:
    program(tmp_path / "vmm", mode=0o644)
    with pytest.raises(FileNotFoundError, match="'none'"):
        cage.program_path("none", str(tmp_path))
    with pytest.raises(PermissionError, match="vmm"):
        cage.program_path("vmm", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        cage.program_path(str(tmp_path), "")


def test_of_a_program_elsewhere_its_own_directory_is_shown_and_what_lies_beside_a_bin(tmp_path: Path) -> None:
    alone = program(tmp_path / "vms/vmm")
    installed = program(tmp_path / "prefix/bin/vmm")
    for name in ("share", "etc"):
        (tmp_path / "prefix" / name).mkdir()
    assert list(cage._of_program(str(alone))) == [str(tmp_path / "vms")]
    assert list(cage._of_program(str(installed))) == [str(tmp_path / "prefix/bin"), str(tmp_path / "prefix/share")]
    assert list(cage._of_program("/usr/local/bin/vmm")) == []


def test_outer_directories_come_first_and_resolvers_with_the_directory_in_which_they_are_replaced() -> None:
    asked = {"shows": ["/etc/resolv.conf", "/sys"]}
    paths = cage._paths(asked, "/usr/bin/vmm")
    assert paths == sorted(paths)
    assert {os.path.dirname(os.path.realpath("/etc/resolv.conf")), "/sys", "/usr"} <= set(paths)
    assert "/etc" not in cage._paths({"shows": []}, "/usr/bin/vmm")


def test_a_plan_is_read_with_its_cages_and_one_of_an_earlier_version_without() -> None:
    helper = HelperPlan(name="tpm", what="a TPM", argv=["swtpm"], loss="", cage=Cage(hides=["/var/lib/chv"]))
    plan = KeeperPlan(
        id="i",
        run_dir="/r",
        exit_record="/e",
        stdout="/o",
        stderr="/x",
        argv=["vmm"],
        cage=Cage(shows=["/sys"], terminals=True),
        helpers=[helper],
    )
    assert KeeperPlan.load(plan.dump()) == plan
    earlier = json.loads(plan.dump())
    del earlier["cage"], earlier["limits"]
    assert KeeperPlan.load(json.dumps(earlier).encode()).cage is None
    earlier["cage"] = {"shows": [], "of a later version": 1}
    assert KeeperPlan.load(json.dumps(earlier).encode()).cage == Cage()
