"""Files that want something of the host: refused by key and reason for every key, and nothing is read through them."""

import os
import shutil
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from driver.devhost.host import StartFailedError
from driver.devhost.jobfile import read_job
from tests.integration.machines import Host, root_of
from tests.integration.nodes import NOTHING, READY, Node, until_says
from vmlib import probe
from vmlib.disk import data, root
from vmlib.disk.image import ImageInfo, check_source
from vmlib.errors import LaunchError, SpecError
from vmlib.files import open_ref
from vmlib.inotify import Inotify
from vmlib.remote import Source
from vmlib.spec import DiskSpec, FileRef, RootDisk, SeedSpec

MIB = 1 << 20
SECRET = b"root:the-secret:19000:0:99999:7:::\n"
_IN_ACCESS, _IN_OPEN = 0x1, 0x20


@pytest.fixture
def secret(short_dir: Path) -> Iterator[Path]:
    """A file outside of all that jobs may name, large enough for an image. Whoever opens it fails the test."""
    directory = short_dir / "outside"
    directory.mkdir()
    path = directory / "secret"
    path.write_bytes(SECRET.ljust(MIB, b"\n"))
    watch = Inotify()
    watch.watch(path, _IN_OPEN | _IN_ACCESS)
    yield path
    events = watch.read()
    watch.close()
    assert events == [], "somebody has opened the secret"


# ---------------------------------------------------------------------------------------------------------------------
# the set, through the driver


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *map(str, words)], check=True, timeout=60)


def things(directory: Path, secret: Path) -> dict[str, str]:
    """Name -> what is bad about it, whatever key leads to it."""
    (directory / "link").symlink_to(secret)
    (directory / "relative-link").symlink_to(Path("..") / "outside" / "secret")
    (directory / "link-to-link").symlink_to("link")
    (directory / "dir-link").symlink_to(secret.parent)
    (directory / "magic-link").symlink_to("/proc/self/root/etc/shadow")
    (directory / "loop").symlink_to("loop")
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "char", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without end
    os.mknod(directory / "block", stat.S_IFBLK | 0o666, os.makedev(7, 0))
    (directory / "empty").touch()
    return {
        "link": "a link to a secret",
        "relative-link": "a relative link to a secret",
        "link-to-link": "a link to a link to a secret",
        "dir-link/secret": "a secret behind a link to a directory",
        "magic-link": "a link through /proc",
        "loop": "a link to itself",
        "directory": "a directory",
        "fifo": "a FIFO",
        "char": "a character device",
        "block": "a block device",
        "empty": "an empty file",
        "none": "nothing",
        "../outside/secret": "a way out by dots",
        "a\\nb": "a name of two lines",
    }


def images(directory: Path, secret: Path, sound: Path) -> dict[str, str]:
    """Bad disks: name -> what is bad about it. The suffix says what the job declares."""
    qemu_img("-u", "-b", secret, "-F", "raw", directory / "backing.qcow2", "1M")
    base = directory / "base.qcow2"
    qemu_img(base, "1M")
    qemu_img("-b", base, "-F", "qcow2", directory / "backing-here.qcow2")
    base.unlink()
    # Written by hand: the tool would open the file that it names.
    data_file = bytearray(sound.read_bytes())
    data_file[72:80] = struct.pack(">Q", struct.unpack_from(">Q", data_file, 72)[0] | 4)
    (directory / "data-file.qcow2").write_bytes(data_file)
    shutil.copyfile(sound, directory / "qcow2.raw")
    qemu_img(directory / "60TiB.qcow2", "60T")
    (directory / "cut.qcow2").write_bytes(sound.read_bytes()[: 128 * 1024])
    (directory / "head.qcow2").write_bytes(sound.read_bytes()[:50])
    (directory / "text.qcow2").write_text("no disk at all")
    (directory / "zip.raw").write_bytes(b"\x1f\x8b" + bytes(1000))
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", directory / "vmdk.raw", "1M"], check=True, timeout=60)
    (directory / "flat.raw").write_text(
        f'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "{secret}" 0\n'
    )
    return {
        "backing.qcow2": "a qcow2 on top of a secret",
        "backing-here.qcow2": "a qcow2 on top of another image",
        "data-file.qcow2": "a qcow2 with its data elsewhere",
        "qcow2.raw": "raw that begins with a qcow2 header",
        "60TiB.qcow2": "60 TiB",
        "cut.qcow2": "a qcow2 whose end was lost",
        "head.qcow2": "a piece of a qcow2 header",
        "text.qcow2": "text that is called qcow2",
        "zip.raw": "raw that is compressed",
        "vmdk.raw": "raw that begins with a vmdk header",
        "flat.raw": "raw that describes a disk elsewhere",
    }


KERNEL = 'kernel = "{guest}/vmlinuz"'
KEYS = {
    "image": ('image = "{path}"\n image_format = "{format}"', ""),
    "image, copied": ('image = "{path}"\n image_format = "{format}"\n root_mode = "copy"', ""),
    "disk.source, read-only": (
        KERNEL,
        'disk {{\n name = "d"\n source = "{path}"\n format = "{format}"\n readonly = true\n }}',
    ),
    "disk.source, copied": (KERNEL, 'disk {{\n name = "d"\n source = "{path}"\n format = "{format}"\n }}'),
    "kernel": ('kernel = "{path}"', ""),
    "initrd": (KERNEL + '\n initrd = "{path}"', ""),
    "firmware": ('image = "{guest}/disk.qcow2"\n firmware = "{path}"', ""),
    "user_data": (KERNEL, 'user_data = "{path}"'),
}
OF_DISKS = [key for key in KEYS if key.startswith(("image", "disk"))]
FINE_WHEN_EMPTY = ("user_data",)


@pytest.mark.needs("root")
async def test_the_hostile_set_is_refused_for_every_key_with_key_and_reason(
    node: Node, secret: Path, golden: Callable[[str, str], None]
) -> None:
    common = things(node.images, secret)
    disks = images(node.images, secret, node.guest / "disk.qcow2")
    text = ""
    async with node.host(node.job()) as host:
        for key, (boot, config) in KEYS.items():
            text += f"# {key}\n"
            for name, bad in {**common, **(disks if key in OF_DISKS else {})}.items():
                if name == "empty" and key in FINE_WHEN_EMPTY:
                    continue
                path = f"{node.images}/{name}"
                words = {"path": path, "guest": node.guest, "format": "qcow2" if name.endswith("qcow2") else "raw"}
                host.job = read_job(node.job(name="bad", boot=boot.format(**words), config=config.format(**words)))
                with pytest.raises(StartFailedError) as refused:
                    await host.start()
                assert not refused.value.recoverable
                said = str(refused.value).removeprefix("rpc error: code = InvalidArgument desc = ")
                assert all(line.isprintable() for line in said.splitlines())
                assert key.partition(".")[0].partition(",")[0] in said
                text += f"{bad}: {said}\n"
            text += "\n"
        assert node.processes() == NOTHING
        assert node.runs() == []
    for here, name in ((str(node.base), "BASE"), (str(node.guest), "GUEST")):
        text = text.replace(here, name)
    golden("hostile.txt", text.rstrip() + "\n")


async def test_names_with_commas_quotes_and_spaces_are_names_and_nothing_else(node: Node) -> None:
    """No word of a name becomes an option of the VMM's: a disk called so is a disk, and writable if it shall be."""
    odd = node.images / "a,readonly=on,format=x {fd:kernel} 'b' $(id)"
    odd.mkdir()
    for name in ("disk.qcow2", "vmlinuz", "initrd.img"):
        shutil.copyfile(node.guest / name, odd / f"x,if=none,{name}")
    (odd / "u,d").write_text("#words poweroff\n")
    boot = f"""
        kernel  = "{odd}/x,if=none,vmlinuz"
        initrd  = "{odd}/x,if=none,initrd.img"
        image   = "{odd}/x,if=none,disk.qcow2"
        cmdline = "console=ttyS0 quiet write=d:fine"
    """
    disk = f'disk {{\n name = "d"\n source = "{odd}/x,if=none,disk.qcow2"\n }}\n user_data = "{odd}/u,d"'
    async with node.host(node.job(boot=boot, config=disk)) as host:
        await host.start()
        await until_says(host, "wrote d")
        await until_says(host, READY)


# ---------------------------------------------------------------------------------------------------------------------
# swapped while we look


class Swapper:
    """Makes a name now the good file, now a link to the secret, now a file in a directory that is a link."""

    def __init__(self, directory: Path, good: dict[str, bytes], secret: Path) -> None:
        self.directory = directory
        self._good = good
        self._secret = secret
        self._end = threading.Event()
        self.swaps = 0
        self._thread = threading.Thread(target=self._swap, daemon=True)
        for name, content in good.items():
            (directory / f"{name}.good").write_bytes(content)
            (directory / name).write_bytes(content)
        (directory / "real").mkdir()
        for name, content in good.items():
            (directory / "real" / name).write_bytes(content)
        for name in good:
            evil = secret.parent / name
            if not evil.exists():
                evil.symlink_to(secret)
        (directory / "way").symlink_to("real")

    def _swap(self) -> None:
        number = 0
        while not self._end.wait(0.0003):
            number += 1
            beside = self.directory / "beside"
            for name in self._good:
                if number % 2:
                    beside.symlink_to(self._secret)
                else:
                    os.link(self.directory / f"{name}.good", beside)
                beside.rename(self.directory / name)
            beside.symlink_to(self._secret.parent if number % 2 else "real")
            beside.rename(self.directory / "way")
            self.swaps += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def what_the_machine_holds(vmm: int) -> list[bytes]:
    """The beginning of every regular file that the VMM has open."""
    held = []
    for link in Path(f"/proc/{vmm}/fd").iterdir():
        try:
            if stat.S_ISREG(link.stat().st_mode):
                with link.open("rb") as file:
                    held.append(file.read(2 * MIB))
        except OSError:
            continue
    return held


def test_no_link_swapped_in_a_race_leads_to_the_secret(fake: Host, secret: Path) -> None:
    directory = fake.directory / "images"
    directory.mkdir()
    kernel = b"\x7fELF" + b"kernel" * 100
    good = {
        "disk.raw": b"good disk ".ljust(MIB, b"."),
        "vmlinuz": kernel,
        "initrd": b"good initrd",
        "user-data": b"#words good\n",
    }
    started = refused = 0
    reasons: set[str] = set()
    with Swapper(directory, good, secret) as swapper:
        for number in range(80):
            where = "way/" if number % 2 else ""
            refs = {name: FileRef(root=directory, relative=where + name) for name in good}
            image = refs["disk.raw"]
            spec = fake.spec(
                task=f"t{number}",
                root=replace(
                    root_of(fake.guest, "disk.raw"), image=image, format="raw", mode="copy" if number % 3 else "overlay"
                ),
                disks=(
                    DiskSpec(name="ro", format="raw", source=image, readonly=True),
                    DiskSpec(name="rw", format="raw", source=image),
                ),
                seed=SeedSpec(instance_id="i", hostname="h", user_data_file=refs["user-data"]),
            )
            assert spec.boot is not None
            # Half of the starts race for the kernel as well, the others come as far as the disks.
            if number % 4 < 2:
                spec = replace(spec, boot=replace(spec.boot, kernel=refs["vmlinuz"], initrd=refs["initrd"]))
            try:
                one = fake.run(spec)
            except SpecError as exc:
                reasons.add(str(exc).partition("': ")[2].partition(" ")[0])
                refused += 1
            else:
                held = what_the_machine_holds(one.vmm)
                assert len(held) >= 4
                assert not any(b"the-secret" in data for data in held)
                one.machine.destroy()
                started += 1
            left = fake.layout.machine(spec.name).root
            for path in left.rglob("*"):
                assert not (path.is_file() and b"the-secret" in path.read_bytes()), path
            fake.machines.remove(spec.name)
    assert swapper.swaps > 100
    assert reasons == {"leads"}  # out of the images' directory
    assert refused > 10
    assert started > 0


def test_a_file_that_is_opened_in_a_race_is_the_good_one_or_none(tmp_path: Path, short_dir: Path, secret: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    opened = refused = 0
    with Swapper(directory, {"f": b"good"}, secret):
        for number in range(6000):
            try:
                fd = open_ref(FileRef(root=directory, relative="way/f" if number % 2 else "f"), key="image")
            except SpecError:
                refused += 1
                continue
            opened += 1
            assert os.read(fd, 9) == b"good"
            os.close(fd)
    assert opened > 100
    assert refused > 100


# ---------------------------------------------------------------------------------------------------------------------
# changed after the look


@pytest.mark.parametrize("mode", ["overlay", "direct", "readonly"])
@pytest.mark.parametrize("shut_in", [True, False])
def test_an_image_whose_header_is_changed_between_our_look_and_the_vmms_does_not_run(
    qemu: Host, monkeypatch: pytest.MonkeyPatch, mode: Any, shut_in: bool
) -> None:
    """QEMU follows the name of a data file, whatever it is told of the image; the guest is held and never sees it."""
    monkeypatch.setattr(probe, "may_shut_in", lambda: shut_in)
    outside = qemu.directory / "outside"
    qemu.directory.chmod(0o755)  # nothing but the check keeps the user of a VMM that is not shut in from it
    path = qemu.directory / "a.qcow2"
    qemu_img(path, "1M")

    def change(source: Source, **how: Any) -> ImageInfo:
        info = check_source(source, **how)
        beside = path.with_name("beside")
        qemu_img("-o", f"data_file={outside}", beside, "1M")
        outside.chmod(0o666)
        path.write_bytes(beside.read_bytes())  # the same file
        return info

    monkeypatch.setattr(data if mode == "readonly" else root, "check_source", change)
    ref = FileRef(root=qemu.directory, relative="a.qcow2")
    spec = qemu.spec()
    if mode == "readonly":
        spec = replace(spec, disks=(DiskSpec(name="d", format="qcow2", source=ref, readonly=True),))
    else:
        spec = replace(spec, root=RootDisk(image=ref, format="qcow2", mode=mode))
    told = f"an image names '{outside}' in its header, expected one that is complete"
    if shut_in:
        told = f"Could not open '{outside}': No such file or directory"
    with pytest.raises(LaunchError if shut_in else SpecError, match=told):
        qemu.run(spec)
    assert qemu.processes() == NOTHING
