"""Inside the node: machines on nested KVM, and a Nomad agent. Outside only the test that runs a round is collected."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests import leftovers, needs
from tests.guest.build import Guest
from tests.integration.machines import UIDS, Host, host_for, hypervisor_of
from tests.lab.nfs_server import NfsServer, serving
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from vmlib import probe
from vmlib.cores.plan import Policy
from vmlib.cores.service import CoreSettings
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.settings import HostSettings

ROUND = "test_round.py"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Each side has its own tests: the node all but the one that runs it."""
    if collection_path.name.startswith("test_") and (collection_path.name == ROUND) == needs.IN_LAB:
        return True
    return None


@dataclass(slots=True)
class KvmHost(Host):
    """A host whose machines run with KVM. TCG inside TCG takes a minute to bring up a guest."""

    policy: Policy = field(default_factory=Policy)

    @property
    def machines(self) -> Machines:
        cores = CoreSettings(policy=lambda _: self.policy, reserved=frozenset)
        settings = HostSettings(layout=self.layout, vm_uids=UIDS[self.name], cores=cores)
        hypervisor = hypervisor_of(self.name)
        if isinstance(hypervisor, Qemu):
            hypervisor = replace(hypervisor, accel="kvm", io_uring=probe.io_uring_usable())
        return Machines(settings, lambda _: (hypervisor, "by the test"), attach)


def kvm_host_for(name: str, guest: Guest, short_dir: Path) -> Iterator[KvmHost]:
    """Machines without a plugin; nothing of them may be left at the end."""
    with (
        leftovers.none_left(run_dir=short_dir / "run", data_dir=short_dir / "data", settle_s=30),
        host_for(short_dir, guest.directory, name) as host,
    ):
        yield KvmHost(host.directory, host.guest, host.name, logs=host.logs)


@pytest.fixture
def kvm_host(guest: Guest, short_dir: Path) -> Iterator[KvmHost]:
    """On QEMU. A guest is up about 5 s after its start."""
    yield from kvm_host_for("qemu", guest, short_dir)


@pytest.fixture
def ch_host(guest: Guest, short_dir: Path) -> Iterator[KvmHost]:
    """On a real Cloud Hypervisor. A guest is up about 12 s after its start."""
    yield from kvm_host_for("cloud-hypervisor", guest, short_dir)


@pytest.fixture(scope="session")
def nfs_server(guest: Guest) -> Iterator[NfsServer]:
    """A file server in the node itself, with images and disks."""
    with serving(Path("/srv/vms")) as one:
        for part in (guest.disk_qcow2, guest.disk_raw, guest.kernel):
            shutil.copy(part, one.directory)
        (one.directory / "data.raw").write_bytes(b"from the server".ljust(1 << 20, b"\0"))
        with (one.directory / "written.raw").open("wb") as file:
            file.truncate(16 << 20)
        yield one


@pytest.fixture
def server(nfs_server: NfsServer) -> Iterator[NfsServer]:
    """The same, to be cut off by the test."""
    yield nfs_server
    nfs_server.heal()


@pytest.fixture(scope="session")
def dev_agent(guest: Guest, plugin_dir: Path) -> Iterator[Agent]:
    """A real agent that keeps nothing, for all tests that neither stop nor kill it. Ready after about 10 s."""
    yield from lifetime(make_agent(guest, plugin_dir, dev=True))
