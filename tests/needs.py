"""What tests need from the machine: a probe for each word that `CHV_TEST_REQUIRE` and `pytest.mark.needs` know."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests import setup as machine_setup
from tests.guest import cloud
from tests.lab import image
from vmlib import probe
from vmlib.errors import HostError
from vmlib.hypervisor.qemu import Qemu

# What a tier needs as a whole.
TIERS: dict[str, tuple[str, ...]] = {
    "unit": (),
    "integration": ("root", "qemu"),
    "conformance": ("go",),
    "nomad": ("root", "qemu", "nomad"),
    "lab": ("lab",),
}
# Set in the lab node: there the tests of that tier run themselves, elsewhere one test runs a round of them.
IN_LAB = os.environ.get("CHV_LAB") == "1"


def required() -> frozenset[str]:
    """The words whose lack is a failure. Raises ValueError for one that nobody knows."""
    words = frozenset(word.strip() for word in os.environ.get("CHV_TEST_REQUIRE", "").split(",") if word.strip())
    unknown = sorted(words - PROBES.keys())
    if unknown:
        raise ValueError(f"CHV_TEST_REQUIRE names {', '.join(unknown)}, expected words of {', '.join(sorted(PROBES))}")
    return words


@cache
def lacking(name: str) -> str:
    """Why `name` cannot be used here, in a sentence; "" when it can."""
    return PROBES[name]()


def find_go() -> Path | None:
    return _find("go", beside_python=True)


def find_nomad() -> Path | None:
    """The agent named by CHV_NOMAD, else the one on PATH."""
    named = os.environ.get("CHV_NOMAD")
    return Path(named).absolute() if named else _find("nomad")


def find_cloud_hypervisor() -> Path | None:
    """The binary named by CHV_CLOUD_HYPERVISOR, else the one on PATH."""
    named = os.environ.get("CHV_CLOUD_HYPERVISOR")
    return Path(named).absolute() if named else _find("cloud-hypervisor")


def _find(program: str, *, beside_python: bool = False) -> Path | None:
    path = os.environ.get("PATH", os.defpath)
    if beside_python:
        path = f"{path}{os.pathsep}{Path(sys.executable).parent}"
    found = shutil.which(program, path=path)
    return Path(found) if found else None


def _qemu() -> str:
    missing = [program for program in ("qemu-system-x86_64", "qemu-img") if _find(program) is None]
    return f"{' and '.join(missing)} not on PATH" if missing else ""


def _uefi() -> str:
    try:
        Qemu().uefi_firmware()
    except HostError as exc:
        return f"{exc} ({exc.hint})"
    return ""


def _virtiofsd() -> str:
    return probe.virtiofsd_program().why_not


def _swtpm() -> str:
    return probe.swtpm_program().why_not


def _dnsmasq() -> str:
    return _lacking_in_sbin("dnsmasq")


def _cni() -> str:
    """What an agent needs for groups with `network { mode = "bridge" }`."""
    if not (machine_setup.CNI_PLUGINS / "bridge").exists():
        return f"no CNI plugins in {machine_setup.CNI_PLUGINS}: `python3 tests/setup.py network` installs them"
    return _lacking_in_sbin("iptables")


def _lacking_in_sbin(program: str) -> str:
    """For programs that are not on the PATH of everybody."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return "" if found else f"no {program}: `python3 tests/setup.py network` installs it"


def _passt() -> str:
    return probe.passt_program().why_not


def _cloud_image() -> str:
    """Not built by whoever wants to boot it: that takes a minute or two, and root."""
    if cloud.is_current(machine_setup.cache_dir()):
        return ""
    return f"no Debian image of this version in {machine_setup.cache_dir()}: `python3 tests/setup.py cloud` builds one"


def _strace() -> str:
    """For tests that look at system calls; some containers let nobody trace."""
    if _find("strace") is None:
        return "no strace: `python3 tests/setup.py network` installs it"
    traced = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if traced.returncode == 0 else f"strace: {traced.stderr.strip()[-200:]}"


def _go() -> str:
    return "" if find_go() else "no go on PATH and none beside this Python"


def _nomad() -> str:
    nomad = find_nomad()
    if nomad is None:
        return "no nomad on PATH and CHV_NOMAD is not set"
    return "" if os.access(nomad, os.X_OK) else f"CHV_NOMAD = {nomad}: not an executable file"


def _root() -> str:
    return "" if os.geteuid() == 0 else "not running as root"


def _cgroup() -> str:
    """A cgroup tree in which we may make groups."""
    writable = [path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpuset")) if os.access(path, os.W_OK)]
    return "" if writable else "no writable cgroup tree at /sys/fs/cgroup"


def _cgroup2() -> str:
    """cgroup v2 alone, at its usual place, with all that whole cores need."""
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists():
        return "/sys/fs/cgroup is not cgroup v2"
    missing = {"cpuset", "cpu", "memory", "pids"}.difference(controllers.read_text().split())
    return f"cgroup v2 without the controllers {' '.join(sorted(missing))}" if missing else ""


def _kvm() -> str:
    usable, why_not = probe.kvm_usable()
    return "" if usable else f"no usable KVM: {why_not}"


def _cloud_hypervisor() -> str:
    """A Cloud Hypervisor that starts. Whether guests run in it is another question: `kvm`."""
    found = find_cloud_hypervisor()
    if found is None:
        return "no cloud-hypervisor on PATH and CHV_CLOUD_HYPERVISOR is not set"
    if why_not := probe.cloud_hypervisor_program(str(found)).why_not:
        return why_not
    return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "no /dev/kvm"


def _lab() -> str:
    """In the node: that it is what its tests expect. Elsewhere: that a node can be built and booted."""
    if IN_LAB:
        return next(filter(None, (_root(), _qemu(), _cgroup2())), "")
    if reason := _qemu():
        return reason
    missing = image.missing_tools()
    return f"the Debian packages {', '.join(missing)} are not installed" if missing else ""


PROBES: dict[str, Callable[[], str]] = {
    "qemu": _qemu,
    "uefi": _uefi,
    "virtiofsd": _virtiofsd,
    "swtpm": _swtpm,
    "dnsmasq": _dnsmasq,
    "cni": _cni,
    "passt": _passt,
    "cloud-image": _cloud_image,
    "go": _go,
    "nomad": _nomad,
    "root": _root,
    "strace": _strace,
    "cgroup": _cgroup,
    "cgroup2": _cgroup2,
    "kvm": _kvm,
    "cloud-hypervisor": _cloud_hypervisor,
    "lab": _lab,
}
