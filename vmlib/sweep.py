"""Removing what nobody wants any more: a machine is wanted while the directory it was started for exists, and what is
left of a start is wanted while a journal or a record names it.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.errors import VmError
from vmlib.machine import Machines
from vmlib.record import Mark
from vmlib.stray import Kind, Stray

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sweeper:
    """Looks at the machines of one owner; what others own is never touched.

    A machine whose directory has been gone for `gone_s` is removed with its disks; one that still runs then is an
    orphan and has `orphan_grace_s`, as everything else has that nobody owns. With `dry_run` it is only named. Several
    sweepers at once do no harm: what another one was faster to remove is no news.
    """

    machines: Machines
    owner: str
    gone_s: float
    orphan_grace_s: float
    dry_run: bool = False
    _gone_since: dict[str, float] = field(default_factory=dict)
    _stray_since: dict[tuple[Kind, str], float] = field(default_factory=dict)

    def sweep(self, now_s: float) -> list[str]:
        """One look, `now_s` on the monotonic clock. Returns the names of what was removed (or would have been):
        machines, then whatever else there was."""
        removed = []
        for mark in self.machines.marks():
            if mark.owner != self.owner or not _unwanted(mark):
                self._gone_since.pop(mark.name, None)
                continue
            since = self._gone_since.setdefault(mark.name, now_s)
            if now_s - since < (self.orphan_grace_s if self._running(mark) else self.gone_s):
                continue
            removed.append(mark.name)
            self._remove(mark)
        return removed + self._stray(now_s)

    def _stray(self, now_s: float) -> list[str]:
        found = {(one.kind, one.name): one for one in self.machines.stray(self.owner)}
        self._stray_since = {key: self._stray_since.get(key, now_s) for key in found}
        removed = []
        for key, since in self._stray_since.items():
            if now_s - since >= self.orphan_grace_s:
                removed.append(found[key].name)
                self._remove_stray(found[key])
        return removed

    def _running(self, mark: Mark) -> bool:
        machine = self.machines.find(mark.name)
        return machine is not None and machine.running()

    def _remove(self, mark: Mark) -> None:
        why = f"{mark.alive_while} is gone"
        if self.dry_run:
            log.info("would remove machine=%s: %s", mark.name, why)
            return
        try:
            gone = self.machines.remove(mark.name, unless=lambda: not _unwanted(mark))
        except (VmError, OSError) as exc:
            log.warning("not removed machine=%s: %s", mark.name, exc)
            return
        self._gone_since.pop(mark.name, None)
        if gone:
            log.info("removed machine=%s: %s", mark.name, why)

    def _remove_stray(self, one: Stray) -> None:
        if self.dry_run:
            log.info("would remove %s=%s: %s", one.kind, one.name, one.why)
            return
        try:
            gone = self.machines.remove_stray(one)
        except (VmError, OSError, ValueError) as exc:
            log.warning("not removed %s=%s: %s", one.kind, one.name, exc)
            return
        if gone:
            log.info("removed %s=%s: %s", one.kind, one.name, one.why)


def _unwanted(mark: Mark) -> bool:
    return bool(mark.alive_while) and not Path(mark.alive_while).exists()
