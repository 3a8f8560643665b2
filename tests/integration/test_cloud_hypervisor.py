"""Machines in a real Cloud Hypervisor, up to the moment at which the guest runs: nothing here needs one that does."""

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import DATA, Host, Running, host_for
from tests.integration.networks import network
from vmlib.disk.overlay import forget_backing
from vmlib.errors import HypervisorError, SpecError
from vmlib.spec import CoresSpec, FileRef, MacvtapLink, MountSpec, NicSpec, RootDisk, SeedSpec

pytestmark = pytest.mark.needs("cloud-hypervisor")

SEED = SeedSpec(instance_id="i-1", hostname="web")


@pytest.fixture
def host(short_dir: Path, guest: Guest) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "cloud-hypervisor") as one:
        yield one


def image(host: Host, name: str = "base.raw", *, mode: int = 0o444) -> RootDisk:
    path = host.directory / name
    with open(path, "wb") as file:
        file.truncate(32 << 20)
    path.chmod(mode)
    return RootDisk(image=FileRef(root=host.directory, relative=name), format="raw")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def threads(pid: int) -> dict[str, frozenset[int]]:
    """Name and CPUs of every thread but the kernel's own."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if not name.startswith("kvm-"):
            found[name] = frozenset(os.sched_getaffinity(int(task.name)))
    return found


def backing_of(path: Path) -> str:
    data = path.read_bytes()[: 1 << 16]
    offset, size = struct.unpack_from(">QI", data, 8)
    return data[offset : offset + size].decode()


def overlay_of(one: Running) -> Path:
    return one.machine.paths.disk_dir / "root-overlay.qcow2"


def test_its_vmm_is_an_ordinary_user_and_opens_by_itself_what_only_root_can_walk_to(host: Host) -> None:
    one = host.start(root=image(host), seed=SEED, disks=(replace(DATA, rate_bytes=1 << 20),), balloon=True)
    assert one.machine.status() == "running"
    pid = one.machine.record.vmm_pid
    status = status_of(pid)
    assert (status["Uid"].split()[0], int(status["CapEff"], 16), status["NoNewPrivs"]) == ("210000", 0, "1")
    opened = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert {str(overlay_of(one)), str(host.directory / "base.raw"), str(one.machine.paths.seed)} <= opened
    assert stat.S_IMODE(one.machine.paths.root.stat().st_mode) == 0o700


def test_what_a_machine_has_is_counted(host: Host) -> None:
    usage = host.start(root=image(host), disks=(DATA,), balloon=True).machine.usage()
    assert (len(usage.disks), usage.nics, usage.memory_bytes) == (2, (), 128 << 20)


def test_pins_are_there_when_the_start_returns_and_again_after_a_reboot(host: Host) -> None:
    one = host.start(root=image(host), cores=CoresSpec(exclusive=True))
    placement = one.machine.record.placement
    assert placement is not None
    pid, own = one.machine.record.vmm_pid, frozenset(placement.vcpus)

    def misplaced() -> list[str]:
        return [name for name, cpus in threads(pid).items() if (cpus == own) != (name == "vcpu0")]

    assert misplaced() == []
    (before,) = one.machine.vcpus()
    with one.machine._vmm() as vmm:
        vmm.reboot()
    (after,) = one.machine.vcpus()
    assert after.thread_id != before.thread_id
    assert host.machines.cores.reconcile() == []  # it is nobody's fault, so no repair is told
    assert misplaced() == []


def test_it_is_paused_and_resumed_any_number_of_times(host: Host) -> None:
    one = host.start()
    for _ in range(2):
        one.machine.pause()
    assert one.machine.status() == "paused"
    for _ in range(2):
        one.machine.resume()
    assert one.machine.status() == "running"


def test_a_reboot_from_outside_is_told_once_and_resumes_a_paused_machine(host: Host) -> None:
    one = host.start()
    one.machine.reboot()
    one.until_told("chv: rebooted from outside")
    one.machine.pause()
    one.machine.reboot()
    one.until(lambda: one.kinds() == ["rebooted", "paused", "resumed", "rebooted"], "the events")
    one.pass_time(2.0)
    assert one.kinds() == ["rebooted", "paused", "resumed", "rebooted"]
    assert one.machine.status() == "running"


def test_a_reboot_from_outside_ends_a_machine_that_shall_not_reboot(host: Host) -> None:
    one = host.start(on_reboot="exit")
    one.machine.reboot()
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (0, 0, "")


def test_an_nmi_is_taken(host: Host) -> None:
    one = host.start()
    one.machine.nmi()
    assert one.machine.status() == "running"


def test_an_overlay_names_the_image_below_it_for_one_start_only(host: Host) -> None:
    root = image(host)
    first = host.start(root=root)
    named = backing_of(overlay_of(first))
    assert named.startswith("/proc/self/fd/")
    first.machine.destroy()
    second = host.start(root=root)
    assert second.machine.status() == "running"
    second.machine.kill()
    assert second.machine.wait(5.0) is not None
    with open(overlay_of(second), "r+b") as file:
        forget_backing(file.fileno())
    assert backing_of(overlay_of(second)) == ""
    subprocess.run(["qemu-img", "check", "-q", overlay_of(second)], check=True)


def test_what_a_vmm_writes_into_its_overlays_header_leads_nowhere(host: Host) -> None:
    root = image(host)
    first = host.start(root=root)
    overlay = overlay_of(first)
    first.machine.destroy()
    with open(overlay, "r+b") as file:
        file.seek(60_000)
        file.write(b"/etc/shadow")
        file.seek(8)
        file.write(struct.pack(">QI", 60_000, len(b"/etc/shadow")))
    second = host.start(root=root)
    opened = {os.readlink(path) for path in Path(f"/proc/{second.machine.record.vmm_pid}/fd").iterdir()}
    assert "/etc/shadow" not in opened
    assert str(host.directory / "base.raw") in opened


@pytest.mark.needs("virtiofsd", "swtpm")
def test_shares_and_a_tpm_are_there_again_after_a_reboot(host: Host) -> None:
    shared = host.directory / "shared"
    shared.mkdir()
    one = host.start(mounts=(MountSpec(source=shared, guest_path="/srv/data"),), tpm=True)
    with one.machine._vmm() as vmm:
        vmm.reboot()
    assert one.machine.status() == "running"


def test_a_machine_that_cannot_boot_fails_in_the_vmms_own_words_and_leaves_nothing(host: Host) -> None:
    kernel = host.directory / "vmlinuz"
    kernel.write_bytes(b"\x7fELF" + bytes(4096))
    spec = host.spec()
    assert spec.boot is not None
    bad = replace(spec.boot, kernel=FileRef(root=host.directory, relative="vmlinuz"), initrd=None)
    with pytest.raises(HypervisorError, match=r"vm\.boot: .*[Kk]ernel"):
        host.run(replace(spec, boot=bad))
    assert host.processes() == {"keeper": [], "vmm": [], "launcher": []}


def test_an_image_that_its_user_may_not_read_is_named(host: Host) -> None:
    with pytest.raises(SpecError, match=r"base\.raw: uid 210000, which its VMM runs as, may not read it"):
        host.start(root=image(host, mode=0o400))


def test_an_end_by_quit_leaves_no_socket_and_no_process(host: Host) -> None:
    one = host.start()
    with one.machine._vmm() as vmm:
        vmm.quit()
    record = one.machine.wait(5.0)
    assert record is not None
    one.machine.destroy()
    assert host.processes() == {"keeper": [], "vmm": [], "launcher": []}


@pytest.mark.needs("root")
def test_its_interfaces_are_macvtaps_that_it_was_sent_and_keeps_over_a_reboot(short_dir: Path, guest: Guest) -> None:
    lan = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac="52:54:00:00:00:0a", rate_bytes=1 << 20)
    nics = (lan, replace(lan, mac="52:54:00:00:00:0b", rate_bytes=0))
    with network() as net, host_for(short_dir, guest.directory, "cloud-hypervisor") as host:
        one = net.host.do(lambda: host.run(host.spec(vcpus=2, nics=nics)))
        pid = one.machine.record.vmm_pid

        def taps() -> int:
            return sum("/tap" in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())

        assert taps() >= 4  # two pairs of queues each
        assert len(net.host.ours()) == 2
        with one.machine._vmm() as vmm:
            vmm.reboot()
        assert taps() >= 4
        assert len(one.machine.usage().nics) == 2
        net.host.do(one.machine.destroy)
        assert net.host.ours() == []
