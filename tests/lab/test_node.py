"""The node is what the other tests here take it for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmlib import probe

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")


def test_has_four_cores_of_two_threads() -> None:
    siblings = [(CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip() for cpu in range(8)]
    assert siblings == ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]
    assert (CPUS / "online").read_text() == "0-7\n"
    assert (CPUS / "smt/active").read_text() == "1\n"


def test_has_an_l3_for_each_package() -> None:
    shared = [(CPUS / f"cpu{cpu}/cache/index3/shared_cpu_list").read_text().strip() for cpu in range(8)]
    assert shared == ["0-3"] * 4 + ["4-7"] * 4
    packages = [(CPUS / f"cpu{cpu}/topology/physical_package_id").read_text().strip() for cpu in range(8)]
    assert packages == ["0"] * 4 + ["1"] * 4


def test_has_two_numa_nodes_with_memory() -> None:
    assert [(NODES / f"node{node}/cpulist").read_text().strip() for node in (0, 1)] == ["0-3", "4-7"]
    assert [(NODES / f"node{node}/distance").read_text().split() for node in (0, 1)] == [["10", "21"], ["21", "10"]]
    for node in (0, 1):
        found = re.search(r"MemTotal: +(\d+) kB", (NODES / f"node{node}/meminfo").read_text())
        assert found is not None
        assert int(found[1]) > 1_500_000


def test_has_nothing_but_cgroup_v2() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines() if " cgroup" in line]
    assert [(mount[1], mount[2]) for mount in mounts] == [("/sys/fs/cgroup", "cgroup2")]
    assert {"cpuset", "cpu", "memory", "pids"} <= set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())


def test_runs_as_root_with_usable_kvm() -> None:
    assert probe.kvm_usable() == (True, "")


def test_has_what_nomad_finds_numa_nodes_with() -> None:
    # Nomad runs it and believes in one node when it is not there.
    assert shutil.which("dmidecode") is not None


@pytest.mark.parametrize("module", ["grpc", "google.protobuf", "msgspec", "pyroute2", "hcl2", "pycdlib"])
def test_imports_what_the_driver_is_made_of(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
