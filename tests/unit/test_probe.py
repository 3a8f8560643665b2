"""What the host can do, on made-up hosts."""

import os
from pathlib import Path

import pytest

from vmlib.errors import HostError
from vmlib.probe import (
    cloud_hypervisor_complaint,
    cpu_flags,
    kvm_cure,
    kvm_usable,
    parse_cloud_hypervisor_version,
    parse_qemu_version,
    parse_virtiofsd_version,
    version_complaint,
)

CREATE_VM, CREATE_VCPU = 0xAE01, 0xAE41


class Kvm:
    """An ioctl that behaves like /dev/kvm and hands out real descriptors."""

    def __init__(self, refuse: int | None = None, *, version: int = 12, interrupt: int = 0) -> None:
        self.refuse = refuse
        self.version = version
        self.interrupt = interrupt
        self.given: list[int] = []

    def __call__(self, fd: int, request: int, argument: int) -> int:
        os.fstat(fd)
        assert argument == 0
        if request == 0xAE00:
            return self.version
        if self.interrupt:
            self.interrupt -= 1
            raise InterruptedError
        if request == self.refuse:
            raise OSError(16, "Device or resource busy")
        self.given.append(os.open("/dev/null", os.O_RDONLY))
        return self.given[-1]


def host(directory: Path, flags: str) -> tuple[Path, Path]:
    cpuinfo, device = directory / "cpuinfo", directory / "kvm"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nvmx flags\t: vnmi\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    device.touch()
    device.chmod(0o666)
    return cpuinfo, device


@pytest.mark.parametrize("flags", ["fpu vmx sse", "fpu svm"])
def test_flags_and_a_vcpu_together_are_usable_kvm(flags: str, tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, flags)
    kvm = Kvm()
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=kvm) == (True, "")
    assert len(kvm.given) == 2
    for fd in kvm.given:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_kvm_without_hardware_behind_it_is_not_even_opened(tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, "fpu hypervisor")
    kvm = Kvm()
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=kvm) == (False, "cpu has neither vmx nor svm")
    assert kvm.given == []


@pytest.mark.parametrize(("refuse", "step"), [(CREATE_VM, "create vm"), (CREATE_VCPU, "create vcpu")])
def test_each_step_must_work_and_all_is_closed(refuse: int, step: str, tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, "vmx")
    kvm = Kvm(refuse)
    usable, why = kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=kvm)
    assert not usable
    assert why == f"{device}: {step}: device or resource busy"
    for fd in kvm.given:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_missing_device_is_the_reason(tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, "vmx")
    device.unlink()
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=Kvm()) == (False, f"{device}: no such file or directory")


@pytest.mark.parametrize(
    ("mode", "gid", "usable"), [(0o600, 0, False), (0o660, 0, False), (0o640, 7, False), (0o660, 7, True)]
)
def test_a_device_that_lets_no_user_in_is_not_ours(mode: int, gid: int, usable: bool, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    cpuinfo, device = host(tmp_path, "vmx")
    os.chown(device, 0, gid)
    device.chmod(mode)
    why = "" if usable else f"{device}: mode {mode:04o} is for root only, expected 0660 of a group of its own, or 0666"
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=Kvm()) == (usable, why)


def test_another_interface_version_is_not_ours(tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, "vmx")
    usable, why = kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=Kvm(version=11))
    assert (usable, why) == (False, f"{device}: speaks version 11, expected 12")


def test_a_signal_in_between_says_nothing_about_kvm(tmp_path: Path) -> None:
    cpuinfo, device = host(tmp_path, "vmx")
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=Kvm(interrupt=2)) == (True, "")
    assert kvm_usable(cpuinfo=cpuinfo, device=device, ioctl=Kvm(interrupt=9))[0] is False


@pytest.mark.parametrize(
    ("flags", "why_not", "cure"),
    [
        ("fpu", "cpu has neither vmx nor svm", "turn on virtualisation"),
        ("svm", "/dev/kvm: no such file or directory", "modprobe kvm_amd"),
        ("vmx", "/dev/kvm: no such file or directory", "modprobe kvm_intel"),
        ("vmx", "/dev/kvm: mode 0600 is for root only, expected …", "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"),
        ("vmx", "/dev/kvm: permission denied", "run it as root"),
        ("vmx", "/dev/kvm: operation not permitted", "run it as root"),
        ("vmx", "/dev/kvm: create vm: device or resource busy", "unload what else uses"),
        ("vmx", "/dev/kvm: create vcpu: invalid argument", "look for what `dmesg` says of kvm"),
    ],
)
def test_each_reason_has_its_cure(flags: str, why_not: str, cure: str, tmp_path: Path) -> None:
    cpuinfo, _ = host(tmp_path, flags)
    assert kvm_cure(why_not, cpuinfo=cpuinfo).startswith(cure)


def test_flags_are_whole_words() -> None:
    assert cpu_flags("flags : avx vmxnet\n") == {"avx", "vmxnet"}
    assert cpu_flags("no such line\n") == set()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)\n", "7.2.22"),
        ("QEMU emulator version 10.0.0\n", "10.0.0"),
        ("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)\n", "9.1.50"),
    ],
)
def test_version_is_read(text: str, version: str) -> None:
    assert parse_qemu_version(text) == version


@pytest.mark.parametrize("text", ["", "qemu-img version 7.2.22", "QEMU emulator version seven"])
def test_what_is_no_version_is_quoted(text: str) -> None:
    with pytest.raises(HostError, match=r"expected `QEMU emulator version X\.Y\.Z`"):
        parse_qemu_version(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)\nusing FUSE kernel\n", "7.2.22"),
        ("virtiofsd 1.13.2\n", "1.13.2"),
        ("virtiofsd backend 1.4.0\n", "1.4.0"),
    ],
)
def test_version_of_virtiofsd_is_read(text: str, version: str) -> None:
    assert parse_virtiofsd_version(text) == version


def test_what_is_no_virtiofsd_is_quoted() -> None:
    with pytest.raises(HostError, match=r"says 'virtiofsd\?', expected `virtiofsd X\.Y\.Z`"):
        parse_virtiofsd_version("virtiofsd?\n")


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("7.2.0", ""),
        ("10.1.0", ""),
        ("7.1.9", "version 7.1.9 is too old, expected at least 7.2"),
        ("6.2.0", "version 6.2.0 is too old, expected at least 7.2"),
    ],
)
def test_old_versions_are_refused(version: str, complaint: str) -> None:
    assert version_complaint(version) == complaint


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cloud-hypervisor v53.0\nMigration Protocol Versions: 0\n", "53.0"),
        ("cloud-hypervisor v51.2.0-dirty\n", "51.2"),
        ("cloud-hypervisor 53.0.0\n", "53.0"),
        ("cloud-hypervisor v53.0-12-gabcdef\n", "53.0"),
    ],
)
def test_cloud_hypervisor_says_its_version_in_the_first_line(text: str, version: str) -> None:
    assert parse_cloud_hypervisor_version(text) == version


@pytest.mark.parametrize(
    "text", ["", "QEMU emulator version 7.2.0", "cloud-hypervisor v53", "x\ncloud-hypervisor v53.0"]
)
def test_what_is_no_cloud_hypervisor_is_told_in_its_own_words(text: str) -> None:
    with pytest.raises(HostError, match="expected `cloud-hypervisor vX"):
        parse_cloud_hypervisor_version(text)


@pytest.mark.parametrize(
    ("version", "complaint"),
    [
        ("50.0", "version 50.0 is too old, expected at least 51.2"),
        ("51.1", "version 51.1 is too old, expected at least 51.2"),
        ("51.2", ""),
        ("52.0", "version 52.0 miscounts its guest's memory, expected 53.0 or later"),
        ("52.1", ""),
        ("53.0", ""),
        ("100.0", ""),
    ],
)
def test_versions_of_cloud_hypervisor_that_do(version: str, complaint: str) -> None:
    assert cloud_hypervisor_complaint(version) == complaint
