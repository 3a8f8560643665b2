"""What a guest's agent says as events, each told once, and on disk for whoever looks next."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from driver.offload import Offload
from driver.store import Task
from vmlib.guest.known import Known, load
from vmlib.guest.report import Report
from vmlib.kinds import EventKind

log = logging.getLogger(__name__)

_SAVE_S = 15.0
_ADDRESSES_S = 5.0  # for a guest whose agent comes before its addresses
_SETTLE_S = 5.0  # a new address is seen on the link first, and told by the watch over links
_ADDRESS_EVENTS = 2  # Nomad keeps ten of a task in all
_EVENTS, _EVENTS_S = 3, 600.0  # of one kind as many are told in that time, of a guest that boots and boots
_SHOWN = 4  # addresses, or paths, in an event

Tell = Callable[[Task, str, EventKind], None]


class GuestNews:
    """Of one task. Nothing it holds is needed; without it some things are said twice."""

    def __init__(self, task: Task, offload: Offload, tell: Tell) -> None:
        """`tell` gets a task, the text of an event about it and its kind."""
        self._task = task
        self._offload = offload
        self._tell = tell
        self._known = Known()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._saved_at: float | None = None  # on the loop's clock
        self._file = asyncio.Lock()
        self._told_at: dict[EventKind, list[float]] = {}  # what belongs to a boot
        self._behind: set[asyncio.Future[None]] = set()
        self._over = False

    async def load(self) -> None:
        """What an earlier plugin knew; to be called first."""
        self._known = await self._offload("keep", load, self._task.machine.run.guest)

    def end(self) -> None:
        """Tell and write nothing from now on."""
        self._over = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def take(self, report: Report) -> None:
        """What the guest says now."""
        known = self._known
        known.report, known.at = report, time.time()
        if _boot(report) != known.told_boot:
            if report.addresses or not self._task.machine.record.nics:
                self._tell_ready()
            else:
                self._later("ready", _ADDRESSES_S, self._tell_ready)
        elif set(report.addresses) - set(known.told_addresses) and known.address_events < _ADDRESS_EVENTS:
            self._later("addresses", _SETTLE_S, lambda: self._background(self._tell_addresses()))
        lost = {path: why for path, why in report.shares.items() if why}
        if lost and known.told_shares != _boot(report):
            known.told_shares = _boot(report)
            self._tell_of_boot("lint", f"lint: {shares_text(lost)}")
        self._save_later()

    # -- events --------------------------------------------------------------------------------------------------

    def _tell_ready(self) -> None:
        self._forget("ready")
        known = self._known
        report = known.report
        known.told_boot, known.told_addresses = _boot(report), report.addresses
        addresses = f", addresses {_listed(report.addresses)}" if report.addresses else ""
        self._tell_of_boot("agent ready", f"agent ready: booted in {report.boot_s:.0f} s{addresses}")

    def _tell_of_boot(self, kind: EventKind, text: str) -> None:
        """And write down at once that it was told; what comes too often is neither told nor written so soon."""
        now = asyncio.get_running_loop().time()
        told_at = [at for at in self._told_at.get(kind, ()) if now - at < _EVENTS_S]
        if len(told_at) < _EVENTS:
            told_at.append(now)
            self._tell(self._task, text, kind)
            self._save_now()
        else:
            self._save_later()
        self._told_at[kind] = told_at

    async def _tell_addresses(self) -> None:
        """What the watch over links can see it has told by now."""
        seen = {one for nic in await self._offload("keep", self._task.machine.nics) for one in nic.addresses}
        known = self._known
        new = [one for one in known.report.addresses if one not in known.told_addresses and one not in seen]
        known.told_addresses = known.report.addresses
        if new and not self._over:
            known.address_events += 1
            self._tell(self._task, f"address: {_listed(new)}, by the guest's own word", "address")
        self._save_now()

    # -- on disk -------------------------------------------------------------------------------------------------

    def _save_later(self) -> None:
        """Not often: a guest's load is another one all the time."""
        now = asyncio.get_running_loop().time()
        due = now if self._saved_at is None else self._saved_at + _SAVE_S
        self._later("save", max(0.0, due - now), self._save_now)

    def _save_now(self) -> None:
        self._forget("save")
        self._saved_at = asyncio.get_running_loop().time()
        self._background(self._save())

    async def _save(self) -> None:
        async with self._file:
            if self._over:
                return
            try:
                await self._offload("keep", replace(self._known).save, self._task.machine.run.guest)
            except OSError as exc:  # its run directory is gone, or full: the guest says all of it again
                log.debug("guest's report not written task=%s: %s", self._task.id, exc)

    # -- small steps ---------------------------------------------------------------------------------------------

    def _later(self, name: str, wait_s: float, action: Callable[[], object]) -> None:
        """Do it once, however often that is asked for until then."""

        def act() -> None:
            self._timers.pop(name, None)
            action()

        if name not in self._timers and not self._over:
            self._timers[name] = asyncio.get_running_loop().call_later(wait_s, act)

    def _forget(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        self._behind.add(done := asyncio.ensure_future(work))
        done.add_done_callback(self._behind.discard)


def shares_text(lost: Mapping[str, str]) -> str:
    """For an event: which shares the guest has not mounted, why, and what helps. `lost` has the reasons by path."""
    by_reason: dict[str, list[str]] = {}
    for path, why in lost.items():
        by_reason.setdefault(why, []).append(path)
    found = "; ".join(f"{_listed(paths)} ({why})" for why, paths in list(by_reason.items())[:2])
    if any("virtiofs" in why for why in by_reason):
        cure = "it needs an image whose kernel has virtiofs, Linux 5.4 or newer"
    else:
        cure = "the guest's console says more, as does `mount -a` in the guest"
    return f"the guest has not mounted {found}: {cure}"


def _listed(values: Sequence[str]) -> str:
    more = len(values) - _SHOWN
    return f"{', '.join(values[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def _boot(report: Report) -> str:
    return report.boot_id or "unknown"
