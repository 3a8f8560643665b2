"""Builds a Debian cloud image of Debian's own packages: systemd, cloud-init, sshd, a cloud kernel, by BIOS and UEFI.

Standard library and Debian's own tools only, and root; no loop device. A change of this file makes a new image.
"""

import hashlib
import os
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

from tests.lab import image as debian

PACKAGES = (
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "netplan.io",
    "openssh-server",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
)
BOOT_PACKAGES = ("syslinux", "syslinux-common", "systemd-boot-efi", "mtools")
CMDLINE = "root=LABEL=root ro console=ttyS0 quiet no_timer_check"
MIB_SECTORS = 2048  # where partitions begin
BOOT_MIB = 64
ROOT_MIB = 1536
# What a test guest has no use for and slow CPUs have no time for. cloud-init itself is as Debian ships it.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "systemd-pstore.service",
)
FILES = {
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",
    # One kind of host key and one kind of seed: the others cost seconds on an emulated CPU.
    "etc/cloud/cloud.cfg.d/10_test.cfg": "datasource_list: [NoCloud, None]\nssh_genkeytypes: [ed25519]\n",
}
# Only what a machine's disks and the root file system need, so that the initrd is small.
INITRAMFS = {
    "etc/initramfs-tools/conf.d/chv": "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n",
}


def ensure(cache: Path) -> Path:
    """The image in `cache`, beside the test guest; built when it is missing or older than this file.

    Raises debian.ImageError.
    """
    image = image_in(cache)
    image.parent.mkdir(parents=True, exist_ok=True)
    with debian.locked(image.parent / ".cloud.lock"):
        if not is_current(cache):
            with tempfile.TemporaryDirectory(dir=image.parent, prefix=".build-") as name:
                os.replace(_build(Path(name)), image)
            _key_file(cache).write_text(_key())
    return image


def image_in(cache: Path) -> Path:
    return cache / "guest" / "debian.qcow2"


def is_current(cache: Path) -> bool:
    """The image is there and of this version. Packages of Debian's that are newer come with `make clean`."""
    key = _key_file(cache)
    return image_in(cache).exists() and key.exists() and key.read_text() == _key()


def _key_file(cache: Path) -> Path:
    return image_in(cache).with_suffix(".key")


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _build(work: Path) -> Path:
    started = time.monotonic()
    tree = work / "root"
    _install(work, tree)
    _say(f"disk, after {time.monotonic() - started:.0f} s")
    tools = _boot_tools(work)
    boot = _boot_partition(work, tree, tools)
    _clean(tree)
    root = work / "root.ext4"
    debian.run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", str(tree), str(root), f"{ROOT_MIB}M")
    raw, image = work / "disk.raw", work / "disk.qcow2"
    _disk(raw, (tools / "usr/lib/syslinux/mbr/mbr.bin").read_bytes(), boot, root)
    debian.run("qemu-img", "convert", "-c", "-W", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    _say(f"ready, {image.stat().st_size >> 20} MiB after {time.monotonic() - started:.0f} s")
    return image


def _install(work: Path, tree: Path) -> None:
    options = work / "apt.conf"
    options.write_text(debian.apt_options())
    codename, sources = debian.apt_sources()
    before = work / "before"
    _write(before, INITRAMFS)
    _say(f"{len(PACKAGES)} Debian packages and what they need")
    debian.run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        f"--aptopt={options}",
        '--aptopt=Apt::Install-Recommends "false"',
        "--dpkgopt=force-confold",  # of what is there before initramfs-tools
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--essential-hook=cp -r {before}/. "$1"',
        '--customize-hook=chroot "$1" systemctl enable systemd-networkd',  # as in Debian's own cloud images
        codename,
        str(tree),
        *sources,
    )  # fmt: skip


def _clean(tree: Path) -> None:
    """Make one image for many machines of what was installed: what each has for itself is made at its first boot."""
    _write(tree, FILES)
    for unit in MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    ours = ("etc/hostname", "etc/resolv.conf", "etc/apt/apt.conf.d/99mmdebstrap")  # from this host
    for pattern in ("etc/ssh/ssh_host_*", "boot/*", "var/log/*.log", "var/cache/apt/*.bin", *ours):
        for path in tree.glob(pattern):
            path.unlink()
    shutil.rmtree(tree / "var/lib/apt/lists")


def _write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)


# ---------------------------------------------------------------------------------------------------------------------
# the disk: a FAT partition from which BIOS boots by syslinux and UEFI by systemd-boot, and the root, last, so that it
# can grow


def _boot_tools(work: Path) -> Path:
    tools = work / "tools"
    packages = work / "packages"
    packages.mkdir()
    # Without the option apt, as root, warns of a directory that its own user cannot enter.
    debian.run("apt-get", "-o", "APT::Sandbox::User=root", "download", *BOOT_PACKAGES, cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        debian.run("dpkg-deb", "-x", str(package), str(tools))
    return tools


def _boot_partition(work: Path, tree: Path, tools: Path) -> Path:
    image = work / "boot.fat"
    with image.open("wb") as file:
        file.truncate(BOOT_MIB << 20)
    bin_dir = tools / "usr/bin"
    debian.run(str(bin_dir / "mformat"), "-i", str(image), "-F", "-H", str(MIB_SECTORS), "-v", "BOOT", "::")
    directories = ("::EFI", "::EFI/BOOT", "::loader", "::loader/entries")
    debian.run(str(bin_dir / "mmd"), "-i", str(image), *directories)
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    texts = {
        "syslinux.cfg": "DEFAULT debian\nPROMPT 0\nLABEL debian\n"
        f"  LINUX vmlinuz\n  INITRD initrd.img\n  APPEND {CMDLINE}\n",
        "loader/loader.conf": "timeout 0\ndefault debian.conf\n",
        "loader/entries/debian.conf": f"title debian\nlinux /vmlinuz\ninitrd /initrd.img\noptions {CMDLINE}\n",
    }
    _write(work / "texts", texts)
    for source, name in (
        (kernel, "vmlinuz"),
        (initrd, "initrd.img"),
        (tools / "usr/lib/syslinux/modules/bios/ldlinux.c32", "ldlinux.c32"),
        (tools / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"),
        *((work / "texts" / name, name) for name in texts),
    ):
        debian.run(str(bin_dir / "mcopy"), "-i", str(image), str(source), f"::{name}")
    debian.run(str(bin_dir / "syslinux"), "--install", str(image), path=bin_dir)
    return image


def _disk(raw: Path, boot_code: bytes, boot: Path, root: Path) -> None:
    """Both partitions behind a classic partition table, which growpart can grow in place."""
    at = MIB_SECTORS
    table = b""
    parts = ((boot, 0x80, 0xEF), (root, 0, 0x83))
    with raw.open("wb") as out:
        for source, active, kind in parts:
            sectors = source.stat().st_size // 512
            # The fields between are addresses by cylinder, which nobody reads any more.
            table += struct.pack("<B3sB3sII", active, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", at, sectors)
            out.seek(at * 512)
            with source.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)
            at += sectors
        out.seek(0)
        out.write(boot_code[:440].ljust(440, b"\0") + b"chv1\0\0" + table.ljust(64, b"\0") + b"\x55\xaa")


def _say(text: str) -> None:
    print(f"cloud image: {text}", file=sys.stderr, flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.guest.cloud CACHE_DIRECTORY")
    if os.geteuid() != 0:
        sys.exit("cloud image: only root can build it")
    try:
        ensure(Path(sys.argv[1]).absolute())
    except debian.ImageError as exc:
        sys.exit(f"cloud image: {exc}")


if __name__ == "__main__":
    main()
