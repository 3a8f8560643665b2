"""What `chv doctor` says of the operator's directories: whether they are there, ours, on what, and how full that is."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from driver.cli.doctor_check import Check
from driver.config_plugin import PluginConfig
from driver.damage import damage
from vmlib import version
from vmlib.paths import Layout

# A look at a file of theirs may never come back.
_REMOTE = re.compile(r"nfs4?|cifs|smb3|9p|afs|ceph|lustre|glusterfs|ocfs2|gfs2|fuse(\..*)?")
_MEMORY = {"tmpfs", "ramfs", "rootfs"}
_MIB = 1 << 20
_SCARCE_BYTES = 10 << 30  # or 5 % of a small disk
_SCARCE_SHARE = 0.05
_FEW_INODES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    key: str
    path: Path
    least_bytes: int  # below it starts fail, soon or now
    more_room: str


def directory_checks(config: PluginConfig, mountinfo: Path = Path("/proc/self/mountinfo")) -> Iterator[Check]:
    mounts = mount_points(mountinfo.read_text())
    cleaner = "`chv gc` and `chv disks` list what may go (images: gc.image_cache_max); or give it a larger disk"
    for wanted in (
        _Wanted(key="data_dir", path=config.data_dir, least_bytes=256 * _MIB, more_room=cleaner),
        _Wanted(key="run_dir", path=config.run_dir, least_bytes=16 * _MIB, more_room="make room there"),
    ):
        kind = filesystem_of(wanted.path, mounts)
        yield from _directory(wanted, kind)
        if wanted.key == "data_dir" and not _REMOTE.fullmatch(kind):
            yield from _content(Layout(config.data_dir, config.run_dir))
    for path in config.image_paths:
        kind = filesystem_of(path, mounts)
        if _REMOTE.fullmatch(kind):
            yield Check("image_paths", "ok", f"{path}, on {kind}, is not looked into")
        elif path.is_dir():
            yield Check("image_paths", "ok", str(path))
        else:
            cure = f"mkdir -p {path}, or take it off image_paths"
            yield Check("image_paths", "warning", f"{path} is not a directory", cure)


def may_hang(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether somebody else has to answer before anything there can be looked at."""
    return _REMOTE.fullmatch(filesystem_of(path, mount_points(mountinfo.read_text()))) is not None


def mount_points(mountinfo: str) -> dict[Path, str]:
    """File systems by where they are mounted; of several at one place the one that is seen."""
    found: dict[Path, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found[Path(point)] = after.split(" ")[0]
    return found


def filesystem_of(path: Path, mounts: dict[Path, str]) -> str:
    """By name alone, so that nothing is touched; "" when there is none."""
    return next((mounts[one] for one in (path, *path.parents) if one in mounts), "")


def _directory(wanted: _Wanted, kind: str) -> Iterator[Check]:
    key, path = wanted.key, wanted.path
    if _REMOTE.fullmatch(kind):
        found = f"{path} is on {kind}: when its server is silent, the driver hangs, and other hosts may use it too"
        yield Check(key, "problem", found, f"name a {key} on a disk of this host")
        return
    existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not existing.is_dir():
        yield Check(key, "problem", f"{existing} is not a directory", f"remove it, or name another {key}")
        return
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Check(key, "problem", f"{existing} is not writable", _cure_of_unwritable(existing, key))
        return
    complaints = [*(_owner_and_mode(key, path) if existing == path else ()), *_room(wanted, existing)]
    if key == "data_dir" and kind in _MEMORY:
        found = f"{path} is in memory ({kind}): disks and records are gone after a reboot"
        complaints.append(Check(key, "warning", found, "name a data_dir on a disk"))
    made = "" if existing == path else ", made with the first machine"
    yield from complaints or [Check(key, "ok", f"{path}{made}")]


def _content(layout: Layout) -> Iterator[Check]:
    """What the driver says of it in its health text."""
    try:
        version.expect_ours(layout)
    except version.OtherVersionError as exc:
        yield Check("data_dir", "problem", f"{exc}: no machine starts, and nothing in it is touched", exc.hint)
    for one in damage(layout):
        yield Check("data_dir", "warning", one.found, one.cure)


def _cure_of_unwritable(path: Path, key: str) -> str:
    if os.geteuid() != 0:
        return "run as root"
    return f"mount -o remount,rw its file system, or name another {key}" if path.is_dir() else f"name another {key}"


def _owner_and_mode(key: str, path: Path) -> Iterator[Check]:
    found = path.stat()
    if found.st_uid != os.geteuid():
        yield Check(key, "problem", f"{path} belongs to uid {found.st_uid}, expected root", f"chown root:root {path}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        text = f"{path} has mode {mode:04o}: other users may look into it, expected 0700"
        yield Check(key, "problem" if mode & 0o022 else "warning", text, f"chmod 0700 {path}")


def _room(wanted: _Wanted, existing: Path) -> Iterator[Check]:
    room = os.statvfs(existing)
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    shown = f"{wanted.path}: {free // _MIB} MiB of {size // _MIB} MiB are free"
    if free < wanted.least_bytes:
        yield Check(wanted.key, "problem", f"{shown}: starts fail, and guests cannot write", wanted.more_room)
    elif wanted.key == "data_dir" and free < min(size * _SCARCE_SHARE, _SCARCE_BYTES):
        yield Check(wanted.key, "warning", shown, wanted.more_room)
    if room.f_files and room.f_favail < _FEW_INODES:
        text = f"{wanted.path}: its file system has room for {room.f_favail} more files"
        yield Check(wanted.key, "problem", text, wanted.more_room)
