"""A shelf of volumes: a directory with NAME.raw for each, of which a job takes one with `meta { volume = "NAME" }`.

The smallest volume system that is of use: one machine at a time has a volume, and it stays when the machine goes.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.hooks import Context, GivenDisk, Prepared
from vmlib.spec import MachineSpec


class Shelf:
    """Selected as `hooks = ["shelf:/srv/shelf"]` in the plugin block."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        if not self._directory.is_dir():
            raise HostError(f"{directory} is not a directory")

    def preflight(self, spec: MachineSpec, context: Context) -> Prepared:
        volume = context.labels.get("meta.volume")
        if volume is None:
            return Prepared()  # a job that wants none
        if not re.fullmatch("[a-z0-9][a-z0-9-]{0,19}", volume):
            raise SpecError(f"meta volume = {volume!r}: expected at most 20 of a-z 0-9 and inner -")
        disk = self._directory / f"{volume}.raw"
        if not disk.exists():
            raise SpecError(f"meta volume = {volume!r}: no such volume in {self._directory}")
        context.note({"volume": volume})  # before the lock exists: whatever happens, it is taken back
        self._take(volume, context)
        return Prepared(disks=(GivenDisk(name="volume", path=disk, serial=volume),))

    def postflight(self, state: Mapping[str, str], context: Context) -> None:
        lock = self._lock(state["volume"])
        with contextlib.suppress(FileNotFoundError):  # it was never taken, or is free already
            if os.readlink(lock) == _owner(context):  # else another machine has it by now
                lock.unlink()

    def _take(self, volume: str, context: Context) -> None:
        lock = self._lock(volume)
        try:
            os.symlink(_owner(context), lock)  # made with its content in one step, or not at all
        except FileExistsError:
            raise NoCapacityError(f"meta volume = {volume!r}: in use by {os.readlink(lock)}") from None

    def _lock(self, volume: str) -> Path:
        return self._directory / f"{volume}.lock"


def _owner(context: Context) -> str:
    return f"{context.machine} ({context.machine_id})"
