#!/usr/bin/env python3
"""Builds what the lab node boots: its kernel, its root file system of Debian packages, its Python packages.

Standard library and Debian's own tools only. Everything lies in the cache under a name that is a hash of what it was
made from, so a change of the package list or of a script makes a new one and nobody's running node loses its disk.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
KERNEL_PACKAGE = "linux-image-cloud-amd64"  # names the current kernel package as its dependency
PACKAGES = (
    "busybox-static",
    "cpio",
    "dmidecode",  # Nomad finds NUMA nodes only with it
    "dnsmasq-base",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "mount",
    "nfs-common",
    "nfs-kernel-server",
    "nftables",
    "numactl",
    "ovmf",
    "procps",
    "python3",
    "qemu-system-x86",
    "qemu-utils",
    "strace",
    "swtpm",
    "util-linux",
    "zstd",
)
# From backports: the emulator beneath the node, because Debian 12's own loses interrupts of a CPU that runs a nested
# guest, and a kernel for what Debian 12's does not have (Landlock that Cloud Hypervisor can use).
EMULATOR_PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "depmod": "kmod"}
# What the tests in the node import beside what the project itself needs.
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT_SIZE_MIB = 4096
PYTHON_SIZE_MIB = 1024
ROOT_OFFSET = 1 << 20
DISK_SIGNATURE = 0x43485601  # of the disk with the root; any number will do
ROOT = f"PARTUUID={DISK_SIGNATURE:08x}-01"


class ImageError(Exception):
    """The node's images cannot be built here; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What a node boots from. None of it is written to by a run."""

    kernel: Path
    later_kernel: Path  # of backports
    root: Path  # with the modules of both
    python: Path
    emulator: Path  # a tree with usr/bin and usr/share


def missing_tools() -> list[str]:
    """The Debian packages of the programs that are not here."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return [package for program, package in TOOLS.items() if shutil.which(program, path=path) is None]


def ensure(cache: Path) -> Images:
    """The images in `cache`, built when one is missing or older than what it is made of. Raises ImageError."""
    directory = cache / "lab"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock"):
        root = directory / f"root-{_hash(Path(__file__).read_bytes(), (HERE / 'init.sh').read_bytes())}"
        _once(root, _build_root)
        emulator = directory / f"emulator-{_hash(Path(__file__).read_bytes())}"
        _once(emulator, _build_emulator)
        version = (root / "python-version").read_text()
        python = directory / f"python-{_hash(version.encode(), '|'.join(_python_packages()).encode())}"
        _once(python, lambda target: _build_python(target, version))
    return Images(
        kernel=root / "vmlinuz",
        later_kernel=root / "vmlinuz-later",
        root=root / "root.img",
        python=python / "python.ext4",
        emulator=emulator,
    )


def _hash(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.hexdigest()[:12]


def _once(directory: Path, make: Callable[[Path], None]) -> None:
    """`directory` appears whole or not at all. Its predecessors are deleted."""
    if directory.exists():
        return
    if missing := missing_tools():
        raise ImageError(f"the lab's images need the Debian packages {', '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".build-") as name:
        made = Path(name) / "made"
        made.mkdir()
        make(made)
        for old in directory.parent.glob(f"{directory.name.partition('-')[0]}-*"):
            shutil.rmtree(old)
        made.rename(directory)
    _say(f"ready: {directory}")


# ---------------------------------------------------------------------------------------------------------------------
# the root file system


def _build_root(target: Path) -> None:
    kernel = _kernel_package()
    tree = target.parent / "root"
    options = target.parent / "apt.conf"
    options.write_text(apt_options())
    codename, sources = apt_sources()
    _say(f"root of {len(PACKAGES)} Debian packages")
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        f"--aptopt={options}",
        '--aptopt=Apt::Install-Recommends "false"',
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        codename,
        str(tree),
        *sources,
    )
    # Unpacked, not installed: that would bring a maker of initramfs images, and the node needs none.
    _add_kernel(kernel, tree, target / "vmlinuz", target.parent / "kernel", options=())
    backports = _backports(target.parent / "apt")
    _add_kernel(_kernel_package(backports), tree, target / "vmlinuz-later", target.parent / "later", options=backports)
    shutil.copyfile(HERE / "init.sh", tree / "lab-init")
    (tree / "lab-init").chmod(0o755)
    for name in ("in", "python", "results", "checkout", "layer"):
        (tree / "lab" / name).mkdir(parents=True)
    version = os.readlink(tree / "usr/bin/python3").removeprefix("python")
    (target / "python-version").write_text(version)
    site = tree / f"usr/local/lib/python{version}/dist-packages"
    site.mkdir(parents=True, exist_ok=True)
    (site / "lab.pth").write_text("/lab/python\n")
    make_file_system(target / "root.img", tree, size_mib=ROOT_SIZE_MIB, offset=ROOT_OFFSET)
    with (target / "root.img").open("r+b") as disk:
        disk.write(_partition_table(first=ROOT_OFFSET // 512, count=(ROOT_SIZE_MIB << 20) // 512))


def _partition_table(*, first: int, count: int) -> bytes:
    """One partition of that many sectors, which the kernel finds by the signature of the disk."""
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", first, count)
    return (b"".ljust(440, b"\0") + struct.pack("<I2x", DISK_SIGNATURE) + entry).ljust(510, b"\0") + b"\x55\xaa"


def _add_kernel(package: str, tree: Path, vmlinuz: Path, work: Path, *, options: Sequence[str]) -> None:
    """Unpack a kernel package: the kernel to `vmlinuz`, its modules into `tree`."""
    _say(f"kernel {package}")
    unpacked = _unpacked((package,), work, options=options)
    (found,) = (unpacked / "boot").glob("vmlinuz-*")
    shutil.copyfile(found, vmlinuz)
    shutil.copytree(unpacked / "lib/modules", tree / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)
    run("depmod", "-b", str(tree), found.name.removeprefix("vmlinuz-"))


def _build_emulator(target: Path) -> None:
    _say("an emulator of backports")
    unpacked = _unpacked(EMULATOR_PACKAGES, target.parent, options=_backports(target.parent / "apt"))
    (unpacked / "usr").rename(target / "usr")
    program = target / "usr/bin/qemu-system-x86_64"
    try:
        subprocess.run([program, "--version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ImageError(f"{EMULATOR_PACKAGES[0]} of backports does not run here: {exc}") from exc


def _unpacked(packages: Sequence[str], work: Path, *, options: Sequence[str]) -> Path:
    """A tree with the content of the packages, none of them installed."""
    work.mkdir(exist_ok=True)
    run("apt-get", *options, "-o", "APT::Sandbox::User=root", "download", *packages, cwd=work)
    unpacked = work / "unpacked"
    for package in sorted(work.glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(unpacked))
    return unpacked


def _backports(directory: Path) -> tuple[str, ...]:
    """Options with which apt knows backports and nothing else. What the host's apt knows stays as it is."""
    codename, sources = apt_sources()
    uri = next(uri for _, uri, release, _ in map(str.split, sources) if release == codename)
    lists = directory / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    listed = directory / "sources.list"
    listed.write_text(f"deb [signed-by={KEYRING}] {uri} {codename}-backports main\n")
    options = (
        *("-o", f"Dir::Etc::sourcelist={listed}", "-o", "Dir::Etc::sourceparts=/dev/null"),
        *("-o", f"Dir::State::lists={lists}", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
    )
    run("apt-get", *options, "-o", "APT::Sandbox::User=root", "update")
    return options


def _kernel_package(options: Sequence[str] = ()) -> str:
    depends = run("apt-cache", *options, "depends", KERNEL_PACKAGE, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise ImageError(f"apt knows no package {KERNEL_PACKAGE}: run `apt-get update` on a Debian host")
    return found[1]


def apt_sources() -> tuple[str, list[str]]:
    """The codename of this host's Debian, and a line for each source of Debian's packages that the host's apt uses."""
    wanted = "$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)"
    listed = run("apt-get", "indextargets", "--format", wanted, "Created-By: Packages", "Origin: Debian")
    sources = sorted({tuple(line.split("|")) for line in listed.splitlines()})
    codenames = sorted({codename for _, _, codename, _ in sources}, key=len)
    if not codenames:
        raise ImageError("apt knows no packages of Debian: run `apt-get update` on a Debian host")
    lines = [f"deb {uri} {release} {component}" for uri, release, _, component in sources if component == "main"]
    return codenames[0], lines


def apt_options() -> str:
    """How the host's apt reaches its sources: proxies, certificates, what it checks."""
    settings = re.compile(r'Acquire::(http|https|Check-|Max-|Min-|Retries|Force)[^ ]* "[^"]+";')
    return "".join(f"{line}\n" for line in run("apt-config", "dump").splitlines() if settings.fullmatch(line))


# ---------------------------------------------------------------------------------------------------------------------
# Python packages


def _python_packages() -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    tools = [line for line in project["optional-dependencies"]["dev"] if _name_of(line) in TEST_PACKAGES]
    return [*project["dependencies"], *tools]


def _name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]


def _build_python(target: Path, version: str) -> None:
    """Wheels for the Python in the node, which may be another one than ours."""
    _say(f"packages for Python {version}")
    tree = target.parent / "python"
    # An environment of its own: the Python that runs this may have no pip.
    venv = target.parent / "venv"
    run(sys.executable, "-m", "venv", str(venv))
    pip = (str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    chosen = ("--only-binary=:all:", f"--python-version={version}", f"--target={tree}")
    run(*pip, *chosen, *_python_packages())
    make_file_system(target / "python.ext4", tree, size_mib=PYTHON_SIZE_MIB)


# ---------------------------------------------------------------------------------------------------------------------


def make_file_system(image: Path, tree: Path, *, size_mib: int, offset: int = 0) -> None:
    """An ext4 image that holds `tree`, from `offset` on. Sparse; needs neither a mount nor root."""
    options = ("-O", "^has_journal", "-m", "0", "-E", f"root_owner=0:0,offset={offset}")
    run("mke2fs", "-q", "-t", "ext4", *options, "-d", str(tree), str(image), f"{size_mib}M")


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(*command: str, check: bool = True, cwd: Path | None = None, path: Path | None = None) -> str:
    """What the command prints. `path` is a directory of further programs. Raises ImageError."""
    more = f"{path}:" if path else ""
    env = {**os.environ, "PATH": f"{more}{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    except FileNotFoundError as exc:
        raise ImageError(f"{command[0]} is not installed: the lab's images are built on Debian") from exc
    if check and done.returncode != 0:
        last = "; ".join(done.stderr.strip().splitlines()[-5:])
        raise ImageError(f"{' '.join(command)}: exit code {done.returncode}: {last}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: image.py CACHE_DIRECTORY")
    try:
        ensure(Path(sys.argv[1]).absolute())
    except ImageError as exc:
        sys.exit(f"lab: {exc}")


if __name__ == "__main__":
    main()
