"""What root disks and seeds cost: overlay, reflink and sparse copy over a full copy, many starts of one image at once
over one after the other, the seed over xorriso."""

import gzip
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import BoundedSemaphore

from tests.bench.measure import LeftOutError, Line, Settings, in_turns, line
from vmlib.disk.cache import ImageCache
from vmlib.disk.intake import Intake
from vmlib.disk.root import prepare_root
from vmlib.disk.seed import seed_files, write_seed
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.resources import DiskAttachment
from vmlib.settings import HostSettings
from vmlib.spec import FileRef, MachineSpec, NicSpec, RootDisk, RootMode, SeedSpec, UserLink

MIB = 1 << 20
_IMAGE_BYTES = 1 << 30
_DATA_BYTES = 300 * MIB  # as in a cloud image that was grown
_STARTS = 50
_SLOTS = 8
_LIMIT = 1 << 40


_WHAT = f"a root disk of a {_IMAGE_BYTES // MIB} MiB image with {_DATA_BYTES // MIB} MiB in it"


def run(settings: Settings) -> list[Line]:
    image = _image_in(settings.directory("disks"))
    overlay: RootMode = "overlay"
    copy: RootMode = "copy"
    lines = []
    for name, mode in (("overlay", overlay), ("sparse copy", copy)):
        base, mine = in_turns([_full_copy(image), _root_disk(image, mode)], pairs=settings.pairs)
        lines.append(line(name, f"{_WHAT} / `cp` of all its bytes", ours=mine, baseline=base))
    return lines


def run_reflink(settings: Settings) -> list[Line]:
    with _filesystem_with_reflinks(settings.directory("reflink")) as there:
        image = _image_in(there)
        base, mine = in_turns([_full_copy(image), _root_disk(image, "copy")], pairs=settings.pairs)
    return [line("reflink", f"{_WHAT}, on btrfs / `cp` of all its bytes there", ours=mine, baseline=base)]


def _full_copy(image: Path) -> Callable[[], float]:
    target = image.parent / "full"
    return lambda: timed(lambda: _run("cp", "--sparse=never", "--reflink=never", str(image), str(target)), target)


def _root_disk(image: Path, mode: RootMode) -> Callable[[], float]:
    root = RootDisk(image=FileRef(root=image.parent, relative=image.name), format="raw", mode=mode)
    intake = Intake(ImageCache(image.parent / "cache"), max_virtual_bytes=_LIMIT)
    target = image.parent / "disk"
    return lambda: timed(lambda: _close(prepare_root(root, target, intake=intake)), target)


def run_starts(settings: Settings) -> list[Line]:
    here = settings.directory("starts")
    packed = here / "image.raw.gz"
    packed.write_bytes(gzip.compress(random.Random(1).randbytes(32 * MIB) + bytes(32 * MIB), 1))
    numbers = count()

    def starts(at_once: int) -> float:
        # A node of its own each time, whose cache is empty.
        layout = Layout(settings.directory(f"n{(number := next(numbers))}"), settings.base / f"r{number}")
        machines = Machines(HostSettings(layout=layout), lambda _: (Fake(), "for the benchmark"), attach)
        slots = BoundedSemaphore(_SLOTS)
        try:
            begin = time.perf_counter()
            with ThreadPoolExecutor(at_once) as threads:
                list(threads.map(lambda index: _start(machines, _spec(index, packed), slots), range(_STARTS)))
            return time.perf_counter() - begin
        finally:
            for mark in machines.marks():
                machines.remove(mark.name)
            reap()

    pairs = max(1, settings.pairs // 2)
    serial, at_once = in_turns([lambda: starts(1), lambda: starts(_STARTS)], pairs=pairs, warm_up=0)
    words = f"{_STARTS} machines on one packed image that nobody has unpacked yet, all at once / one after the other"
    return [line("starts at once", words, ours=at_once, baseline=serial)]


def run_seed(settings: Settings) -> list[Line]:
    if shutil.which("xorriso") is None:
        raise LeftOutError("xorriso is not installed: the seed has no baseline")
    here = settings.directory("seed")
    key = "ssh-ed25519 AAAA me"
    spec = SeedSpec(instance_id="i", hostname="web-1", ssh_authorized_keys=(key,), user_data=b"#!/bin/sh\n")
    files = seed_files(spec, [NicSpec(network="a", link=UserLink(), mac="52:54:00:12:34:56")])
    for name, data in files.items():
        (here / "in").mkdir(exist_ok=True)
        (here / "in" / name).write_bytes(data)

    def by_process() -> float:
        target = here / "theirs.iso"
        words = ("-volid", "cidata", "-joliet", "on", "-rockridge", "on", "-map", str(here / "in"), "/")
        return timed(lambda: _run("xorriso", "-outdev", str(target), *words, "-commit", "-end"), target)

    def ours() -> float:
        target = here / "ours.iso"
        return timed(lambda: _close(write_seed(target, files)), target)

    base, mine = in_turns([by_process, ours], pairs=settings.pairs * 4)
    return [line("seed", "a seed made and on disk / the same files by xorriso as a process", ours=mine, baseline=base)]


def timed(work: Callable[[], object], target: Path) -> float:
    """Seconds until the work is done; then its result is removed."""
    begin = time.perf_counter()
    work()
    took = time.perf_counter() - begin
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    return took


def _start(machines: Machines, spec: MachineSpec, slots: BoundedSemaphore) -> None:
    """As the driver goes about it: all wait for the image, so many start."""
    machines.bring_images(spec)
    with slots:
        machines.start(spec)


def _spec(index: int, packed: Path) -> MachineSpec:
    root = RootDisk(image=FileRef(root=packed.parent, relative=packed.name), format="raw", packed="gz")
    return MachineSpec(id=f"bench/{index}/1", name=f"bench/{index}", owner="run", vcpus=1, memory_mib=64, root=root)


def _image_in(directory: Path) -> Path:
    path = directory / "image.raw"
    noise = random.Random(1)
    with path.open("wb") as out:
        out.truncate(_IMAGE_BYTES)
        for number in range(_DATA_BYTES // MIB):
            out.seek(number * (_IMAGE_BYTES // _DATA_BYTES) * MIB)
            out.write(noise.randbytes(MIB))
    return path


@contextmanager
def _filesystem_with_reflinks(directory: Path) -> Iterator[Path]:
    """A btrfs in a file. Raises LeftOutError where there is none to be had."""
    disk, top = directory / "btrfs", directory / "mnt"
    top.mkdir()
    with disk.open("wb") as out:
        out.truncate(8 << 30)
    try:
        _run("mkfs.btrfs", "-q", str(disk))
        _run("mount", "-o", "loop", str(disk), str(top))
    except (OSError, subprocess.CalledProcessError) as exc:
        raise LeftOutError(f"no filesystem with reflinks here ({exc})") from exc
    try:
        yield top
    finally:
        _run("umount", str(top))


def _close(disk: DiskAttachment) -> None:
    os.close(disk.file.fd)
    if disk.backing is not None:
        os.close(disk.backing.fd)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)
