"""Where our groups go on v1, hybrid and v2, and what is never touched, with plain directories for the kernel's."""

import errno
import os
from pathlib import Path

import pytest

from vmlib import cgroup
from vmlib.cgroup import CgroupLayout, MachineGroups, parse_layout, paths_for
from vmlib.errors import HostError

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:29 / /sys/fs/cgroup/again rw,relatime - cgroup cgroup rw,cpu,cpuacct
43 27 0:32 / /elsewhere/memory rw,relatime - cgroup cgroup rw,memory
"""
ROOT = Path("/sys/fs/cgroup")


def test_v2_has_one_slice() -> None:
    layout = parse_layout(V2)
    top = ROOT / "chv.slice"
    assert layout == CgroupLayout(kind="v2", tops=(top,), unified=top, cpuset=top, cpu=top, memory=top, pids=top)
    vmm, keeper = top / "k/vmm", top / "k/keeper"
    assert paths_for(layout, "k") == MachineGroups(
        vmm=(vmm,),
        keeper=(keeper,),
        cpuset=vmm,
        keeper_cpuset=keeper,
        cpu=vmm,
        memory=vmm,
        pids=vmm,
        threaded=True,
    )


def test_hybrid_has_a_group_in_every_hierarchy_and_each_controller_in_its_own() -> None:
    layout = parse_layout(HYBRID)
    assert layout.kind == "hybrid"
    assert paths_for(layout, "k") == MachineGroups(
        vmm=tuple(ROOT / name / "chv/k/vmm" for name in ("cpu,cpuacct", "cpuset", "memory", "systemd", "unified")),
        keeper=tuple(
            ROOT / name / "chv/k/keeper" for name in ("cpu,cpuacct", "cpuset", "memory", "systemd", "unified")
        ),
        cpuset=ROOT / "cpuset/chv/k/vmm",
        keeper_cpuset=ROOT / "cpuset/chv/k/keeper",
        cpu=ROOT / "cpu,cpuacct/chv/k/vmm",
        memory=ROOT / "memory/chv/k/vmm",
    )


def test_the_files_that_can_take_a_machine_off_its_cores(tmp_path: Path) -> None:
    assert cgroup.cpuset_files(CgroupLayout(kind="none")) == []
    ours = [
        "chv.slice/cpuset.cpus",
        "chv.slice/cpuset.cpus.partition",
        "chv.slice/k/keeper/cpuset.cpus",
        "chv.slice/k/vmm/cpuset.cpus",
        "chv.slice/k/vmm/cpuset.mems",
        "chv.slice/k/vmm/emu/cpuset.cpus",
        "chv.slice/k/vmm/v0/cpuset.cpus",
        "chv-cores.slice/k/vmm/cpuset.cpus",
    ]
    for name in (*ours, "nomad.slice/cpuset.cpus", "chvalier/k/vmm/cpuset.cpus", "chv.slice/k/vmm/cgroup.procs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    top = tmp_path / "chv.slice"
    found = cgroup.cpuset_files(CgroupLayout(kind="v2", tops=(top,), unified=top, cpuset=top))
    assert sorted(found) == sorted(tmp_path / name for name in ours)


@pytest.mark.parametrize(("text", "vmm"), [(V2, "chv-cores.slice/k/vmm"), (HYBRID, "cpuset/chv-cores/k/vmm")])
def test_another_topmost_group_takes_the_place_of_ours(text: str, vmm: str) -> None:
    groups = paths_for(parse_layout(text), "k", top="chv-cores")
    assert groups.cpuset == ROOT / vmm
    assert groups.cpuset in groups.vmm


@pytest.mark.parametrize("top", ["nomad", "chv/x", "..", "chvx", "chv-"])
def test_a_topmost_group_that_is_not_ours_is_refused(top: str) -> None:
    with pytest.raises(ValueError, match="topmost cgroup"):
        paths_for(parse_layout(V2), "k", top=top)


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, 1), (0, 1), (1024, 39), (2400, 92), (262144, 10000), (1 << 30, 10000)]
)
def test_shares_become_the_weight_that_the_kernel_would_give(shares: int, weight: int) -> None:
    assert cgroup.weight_of(shares) == weight


def test_v1_without_the_unified_hierarchy() -> None:
    text = "".join(line for line in HYBRID.splitlines(keepends=True) if "cgroup2" not in line)
    assert parse_layout(text).kind == "v1"


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "22 27 0:21 / /proc rw,relatime - proc proc rw\n"])
def test_a_host_without_cgroups_has_no_groups_and_a_reason(text: str) -> None:
    layout = parse_layout(text)
    assert layout == CgroupLayout(kind="none", reason="no cgroup hierarchy is mounted beneath /sys/fs/cgroup")
    assert paths_for(layout, "k") == MachineGroups()


def test_a_mount_point_with_a_space_is_found() -> None:
    text = V2.replace("/sys/fs/cgroup", r"/my\040groups")
    assert parse_layout(text, Path("/my groups")).tops == (Path("/my groups/chv.slice"),)


def test_a_later_mount_hides_an_earlier_one() -> None:
    hidden = "50 30 0:40 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert parse_layout(V2 + hidden).kind == "none"


def test_hierarchies_without_write_access_are_left_out_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu,cpuacct", "cpuset", "memory", "systemd", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")
    text = HYBRID.replace("/sys/fs/cgroup", str(tmp_path))
    (tmp_path / "mountinfo").write_text(text)
    monkeypatch.setattr(os, "access", lambda path, _mode: "memory" not in str(path))
    layout = cgroup.read_layout(tmp_path, tmp_path / "mountinfo")
    assert [top.parent.name for top in layout.tops] == ["cpu,cpuacct", "cpuset", "systemd", "unified"]
    assert layout.reason == (
        f"no groups can be made in {tmp_path}/memory; cgroup controllers that cannot be used: memory, pids"
    )
    assert layout.cpuset == tmp_path / "cpuset/chv"
    assert layout.memory is None

    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    layout = cgroup.read_layout(tmp_path, tmp_path / "mountinfo")
    assert (layout.kind, layout.tops) == ("none", ())


def test_a_hybrid_host_may_have_left_a_controller_to_v2(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "cpuset", "memory", "systemd", "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb pids\n")
    (tmp_path / "mountinfo").write_text(HYBRID.replace("/sys/fs/cgroup", str(tmp_path)))
    layout = cgroup.read_layout(tmp_path, tmp_path / "mountinfo")
    assert layout.pids == tmp_path / "unified/chv"
    assert layout.reason == ""
    assert not paths_for(layout, "k").threaded


def test_a_v2_host_without_a_controller_says_which(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "mountinfo").write_text(V2.replace("/sys/fs/cgroup", str(tmp_path)))
    layout = cgroup.read_layout(tmp_path, tmp_path / "mountinfo")
    assert (layout.kind, layout.cpuset, layout.memory) == ("v2", None, tmp_path / "chv.slice")
    assert layout.reason == "cgroup controllers that cannot be used: cpuset"
    assert not paths_for(layout, "k").threaded


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", ".hidden", "a\nb", "x" * 201])
def test_a_key_is_one_plain_name(key: str) -> None:
    with pytest.raises(ValueError, match="cgroup key"):
        paths_for(parse_layout(V2), key)


def groups(tmp_path: Path, key: str = "k") -> MachineGroups:
    return paths_for(CgroupLayout(kind="v2", tops=(tmp_path / "chv.slice",)), key)


def test_groups_are_made_twice_and_removed_twice_without_complaint(tmp_path: Path) -> None:
    ours = groups(tmp_path)
    for _ in range(2):
        cgroup.create((*ours.vmm, *ours.keeper))
    assert sorted(os.listdir(tmp_path / "chv.slice/k")) == ["keeper", "vmm"]
    for _ in range(2):
        for path in (*ours.vmm, *ours.keeper):
            cgroup.remove(path)
    assert os.listdir(tmp_path) == []


def test_a_topmost_group_that_another_machine_takes_away_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (vmm,) = groups(tmp_path).vmm
    mkdir = Path.mkdir
    taken: list[Path] = []

    def mkdir_late(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if path == vmm and vmm.parent.is_dir() and not taken:
            vmm.parent.rmdir()
            taken.append(vmm.parent)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        mkdir(path, mode, parents, exist_ok)

    cgroup.create([vmm.parent])
    monkeypatch.setattr(Path, "mkdir", mkdir_late)
    cgroup.create([vmm])
    assert taken
    assert vmm.is_dir()


def test_removing_one_machine_keeps_the_others(tmp_path: Path) -> None:
    one, other = groups(tmp_path, "one"), groups(tmp_path, "other")
    cgroup.create((*one.vmm, *one.keeper, *other.vmm))
    cgroup.remove(one.vmm[0])
    assert one.keeper[0].is_dir()
    cgroup.remove(one.keeper[0])
    assert os.listdir(tmp_path / "chv.slice") == ["other"]


def test_groups_below_ours_go_first(tmp_path: Path) -> None:
    (vmm,) = groups(tmp_path).vmm
    cgroup.create([vmm / "v0" / "deep", vmm / "v1"])
    cgroup.remove(vmm)
    assert os.listdir(tmp_path) == []


def test_a_group_that_does_not_empty_is_told_with_who_is_in(tmp_path: Path) -> None:
    (vmm,) = groups(tmp_path).vmm
    cgroup.create([vmm])
    (vmm / "cgroup.procs").write_text(f"{os.getpid()}\n0\n")  # a plain file keeps the directory from going
    name = Path("/proc/self/comm").read_text().strip()
    with pytest.raises(HostError) as caught:
        cgroup.remove(vmm, timeout_s=0)
    assert str(caught.value) == f"cgroup {vmm}: cannot be removed, it still holds {os.getpid()} ({name})"
    assert cgroup.pids(vmm) == (os.getpid(),)


def test_a_group_with_ourselves_in_it_is_not_killed(tmp_path: Path) -> None:
    (vmm,) = groups(tmp_path).vmm
    cgroup.create([vmm])
    (vmm / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (vmm / "cgroup.kill").write_text("")
    with pytest.raises(HostError, match="holds this very process"):
        cgroup.kill_all(vmm)
    assert (vmm / "cgroup.kill").read_text() == ""


@pytest.mark.parametrize(
    "path", ["/sys/fs/cgroup", "/sys/fs/cgroup/chv.slice", "/sys/fs/cgroup/nomad.slice/x/vmm", "/"]
)
def test_groups_of_others_are_never_touched(path: str) -> None:
    for act in (cgroup.remove, cgroup.kill_all):
        with pytest.raises(ValueError, match="not a group of ours"):
            act(Path(path))
    with pytest.raises(ValueError, match="not a group of ours"):
        cgroup.join(Path(path), 1)


def test_a_way_out_of_our_tree_is_not_followed() -> None:
    with pytest.raises(ValueError, match="not a group of ours"):
        cgroup.remove(Path("/sys/fs/cgroup/chv.slice/../nomad.slice/x"))


def test_a_missing_group_holds_nobody(tmp_path: Path) -> None:
    (vmm,) = groups(tmp_path).vmm
    assert cgroup.pids(vmm) == ()
    cgroup.kill_all(vmm)


def test_joining_a_missing_group_is_told(tmp_path: Path) -> None:
    (vmm,) = groups(tmp_path).vmm
    with pytest.raises(HostError, match=r"vmm: process 1 cannot join: no such file or directory"):
        cgroup.join(vmm, 1)
