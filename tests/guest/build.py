"""Builds the test guest: a Debian cloud kernel, an initrd of busybox and init.sh, and disk images that boot them.

Standard library and Debian's own tools only, no root. The same packages and scripts give the same bytes.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.guest import python, vsock
from tests.guest.archive import EPOCH, BuildError, Entry, cpio

HERE = Path(__file__).resolve().parent
KERNEL_PACKAGE = "linux-image-cloud-amd64"  # names the current kernel package as its dependency
TOOL_PACKAGES = ("busybox-static", "syslinux", "syslinux-common", "systemd-boot-efi", "mtools")
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "isofs",
    "button",
    "evdev",
    "pvpanic-pci",
    "efivarfs",
    "virtiofs",
    "vmw_vsock_virtio_transport",
)
# no_timer_check: at boot the kernel wants five timer interrupts in the time of ten, and panics where a loaded host
# holds its emulator up for longer.
CMDLINE = "console=ttyS0 quiet panic=-1 no_timer_check"
DISK_SIZE_MIB = 32
OUTPUTS = ("vmlinuz", "initrd.img", "initrd-python.img", "disk.raw", "disk.qcow2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Where the parts of the test guest lie."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def initrd_python(self) -> Path:
        return self.directory / "initrd-python.img"

    @property
    def disk_raw(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def disk_qcow2(self) -> Path:
        return self.directory / "disk.qcow2"


def ensure(cache: Path) -> Guest:
    """The test guest in `cache`, built when it is missing or older than its scripts. Raises BuildError."""
    guest = Guest(directory=cache / "guest")
    guest.directory.mkdir(parents=True, exist_ok=True)
    with _locked(guest.directory / ".lock"):
        key = _key()
        written = guest.directory / "key"
        complete = all((guest.directory / name).exists() for name in OUTPUTS)
        if not (complete and written.exists() and written.read_text() == key):
            _build(guest.directory)
            written.write_text(key)
    return guest


def _key() -> str:
    """Changes with the scripts, not with Debian's kernel: a new kernel comes with `make clean guest`."""
    sha = hashlib.sha256()
    for name in ("archive.py", "build.py", "init.sh", "on-lease.sh", "python.py", "vsock.py"):
        sha.update((HERE / name).read_bytes())
    return sha.hexdigest()


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target, prefix=".build-") as name:
        work = Path(name)
        root = work / "root"
        for package in _packages():
            _say(f"package {package}")
            _run("dpkg-deb", "-x", str(_download(package, target / "packages")), str(root))
        out = work / "out"
        out.mkdir()
        (vmlinuz,) = (root / "boot").glob("vmlinuz-*")
        shutil.copyfile(vmlinuz, out / "vmlinuz")
        _say("initrd")
        initrd = cpio(_initrd_files(root))
        (out / "initrd.img").write_bytes(initrd)
        (out / "initrd-python.img").write_bytes(initrd + cpio(_python_files(work / "python", target / "packages")))
        _say("disk images")
        _disk(root, out, work)
        for output in OUTPUTS:
            os.replace(out / output, target / output)
    _say(f"ready in {target}")


def _packages() -> list[str]:
    depends = _run("apt-cache", "depends", KERNEL_PACKAGE, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        if os.geteuid() != 0:
            raise BuildError("apt knows no packages: run `apt-get update` as root once")
        _say("apt-get update")
        _run("apt-get", "update", "-qq")
        found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", KERNEL_PACKAGE))
    if found is None:
        raise BuildError(f"apt knows no package {KERNEL_PACKAGE}: the test guest needs Debian's package sources")
    return [found[1], *TOOL_PACKAGES]


def _download(package: str, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    have = sorted(directory.glob(f"{package}_*.deb"))
    if not have:
        # Without the option apt, as root, warns of a directory that its own user cannot enter.
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=directory)
        have = sorted(directory.glob(f"{package}_*.deb"))
    return have[-1]


# ---------------------------------------------------------------------------------------------------------------------
# initrd


def _initrd_files(root: Path) -> dict[str, Entry]:
    modules = load_order(MODULES, _modules_of(root))
    files = {
        "bin": Entry(0o040755),
        "bin/busybox": Entry(0o100755, (root / "bin/busybox").read_bytes()),
        "bin/on-lease": Entry(0o100755, (HERE / "on-lease.sh").read_bytes()),
        "bin/tell-vsock": Entry(0o100755, vsock.program()),
        "dev": Entry(0o040755),
        "dev/console": Entry(0o020600, device=(5, 1)),
        "init": Entry(0o100755, (HERE / "init.sh").read_bytes()),
        "modules": Entry(0o040755),
        "modules/order": Entry(0o100644, "".join(f"{path.name}\n" for path in modules).encode()),
    }
    for path in modules:
        files[f"modules/{path.name}"] = Entry(0o100644, path.read_bytes())
    return files


def _python_files(root: Path, downloads: Path) -> dict[str, Entry]:
    for package in python.packages(lambda name: _run("apt-cache", "depends", name)):
        _say(f"package {package}")
        _run("dpkg-deb", "-x", str(_download(package, downloads)), str(root))
    return python.files(root)


def _modules_of(root: Path) -> dict[str, Path]:
    """Every module of the kernel package by its name, in which - and _ are the same."""
    return {path.stem.replace("-", "_"): path for path in (root / "lib/modules").rglob("*.ko")}


def load_order(wanted: Iterable[str], modules: Mapping[str, Path]) -> list[Path]:
    """`wanted` and all that they depend on, each after what it needs."""
    order: list[Path] = []

    def add(name: str) -> None:
        path = modules.get(name.replace("-", "_"))
        if path is None:
            raise BuildError(f"the kernel package has no module {name}")
        if path in order:
            return
        for needed in _depends(path.read_bytes()):
            add(needed)
        order.append(path)

    for name in wanted:
        add(name)
    return order


def _depends(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in found[1].decode().split(",") if name] if found else []


# ---------------------------------------------------------------------------------------------------------------------
# disk images


def _disk(root: Path, out: Path, work: Path) -> None:
    """A FAT disk without partitions, which BIOS boots by syslinux and UEFI by systemd-boot."""
    config = work / "syslinux.cfg"
    config.write_text(f"DEFAULT chv\nPROMPT 0\nLABEL chv\n  LINUX vmlinuz\n  INITRD initrd.img\n  APPEND {CMDLINE}\n")
    raw = out / "disk.raw"
    path = f"{root / 'usr/bin'}:{os.environ['PATH']}"
    tools = {**os.environ, "PATH": path, "SOURCE_DATE_EPOCH": str(EPOCH), "TZ": "UTC0"}
    sectors_per_cylinder = 64 * 32
    cylinders = DISK_SIZE_MIB * 1024 * 1024 // 512 // sectors_per_cylinder
    geometry = ("-t", str(cylinders), "-h", "64", "-s", "32")
    _run("mformat", "-i", str(raw), "-C", *geometry, "-N", "43485630", "-v", "CHV", "::", env=tools)
    ldlinux = root / "usr/lib/syslinux/modules/bios/ldlinux.c32"
    for source in (out / "vmlinuz", out / "initrd.img", config, ldlinux):
        _run("mcopy", "-i", str(raw), str(source), f"::{source.name}", env=tools)
    _run("syslinux", "--install", str(raw), env=tools)
    loader = work / "loader.conf"
    loader.write_text("timeout 0\ndefault chv.conf\n")
    entry = work / "chv.conf"
    entry.write_text(f"title chv\nlinux /vmlinuz\ninitrd /initrd.img\noptions {CMDLINE}\n")
    _run("mmd", "-i", str(raw), "::EFI", "::EFI/BOOT", "::loader", "::loader/entries", env=tools)
    for source, target in (
        (root / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"),
        (loader, "loader/loader.conf"),
        (entry, "loader/entries/chv.conf"),
    ):
        _run("mcopy", "-i", str(raw), str(source), f"::{target}", env=tools)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(out / "disk.qcow2"))


# ---------------------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(f"test guest: {text}", file=sys.stderr, flush=True)


def _run(*command: str, check: bool = True, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    if shutil.which(command[0], path=(env or os.environ).get("PATH")) is None:
        raise BuildError(
            f"{command[0]} is not installed: the test guest is built on Debian with apt, dpkg and qemu-img"
        )
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    if check and done.returncode != 0:
        raise BuildError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: build.py CACHE_DIRECTORY")
    try:
        ensure(Path(sys.argv[1]).absolute())
    except BuildError as exc:
        sys.exit(f"test guest: {exc}")


if __name__ == "__main__":
    main()
