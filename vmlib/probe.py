"""What this host can do, found out by doing it: hardware virtualisation, and the programs that are installed."""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import HostError
from vmlib.process import TOOL_ENVIRONMENT, run_tool

QEMU_MIN_VERSION = (7, 2, 0)
CLOUD_HYPERVISOR_MIN_VERSION = (51, 2)
CLOUD_HYPERVISOR_RECOMMENDED = (53, 0)
_CLOUD_HYPERVISOR_REFUSED = ((52, 0),)
VIRTIOFSD_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
VIRTIOFSD_CURE = "install virtiofsd, which is in the package qemu-system-common on Debian 12 and in virtiofsd elsewhere"
SWTPM_CURE = "install the package swtpm"
PASST_CURE = "install the package passt"
PASST_DROPS_FORGED = "20240624"
_VERSION_TIMEOUT_S = 10.0

_IO_URING_KERNEL = (5, 12)  # before it the rings are locked memory, of which a process without privileges has little

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_CREATE_VCPU = 0xAE41
_KVM_API_VERSION = 12  # the only one there has been since 2007

_SYS_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1  # only tell which version of it the kernel has
_LANDLOCK_TRUNCATE = 3  # of Linux 6.2

_CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 19, 21

Ioctl = Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An installed program, or `why_not` it cannot be used."""

    path: str
    version: str = ""
    why_not: str = ""


def kvm_usable(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    device: Path = Path("/dev/kvm"),
    ioctl: Ioctl = fcntl.ioctl,
) -> tuple[bool, str]:
    """Whether guests run on KVM here, and when they do not, why.

    Machines run as users of their own, whom the device's mode has to let in. The CPU's flags and a vCPU that can be
    made are both needed: on a paravirtual KVM the second works and guests hang.
    """
    try:
        flags = cpu_flags(cpuinfo.read_text())
    except OSError as exc:
        return False, f"{cpuinfo}: {_words(exc)}"
    if not flags & {"vmx", "svm"}:
        return False, "cpu has neither vmx nor svm"
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        found = os.stat(fd)
    except OSError as exc:
        return False, f"{device}: {_words(exc)}"
    if found.st_mode & 0o006 != 0o006 and (found.st_mode & 0o060 != 0o060 or not found.st_gid):
        os.close(fd)
        mode = stat.S_IMODE(found.st_mode)
        return False, f"{device}: mode {mode:04o} is for root only, expected 0660 of a group of its own, or 0666"
    with contextlib.ExitStack() as fds:
        fds.callback(os.close, fd)
        step = "version"
        try:
            version = ioctl(fd, _KVM_GET_API_VERSION, 0)
            if version != _KVM_API_VERSION:
                return False, f"{device}: speaks version {version}, expected {_KVM_API_VERSION}"
            step = "create vm"
            vm = _unless_interrupted(ioctl, fd, _KVM_CREATE_VM)
            fds.callback(os.close, vm)
            step = "create vcpu"
            fds.callback(os.close, _unless_interrupted(ioctl, vm, _KVM_CREATE_VCPU))
        except OSError as exc:
            return False, f"{device}: {step}: {_words(exc)}"
    return True, ""


def kvm_cure(why_not: str, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What to do about that answer of `kvm_usable`."""
    if "neither vmx nor svm" in why_not:
        return (
            "turn on virtualisation (VT-x, AMD-V) in the firmware's set-up; for a VM, nested virtualisation at its host"
        )
    if "no such file" in why_not:
        amd = "svm" in cpu_flags(cpuinfo.read_text())
        return f"modprobe {'kvm_amd' if amd else 'kvm_intel'}"
    if "is for root only" in why_not:
        return "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"
    if "not permitted" in why_not or "permission denied" in why_not:
        return "run it as root, outside of containers that withhold /dev/kvm"
    if "busy" in why_not:
        return "unload what else uses the CPU's virtualisation: modprobe -r vboxdrv"
    return "look for what `dmesg` says of kvm"


def cpu_flags(cpuinfo: str) -> set[str]:
    """The flags of the first CPU in the text of /proc/cpuinfo."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _unless_interrupted(ioctl: Ioctl, fd: int, request: int) -> int:
    # A signal that arrives meanwhile makes the kernel give up, and says nothing about KVM.
    for _ in range(3):
        try:
            return ioctl(fd, request, 0)
        except InterruptedError:
            continue
    raise OSError(errno.EINTR, os.strerror(errno.EINTR))


def find_program(binary: str) -> str | None:
    """Where a VMM or a tool would be found; None when it is not installed. Starts nothing."""
    return shutil.which(binary, path=TOOL_ENVIRONMENT["PATH"])


def qemu_program(binary: str) -> Program:
    """Look for QEMU on the path of a VMM and ask its version, once for each state of the file."""
    path = find_program(binary)
    if path is None:
        return Program(path=binary, why_not=f"{binary} is not installed")
    try:
        version = qemu_version(path)
    except HostError as exc:
        return Program(path=path, why_not=f"{path} --version: {exc}")
    return Program(path=path, version=version, why_not=version_complaint(version))


def qemu_version(path: str) -> str:
    """The version of the QEMU at that path, as `7.2.22`. Raises HostError."""
    try:
        changed_ns = os.stat(path).st_mtime_ns
    except OSError as exc:
        raise HostError(f"{path}: {_words(exc)}") from exc
    return parse_qemu_version(_says_version(path, changed_ns))


@functools.lru_cache(maxsize=8)
def _says_version(path: str, changed_ns: int) -> str:  # noqa: ARG001  an upgraded file is asked again
    return run_tool([path, "--version"], timeout_s=_VERSION_TIMEOUT_S)


def parse_qemu_version(text: str) -> str:
    """`7.2.22` out of what `qemu-system-x86_64 --version` prints. Raises HostError."""
    found = re.match(r"QEMU emulator version (\d+\.\d+\.\d+)", text)
    if found is None:
        line = text.strip().partition("\n")[0][:100]
        raise HostError(f"says {line!r}, expected `QEMU emulator version X.Y.Z`")
    return found[1]


def version_complaint(version: str) -> str:
    """Why that version of QEMU is of no use to us; "" when it is."""
    if tuple(map(int, version.split("."))) >= QEMU_MIN_VERSION:
        return ""
    return f"version {version} is too old, expected at least {'.'.join(map(str, QEMU_MIN_VERSION[:2]))}"


def cloud_hypervisor_program(binary: str) -> Program:
    """Look for Cloud Hypervisor on the path of a VMM and ask its version, once for each state of the file."""
    path = find_program(binary)
    if path is None:
        return Program(path=binary, why_not=f"{binary} is not installed")
    try:
        version = parse_cloud_hypervisor_version(_says_version(path, os.stat(path).st_mtime_ns))
    except (OSError, HostError) as exc:
        return Program(path=path, why_not=f"{path} --version: {exc}")
    return Program(path=path, version=version, why_not=cloud_hypervisor_complaint(version))


def parse_cloud_hypervisor_version(text: str) -> str:
    """`53.0` or `51.2` out of the first line of `cloud-hypervisor --version`. Raises HostError."""
    line = text.strip().partition("\n")[0][:100]
    found = re.match(r"cloud-hypervisor v?(\d+)\.(\d+)", line)
    if found is None:
        raise HostError(f"says {line!r}, expected `cloud-hypervisor vX.Y`")
    return f"{int(found[1])}.{int(found[2])}"


def cloud_hypervisor_complaint(version: str) -> str:
    """Why that version of Cloud Hypervisor is of no use to us; "" when it is."""
    number = tuple(map(int, version.split(".")))
    if number < CLOUD_HYPERVISOR_MIN_VERSION:
        return f"version {version} is too old, expected at least {'.'.join(map(str, CLOUD_HYPERVISOR_MIN_VERSION))}"
    if number in _CLOUD_HYPERVISOR_REFUSED:
        return f"version {version} miscounts its guest's memory, expected 53.0 or later"
    return ""


def virtiofsd_program() -> Program:
    """Look for virtiofsd where distributions put it, and ask its version, once for each state of the file."""
    found = next((path for path in VIRTIOFSD_PLACES if os.access(path, os.X_OK)), None) or find_program("virtiofsd")
    if found is None:
        places = ", ".join((*VIRTIOFSD_PLACES, TOOL_ENVIRONMENT["PATH"]))
        return Program(path="virtiofsd", why_not=f"virtiofsd is not installed (looked in {places})")
    try:
        version = parse_virtiofsd_version(_says_version(found, os.stat(found).st_mtime_ns))
    except (OSError, HostError) as exc:
        return Program(path=found, why_not=f"{found} --version: {exc}")
    return Program(path=found, version=version)


def parse_virtiofsd_version(text: str) -> str:
    """`7.2.22` of the one that came with QEMU, `1.13.2` of the one that stands alone. Raises HostError."""
    found = re.match(r"virtiofsd (?:version |backend )?v?(\d+\.\d+(?:\.\d+)?)", text)
    if found is None:
        line = text.strip().partition("\n")[0][:100]
        raise HostError(f"says {line!r}, expected `virtiofsd X.Y.Z`")
    return found[1]


def swtpm_program() -> Program:
    """Where swtpm is installed."""
    found = find_program("swtpm")
    if found is None:
        return Program(path="swtpm", why_not=f"swtpm is not installed (looked in {TOOL_ENVIRONMENT['PATH']})")
    return Program(path=found)


def passt_program() -> Program:
    """Where passt is installed. One that is not is no fault: QEMU's own user mode is used then."""
    found = find_program("passt")
    if found is None:
        return Program(path="passt", why_not=f"passt is not installed (looked in {TOOL_ENVIRONMENT['PATH']})")
    return Program(path=found)


def user_router() -> str:
    """Who is the router of user networks here."""
    return "qemu" if passt_program().why_not else "passt"


def passt_version(path: str) -> str:
    """The day of the sources of that passt, as `20250503`; "" when it does not say, as Debian 12's."""
    try:
        text = _says_version(path, os.stat(path).st_mtime_ns)
    except (OSError, HostError):
        return ""
    return parse_passt_version(text)


def parse_passt_version(text: str) -> str:
    """Out of `passt 2024_06_24.1ee2eca` or `passt 0.0~git20250503.587980c-2`."""
    found = re.match(r"passt .*?(20\d\d)_?(\d\d)_?(\d\d)", text)
    return "".join(found.groups()) if found else ""


def passt_drops_forged(version: str) -> bool:
    """Whether it drops what a guest sends to an address of the host's loopback, as root in there may."""
    return version >= PASST_DROPS_FORGED


def io_uring_usable(*, disabled: Path = Path("/proc/sys/kernel/io_uring_disabled"), release: str = "") -> bool:
    """Whether QEMU of this host, and its kernel, do I/O by io_uring for a process without privileges."""
    version = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < _IO_URING_KERNEL:
        return False
    with contextlib.suppress(OSError):
        if disabled.read_text().strip() != "0":
            return False
    qemu_img = find_program("qemu-img")
    return qemu_img is not None and _opens_by_io_uring(qemu_img)


@functools.lru_cache(maxsize=2)
def _opens_by_io_uring(qemu_img: str) -> bool:
    """Tried with a file that is surely there: the program itself."""
    options = f"driver=file,aio=io_uring,filename={qemu_img}"
    try:
        run_tool([qemu_img, "info", "--image-opts", options], timeout_s=_VERSION_TIMEOUT_S)
    except HostError:  # built without it, or not allowed here
        return False
    return True


def may_shut_in() -> bool:
    """Whether we may give a VMM a root of its own, and look into that."""
    effective = next(
        int(line.split()[1], 16)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff:")
    )
    return os.geteuid() == 0 and all(effective >> cap & 1 for cap in (_CAP_SYS_ADMIN, _CAP_SYS_PTRACE))


def landlock_usable() -> bool:
    """Whether the kernel lets a process give up all files but those it names, links and renames included (6.2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)) >= _LANDLOCK_TRUNCATE


def _words(exc: OSError) -> str:
    return (exc.strerror or str(exc)).lower()
