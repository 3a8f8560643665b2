"""Machines with devices of a host that we do not have: a tree in place of sysfs, all else is real."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.sysfs import write_pci_device
from tests.integration.machines import NOTHING, Host
from vmlib.errors import HostError, LaunchError, NoCapacityError, SpecError

GPU, SOUND = "0000:65:00.0", "0000:65:00.1"

_CAP_SYS_RESOURCE = 1 << 24


def may_raise_limits() -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & _CAP_SYS_RESOURCE)


needs_limits = pytest.mark.skipif(not may_raise_limits(), reason="needs CAP_SYS_RESOURCE, to let a VMM lock its RAM")


@pytest.fixture
def host(qemu: Host, tmp_path: Path) -> Host:
    """One with a graphics card of two functions."""
    qemu.root = tmp_path / "root"
    write_pci_device(qemu.root, GPU)
    write_pci_device(qemu.root, SOUND)
    return qemu


def node(host: Host) -> Path:
    return host.root / "dev/vfio/12"


def test_a_start_that_fails_gives_the_node_and_the_group_back(host: Host) -> None:
    """QEMU itself is asked, and says that this host has no such device; or the limit could not be raised."""
    with pytest.raises(LaunchError, match=f"{GPU}|setrlimit memlock"):
        host.start(vfio=(GPU,))
    assert node(host).stat().st_uid == os.getuid()
    assert not (host.layout.machine(host.spec().name).root / "vfio").exists()
    assert host.processes() == NOTHING


@needs_limits
def test_two_machines_do_not_get_devices_of_one_group(fake: Host, tmp_path: Path) -> None:
    fake.root = tmp_path / "root"
    write_pci_device(fake.root, GPU)
    write_pci_device(fake.root, SOUND)
    one = fake.start("sleep=60", vfio=(GPU,))
    assert one.machine.record.vfio == (GPU,)
    soft, hard = resource.prlimit(one.vmm, resource.RLIMIT_MEMLOCK)
    assert soft == hard > one.spec.memory_mib << 20
    with pytest.raises(NoCapacityError, match=f"vfio = .{SOUND}.: its IOMMU group 12 is held by machine"):
        fake.start(task="db", vfio=(SOUND,))
    one.machine.destroy()
    two = fake.start("sleep=60", task="db", vfio=(SOUND,))
    two.machine.destroy()
    assert fake.processes() == NOTHING


def test_a_group_that_a_machine_holds_is_not_given_to_another(fake: Host, tmp_path: Path) -> None:
    fake.root = tmp_path / "root"
    write_pci_device(fake.root, GPU)
    claim = fake.layout.machines / "other/db/vfio"
    claim.parent.mkdir(parents=True)
    claim.write_text('["12"]')
    with pytest.raises(NoCapacityError, match="its IOMMU group 12 is held by machine other/db"):
        fake.start(vfio=(GPU,))
    assert node(fake).stat().st_uid == os.getuid()


@pytest.mark.needs("root")
@pytest.mark.parametrize("kills", [1, 2])
def test_what_killed_starts_had_taken_is_given_back_to_its_first_owner(kills: int, fake: Host, tmp_path: Path) -> None:
    fake.root, fake.uids = tmp_path / "root", range(211_000, 211_008)
    write_pci_device(fake.root, GPU)
    write_pci_device(fake.root, SOUND)
    spec = fake.spec("sleep=60", vfio=(GPU,))
    for _ in range(kills):
        with fake.elsewhere(spec, failpoint="start.devices") as starter:
            _, words = starter.communicate(timeout=60)
            assert starter.returncode == -signal.SIGKILL, words.decode()
        assert node(fake).stat().st_uid in fake.uids
    with pytest.raises(NoCapacityError, match=f"its IOMMU group 12 is held by machine {spec.name}"):
        fake.start(task="db", vfio=(SOUND,))
    fake.machines.destroy(spec.name, spec.id)
    assert node(fake).stat().st_uid == os.getuid()
    assert not (fake.layout.machine(spec.name).root / "vfio").exists()
    assert fake.processes() == NOTHING


def test_the_launcher_sets_the_limit_of_locked_memory() -> None:
    code = (
        "import resource; from vmlib.launcher import allow_locked_memory; allow_locked_memory(65536);"
        "print(resource.getrlimit(resource.RLIMIT_MEMLOCK))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(65536, 65536)"


def test_a_machine_without_devices_may_lock_no_more_than_we(fake: Host) -> None:
    one = fake.start("sleep=60")
    assert resource.prlimit(one.vmm, resource.RLIMIT_MEMLOCK) == resource.getrlimit(resource.RLIMIT_MEMLOCK)


def test_a_device_that_is_not_ready_is_refused(fake: Host, tmp_path: Path) -> None:
    fake.root = tmp_path / "root"
    write_pci_device(fake.root, GPU, driver="nvidia")
    with pytest.raises(HostError, match="is bound to the driver nvidia, expected vfio-pci") as refused:
        fake.start(vfio=(GPU,))
    assert "driver_override" in refused.value.hint
    with pytest.raises(SpecError, match="expected a PCI address"):
        fake.start(vfio=("65:00.0",))
