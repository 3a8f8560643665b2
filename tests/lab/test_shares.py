"""Helpers on cgroup v2: in the VMM's memory group, and away from the cores of its vCPUs."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.machines import Running
from tests.lab.conftest import KvmHost
from vmlib import process
from vmlib.spec import CoresSpec, MountSpec

pytestmark = pytest.mark.needs("root", "cgroup2", "kvm", "virtiofsd")


def serving(one: Running) -> list[int]:
    """The two processes of the share's virtiofsd."""
    pid = one.ask("status")["helpers"]["fs0"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def test_a_virtiofsd_runs_where_the_vmms_other_threads_do(kvm_host: KvmHost) -> None:
    shared = kvm_host.directory / "shared"
    shared.mkdir()
    one = kvm_host.start(
        "mount=chv:srv-data:/m put=/m/x:y tick",
        vcpus=2,
        cores=CoresSpec(exclusive=True),
        mounts=(MountSpec(source=shared, guest_path="/srv/data"),),
    )
    one.until_line("put /m/x", timeout_s=120)
    assert (shared / "x").read_text() == "y\n"
    for pid in serving(one):
        assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith("/vmm/emu")
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(one.vmm)

    who = process.identify(serving(one)[0])
    assert who is not None
    assert process.send_signal(who, signal.SIGKILL)
    one.until_told("helper restarted", timeout_s=30)
    (pid,) = serving(one)
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith("/vmm/emu")
    one.machine.destroy()
