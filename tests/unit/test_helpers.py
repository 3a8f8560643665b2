"""Helper processes on paper: their command lines, where they live, and when they are started again."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vmlib.cgroup import MachineGroups
from vmlib.helpers import router_helper, share_helper, tpm_helper
from vmlib.keeper.helpers import next_delay_s
from vmlib.keeper.plan import HelperPlan, KeeperPlan
from vmlib.paths import Layout, RunPaths
from vmlib.probe import Program
from vmlib.resources import Credentials, Forward, ShareAttachment, StreamNic, TpmAttachment

LAYOUT = Layout(Path("/var/lib/chv"), Path("/run/chv"))
RUN = RunPaths(Path("/run/chv/m/x"))
SHARE = ShareAttachment(name="fs0", tag="srv-data", guest_path="/srv/data", source=Path("/mnt/data"), readonly=True)
OF_QEMU = Program(path="/usr/lib/qemu/virtiofsd", version="7.2.22")
ALONE = Program(path="/usr/libexec/virtiofsd", version="1.13.2")
CGROUP = Path("/sys/fs/cgroup")
V1 = MachineGroups(
    vmm=(CGROUP / "cpuset/chv/x/vmm", CGROUP / "memory/chv/x/vmm"),
    keeper=(CGROUP / "cpuset/chv/x/keeper", CGROUP / "memory/chv/x/keeper"),
    cpuset=CGROUP / "cpuset/chv/x/vmm",
    keeper_cpuset=CGROUP / "cpuset/chv/x/keeper",
    memory=CGROUP / "memory/chv/x/vmm",
)
V2 = MachineGroups(
    vmm=(CGROUP / "chv.slice/x/vmm",),
    keeper=(CGROUP / "chv.slice/x/keeper",),
    cpuset=CGROUP / "chv.slice/x/vmm",
    keeper_cpuset=CGROUP / "chv.slice/x/keeper",
    memory=CGROUP / "chv.slice/x/vmm",
    threaded=True,
)


def test_virtiofsd_of_qemu() -> None:
    plan = share_helper(SHARE, OF_QEMU, RUN, V1)
    assert plan.argv == [
        "/usr/lib/qemu/virtiofsd",
        "-f",
        "--fd={fd:listener}",
        "-o",
        "source=/run/chv/m/x/fs0.d,modcaps=-mknod,announce_submounts,log_level=err",
    ]
    assert (plan.bind, plan.bind_at, plan.readonly) == ("shared", "/run/chv/m/x/fs0.d", True)
    assert plan.directories == {"shared": "/mnt/data"}
    assert 27 not in plan.capabilities  # a device made in a shared directory is there for other tasks


def test_virtiofsd_that_stands_alone() -> None:
    assert share_helper(SHARE, ALONE, RUN, V1).argv == [
        "/usr/libexec/virtiofsd",
        "--fd={fd:listener}",
        "--shared-dir=/run/chv/m/x/fs0.d",
        "--modcaps=-mknod",
        "--inode-file-handles=never",
        "--announce-submounts",
        "--log-level=error",
    ]


def test_swtpm_has_no_privilege_and_no_path_of_the_hosts() -> None:
    tpm = TpmAttachment(name="tpm", state_dir=Path("/var/lib/chv/machines/a/b/tpm"))
    plan = tpm_helper(tpm, "/usr/bin/swtpm", Credentials(uid=200000, gid=200001), V2, LAYOUT)
    assert plan.argv == [
        "/usr/bin/swtpm",
        "socket",
        "--tpm2",
        "--terminate",
        "--ctrl",
        "type=unixio,fd={fd:listener}",
        "--tpmstate",
        "dir=/proc/self/fd/{fd:state},mode=0600",
    ]
    assert (plan.uid, plan.gid, plan.capabilities, plan.filtered) == (200000, 200001, [], True)


NIC = StreamNic(
    name="net1",
    mac="52:54:00:12:34:56",
    network="nat",
    forwards=(
        Forward(protocol="tcp", host_ip="10.0.0.9", host_port=8080, guest_port=80),
        Forward(protocol="udp", host_ip="", host_port=1024, guest_port=53),
    ),
    netns="/run/netns/alloc",
)


def test_passt_is_as_the_vmms_user_in_the_links_namespace(golden: Callable[[str, str], None]) -> None:
    plan = router_helper(
        NIC, "/usr/bin/passt", Credentials(uid=200000, gid=200001, groups=(107,)), V2, resolvers=("192.0.2.53",)
    )
    golden("passt.txt", "\n".join(plan.argv) + "\n")
    assert (plan.uid, plan.gid, plan.capabilities, plan.netns) == (200000, 200001, [], "/run/netns/alloc")
    assert (plan.calls, plan.tells_ready) == ("net1", True)


def test_passt_has_a_capability_for_low_ports_alone_and_is_never_root() -> None:
    low = replace(NIC, forwards=(Forward(protocol="tcp", host_ip="", host_port=1023, guest_port=80),))
    plan = router_helper(low, "/usr/bin/passt", Credentials(uid=0, gid=0), V2, resolvers=())
    assert (plan.uid, plan.gid, plan.capabilities) == (65534, 65534, [10])


def test_a_helper_has_the_memory_of_the_vmm_and_no_cpu_of_its_guest() -> None:
    one = share_helper(SHARE, OF_QEMU, RUN, V1)
    assert one.cgroups == [f"{CGROUP}/cpuset/chv/x/keeper", f"{CGROUP}/memory/chv/x/vmm"]
    assert one.seat == ""
    two = share_helper(SHARE, OF_QEMU, RUN, V2)
    assert two.cgroups == [f"{CGROUP}/chv.slice/x/vmm"]
    assert two.seat == f"{CGROUP}/chv.slice/x/vmm/emu"
    assert share_helper(SHARE, OF_QEMU, RUN, MachineGroups()).cgroups == []


@pytest.mark.parametrize(
    ("delay_s", "lived_s", "expected"),
    [(0.0, 0.0, 0.2), (0.0, 3600.0, 0.2), (0.2, 1.0, 0.4), (0.4, 59.0, 0.8), (40.0, 0.1, 60.0), (60.0, 60.0, 0.2)],
)
def test_a_helper_that_keeps_ending_is_started_more_rarely(delay_s: float, lived_s: float, expected: float) -> None:
    assert next_delay_s(delay_s, lived_s) == expected


def test_a_keeper_finds_the_helpers_in_the_plan_of_the_one_before_it() -> None:
    helpers = [share_helper(SHARE, OF_QEMU, RUN, V1)]
    plan = KeeperPlan(id="a", run_dir="/r", exit_record="/e", stdout="", stderr="", argv=["vmm"], helpers=helpers)
    assert KeeperPlan.load(plan.dump()) == plan
    later = json.loads(plan.dump())
    later["helpers"][0]["of_a_later_version"] = 1
    assert KeeperPlan.load(json.dumps(later).encode()) == plan
    before = {key: value for key, value in asdict(plan).items() if key != "helpers"}
    assert KeeperPlan.load(json.dumps(before).encode()).helpers == []
    assert all(isinstance(one, HelperPlan) for one in KeeperPlan.load(plan.dump()).helpers)
