"""Removing machines that nobody wants any more: a machine is wanted while the directory it was started for exists."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.errors import VmError
from vmlib.machine import Machines
from vmlib.net.stray import remove_link
from vmlib.record import Mark

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sweeper:
    """Looks at the machines of one owner; what others own is never touched.

    A machine whose directory has been gone for `gone_s` is removed with its disks; one that still runs then is an
    orphan and has `orphan_grace_s`. With `dry_run` it is only named.
    """

    machines: Machines
    owner: str
    gone_s: float
    orphan_grace_s: float
    dry_run: bool = False
    _gone_since: dict[str, float] = field(default_factory=dict)
    _stray_since: dict[str, float] = field(default_factory=dict)

    def sweep(self, now_s: float) -> list[str]:
        """One look, `now_s` on the monotonic clock. Returns the names of what was removed (or would have been),
        links last."""
        removed = []
        for mark in self.machines.marks():
            if mark.owner != self.owner or not self._unwanted(mark):
                self._gone_since.pop(mark.name, None)
                continue
            since = self._gone_since.setdefault(mark.name, now_s)
            if now_s - since < (self.orphan_grace_s if self._running(mark) else self.gone_s):
                continue
            removed.append(mark.name)
            self._remove(mark)
        return removed + self._links(now_s)

    def _links(self, now_s: float) -> list[str]:
        """Links of our machines that nobody's start knows any more; they have the time of an orphan."""
        stray = {link.name: link for link in self.machines.stray_links(self.owner)}
        self._stray_since = {name: self._stray_since.get(name, now_s) for name in stray}
        removed = []
        for name, since in self._stray_since.items():
            if now_s - since < self.orphan_grace_s:
                continue
            removed.append(name)
            if self.dry_run:
                log.info("would remove link=%s: %s is gone", name, stray[name].run_dir)
                continue
            try:
                remove_link(name, mac="", mark=stray[name].mark)
            except (VmError, OSError) as exc:
                log.warning("link not removed link=%s: %s", name, exc)
            else:
                log.info("link removed link=%s: %s is gone", name, stray[name].run_dir)
        return removed

    def _unwanted(self, mark: Mark) -> bool:
        return bool(mark.alive_while) and not Path(mark.alive_while).exists()

    def _running(self, mark: Mark) -> bool:
        machine = self.machines.find(mark.name)
        return machine is not None and machine.running()

    def _remove(self, mark: Mark) -> None:
        if self.dry_run:
            log.info("would remove machine=%s: %s is gone", mark.name, mark.alive_while)
            return
        try:
            self.machines.remove(mark.name)
        except (VmError, OSError) as exc:
            log.warning("machine not removed machine=%s: %s", mark.name, exc)
        else:
            self._gone_since.pop(mark.name, None)
            log.info("machine removed machine=%s: %s is gone", mark.name, mark.alive_while)
