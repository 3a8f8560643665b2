"""Machines that boot by UEFI firmware: OVMF as the host has it, with a variable store of each machine's own."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.guest.build import Guest
from tests.integration import machines
from tests.integration.machines import READY, Host, Running, host_for, root_of
from vmlib import probe
from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.firmware import descriptor_files, read_descriptor
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.settings import HostSettings
from vmlib.spec import DiskSpec, FileRef, SeedSpec

BOOT_S = 150.0  # under TCG it takes ten seconds on an idle host


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as host:
        yield host


def start(host: Host, words: str, **changes: Any) -> Running:
    """A machine that boots from its disk by UEFI, its guest told `words` in the seed."""
    user_data = f"#words {words}\n".encode()
    spec = host.spec(
        boot=None,
        memory_mib=256,
        root=root_of(host.guest, "disk.qcow2"),
        seed=SeedSpec(instance_id="i", hostname="h", user_data=user_data),
        firmware="uefi",
    )
    return host.run(replace(spec, **changes))


@pytest.mark.needs("uefi")
def test_a_variable_that_the_guest_sets_is_there_after_a_restart_of_the_machine_and_in_no_other(host: Host) -> None:
    one = start(host, "read-var write-var=kept poweroff")
    one.until_line(READY, timeout_s=BOOT_S)
    one.until_line("wrote variable")
    assert one.end().exit_code == 0
    assert "firmware uefi" in one.out.lines
    assert "read variable" in one.out.lines
    store = host.layout.machine("alloc/web").firmware_vars
    template = Path(json.loads(store.with_suffix(".json").read_text())["variables"])
    assert store.stat().st_mode & 0o777 == 0o600
    assert store.read_bytes() != template.read_bytes()
    one.machine.destroy()

    again = start(host, "read-var poweroff")
    other = start(host, "read-var poweroff", id="other", name="alloc/other")
    again.until_line("read variable kept", timeout_s=BOOT_S)
    assert again.end().exit_code == 0
    other.until_line("read variable", timeout_s=BOOT_S)
    assert other.end().exit_code == 0
    assert "read variable" in other.out.lines
    for machine in (again, other):
        machine.machine.destroy()


@pytest.mark.needs("uefi")
def test_a_machine_made_for_windows_boots_a_linux_image_by_uefi_without_asking_for_it(host: Host) -> None:
    """Windows itself cannot be tried here; this shows that QEMU takes such a machine and OVMF boots its root disk."""
    data = DiskSpec(name="data", format="raw", size_bytes=3 << 20, serial="data")
    one = start(host, "write-var=x poweroff", guest_os="windows", firmware="", disks=(data,), vcpus=2)
    command = Path(f"/proc/{one.machine.record.vmm_pid}/cmdline").read_text().split("\0")
    assert "max,hv-relaxed=on,hv-vapic=on,hv-time=on,hv-spinlocks=0x1fff" in command
    assert "base=localtime" in command
    one.until_line("wrote variable", timeout_s=BOOT_S)
    assert one.end().exit_code == 0
    assert "firmware uefi" in one.out.lines
    names = [(line.split()[1], *line.split()[3:]) for line in one.out.lines if line.startswith("disk vd")]
    assert names == [("vda",), ("vdb", "data"), ("vdc",)]  # the seed is the last
    one.machine.destroy()


@pytest.mark.needs("uefi")
def test_where_all_firmware_protects_its_variables_the_guest_boots_and_sets_them_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firmware that needs system management mode, alone in a filesystem of its own."""
    root = host.directory / "root"
    secure = _descriptor_with("requires-smm", but="enrolled-keys")
    if secure is None:
        pytest.skip("no such firmware is installed")
    (root / "usr/share/qemu/firmware").mkdir(parents=True)
    (root / "usr/share/qemu/firmware/50.json").write_text(json.dumps(secure))
    for part in ("executable", "nvram-template"):
        path = Path(secure["mapping"][part]["filename"])
        (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.relative_to("/"))
    assert Qemu(root=root).uefi_firmware().smm
    binary = probe.qemu_program("qemu-system-x86_64").path
    monkeypatch.setattr(machines, "hypervisor_of", lambda *_, **__: Qemu(binary=binary, root=root))
    one = start(host, "write-var=x poweroff", vcpus=2)
    one.until_line("wrote variable", timeout_s=BOOT_S)
    assert one.end().exit_code == 0
    one.machine.destroy()


def _descriptor_with(feature: str, *, but: str) -> dict[str, Any] | None:
    for path in descriptor_files().values():
        said: dict[str, Any] = json.loads(path.read_text() or "{}")
        features = said.get("features", ())
        if feature in features and but not in features and read_descriptor("x", path.read_bytes(), "pc-q35-7.2"):
            return said
    return None


@pytest.mark.needs("uefi")
def test_firmware_that_a_job_brings_boots_and_gets_no_store(host: Host) -> None:
    code = Qemu().uefi_firmware().code
    brought = host.directory / "mine.fd"
    brought.write_bytes(code.read_bytes())
    one = start(host, "poweroff", firmware=FileRef(root=host.directory, relative="mine.fd"))
    one.until_line("firmware uefi", timeout_s=BOOT_S)
    assert one.end().exit_code == 0
    assert not host.layout.machine("alloc/web").firmware_vars.exists()
    one.machine.destroy()


def test_a_host_without_uefi_firmware_says_where_it_looked(host: Host) -> None:
    bare = Machines(HostSettings(layout=host.layout), lambda _: (Qemu(root=host.directory), "by the test"), attach)
    spec = host.spec(boot=None, root=root_of(host.guest, "disk.qcow2"), firmware="uefi")
    with pytest.raises(HostError) as caught:
        bare.start(spec)
    assert str(caught.value) == (
        "firmware = 'uefi': no descriptor in /etc/qemu/firmware and /usr/share/qemu/firmware names UEFI firmware for"
        " pc-q35-7.2"
    )
    assert caught.value.hint == "install OVMF, which is the package ovmf on Debian"


@pytest.mark.parametrize("size", [0, 4097, (8 << 20) + 4096])
def test_a_file_that_cannot_be_flash_is_refused_by_key(host: Host, size: int) -> None:
    (host.directory / "x.fd").write_bytes(b"\0" * size)
    with pytest.raises(SpecError, match=rf"firmware = '.*/x.fd': {size} bytes, expected multiples of 4096 bytes"):
        start(host, "", firmware=FileRef(root=host.directory, relative="x.fd"))
