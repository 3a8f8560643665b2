"""Watches the links of running machines: tells when one is lost or back, and which addresses the guests took.

One netlink socket for all machines, and a packet socket for each interface whose address was not known at the start.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from driver.offload import Offload
from driver.store import Task
from vmlib.kinds import EventKind
from vmlib.net import known, linkstate
from vmlib.net.learn import FRAMES_AT_ONCE, Ears, Seen
from vmlib.net.linkstate import LinkNotices, LinkState
from vmlib.record import NicRecord

log = logging.getLogger(__name__)

_SLOW_LOOK_S = 30.0
_SETTLE_S = 0.05  # one change is several notices
_SURE_S = 0.3  # a link also goes with its VMM, and a cable may be plugged over
_DEAF_S, _LONGEST_DEAF_S = 0.2, 5.0  # between two readings of one interface's frames
_FIRST_ADDRESS_S, _NEXT_ADDRESS_S = 1.0, 10.0  # IPv4 and IPv6 come one after the other
_EVENTS = 2  # about addresses; Nomad keeps ten of a task in all
_LOSSES, _LOSSES_S = 3, 600.0  # as many are told in that time
_SHOWN = 4  # addresses of one interface in an event

Tell = Callable[[Task, str, EventKind], None]


@dataclass(slots=True, eq=False)
class _Listener:
    nic: NicRecord
    ears: Ears
    seen: Seen
    deaf_s: float = _DEAF_S
    again: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Watched:
    task: Task
    known: known.Known
    seen: dict[str, Seen]  # by MAC
    listeners: dict[str, _Listener] = field(default_factory=dict)  # by link
    telling: asyncio.Task[None] | None = None  # of addresses
    last_told: float = 0.0  # on the loop's clock; 0 = not yet
    file: asyncio.Lock = field(default_factory=asyncio.Lock)
    shown: frozenset[str] = frozenset()
    losses: list[float] = field(default_factory=list)  # when they were told

    @property
    def nics(self) -> tuple[NicRecord, ...]:
        return self.task.machine.record.nics

    @property
    def over(self) -> bool:
        return self.task.ended.done()


class LinkWatch:
    """Holds nothing that cannot be found again from records and run directories."""

    def __init__(self, offload: Offload, tell: Tell) -> None:
        """`tell` gets a task, the text of an event about it and its kind."""
        self._offload = offload
        self._tell = tell
        self._watched: dict[str, _Watched] = {}
        self._coming: set[str] = set()  # tasks of an earlier plugin, of which the file is being read
        self._due = asyncio.Event()
        self._interesting: set[int] = set()
        self._notices: LinkNotices | None = None
        self._running: asyncio.Task[None] | None = None
        self._behind: set[asyncio.Future[None]] = set()

    def start(self) -> None:
        """Begin; needs a running loop. Does nothing the second time."""
        if self._running is None:
            self._running = asyncio.create_task(self._watch(), name="link watch")

    def add(self, task: Task, *, fresh: bool) -> None:
        """Watch a task's links. `fresh`: it was started just now, and what is odd about its links has been told."""
        nics = task.machine.record.nics
        if not nics or task.id in self._watched:
            return
        if fresh:
            watched = self._begin(
                task, known.Known(lost={nic.link: "" for nic in nics if nic.link and _was_told(task, nic)})
            )
            if watched.known.lost:  # so that the next plugin does not tell it again
                self._background(self._save(watched))
        else:
            self._coming.add(task.id)
            self._background(self._take_over(task))

    async def _take_over(self, task: Task) -> None:
        before = await self._offload("keep", known.load, task.machine.run.links)
        if task.id in self._coming:  # else it was dropped meanwhile
            self._coming.discard(task.id)
            self._begin(task, before)

    def _begin(self, task: Task, before: known.Known) -> _Watched:
        nics = task.machine.record.nics
        seen = {nic.mac: Seen() for nic in nics}
        for mac, addresses in before.addresses.items():
            for address in reversed(addresses):
                seen.setdefault(mac, Seen()).add(address)
        watched = _Watched(task, before, seen)
        if before.told:
            watched.shown = frozenset(one for nic in nics for one in _global(before.of(nic)))
        self._watched[task.id] = watched
        if any(nic.addresses for nic in nics) and not before.told:
            self._learned(watched)
        self._due.set()
        return watched

    def drop(self, task_id: str) -> None:
        """Stop watching, before anybody takes the links away."""
        self._coming.discard(task_id)
        watched = self._watched.pop(task_id, None)
        if watched is None:
            return
        if watched.telling is not None:
            watched.telling.cancel()
        for link in list(watched.listeners):
            self._deafen(watched, link)

    # -- lost and back -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            self._notices = LinkNotices()
            asyncio.get_running_loop().add_reader(self._notices.fd, self._on_notice)
        except OSError as exc:
            log.warning("links are not watched, only looked at every %g s: %s", _SLOW_LOOK_S, exc)
        while True:
            self._due.clear()
            try:
                await self._look()
            except Exception:  # the top of a background task: a bad look must not end the watch
                log.exception("look at the links failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SLOW_LOOK_S):
                    await self._due.wait()
                await asyncio.sleep(_SETTLE_S)

    def _on_notice(self) -> None:
        assert self._notices is not None
        changed = self._notices.read()
        if changed is None or changed & self._interesting:
            self._due.set()

    async def _look(self) -> None:
        if not self._watched:
            return
        links = await self._links()
        changed = self._changed(links)
        if any(why for _, _, why in changed):
            await asyncio.sleep(_SURE_S)
            links = await self._links()
            changed = self._changed(links)
        for watched, nic, why in changed:
            if why and not await self._offload("keep", watched.task.machine.running):
                continue
            if watched.over or watched.task.id not in self._watched:
                continue
            self._note(watched, nic, why)
        for watched in list(self._watched.values()):
            await self._listen(watched, links)

    async def _links(self) -> dict[int, LinkState]:
        links = await self._offload("keep", linkstate.look)
        self._interesting = linkstate.interesting((nic for one in self._watched.values() for nic in one.nics), links)
        return links

    def _changed(self, links: Mapping[int, LinkState]) -> list[tuple[_Watched, NicRecord, str]]:
        """Interfaces that are lost or back since the last look, with the reason of the loss."""
        found = []
        for watched in self._watched.values():
            for nic in watched.nics if not watched.over else ():
                why = linkstate.what_is_lost(nic, links)
                if bool(why) != (nic.link in watched.known.lost):
                    found.append((watched, nic, why))
        return found

    def _note(self, watched: _Watched, nic: NicRecord, why: str) -> None:
        """Tell of a loss, or of its end; a link that comes and goes all the time says so once."""
        now = asyncio.get_running_loop().time()
        watched.losses = [at for at in watched.losses if now - at < _LOSSES_S]
        quiet = len(watched.losses) > _LOSSES
        log.info("link %s machine=%s: %s", "lost" if why else "back", watched.task.id, why or nic.link)
        if why:
            watched.known.lost[nic.link] = why
            watched.losses.append(now)
            if len(watched.losses) > _LOSSES:
                why += f"; it comes and goes, which is not told again for {_LOSSES_S / 60:.0f} minutes"
            if not quiet:
                self._tell(watched.task, f"link lost: {why}", "link lost")
        else:
            del watched.known.lost[nic.link]
            if not quiet and len(watched.losses) <= _LOSSES:
                self._tell(watched.task, f"link back: {nic.link} ({nic.network})", "link back")
        self._background(self._save(watched))

    # -- addresses -----------------------------------------------------------------------------------------------

    async def _listen(self, watched: _Watched, links: Mapping[int, LinkState]) -> None:
        for nic in watched.nics:
            one = links.get(nic.ifindex)
            there = one is not None and one.name == nic.link and one.up and not watched.over
            if not there and nic.link in watched.listeners:
                self._deafen(watched, nic.link)
            elif there and nic.link not in watched.listeners and not nic.addresses:
                try:
                    ears = await self._offload("keep", Ears, nic.link, nic.ifindex, nic.mac)
                except (OSError, ValueError) as exc:
                    log.warning("addresses not learned link=%s: %s", nic.link, exc)
                    continue
                if watched.task.id not in self._watched:
                    self._close(ears)
                    return
                listener = _Listener(nic, ears, watched.seen[nic.mac])
                watched.listeners[nic.link] = listener
                asyncio.get_running_loop().add_reader(ears.fd, self._on_frames, watched, listener)

    def _on_frames(self, watched: _Watched, listener: _Listener) -> None:
        """Read a few frames, then none for a while: a guest may send as many as it likes."""
        loop = asyncio.get_running_loop()
        try:
            count, found = listener.ears.hear()
        except OSError:  # down or gone; the next look says which
            self._deafen(watched, listener.nic.link)
            return
        new = [listener.seen.add(address) for address in found]
        calm = any(new) and count < FRAMES_AT_ONCE
        listener.deaf_s = _DEAF_S if calm else min(2 * listener.deaf_s, _LONGEST_DEAF_S)
        loop.remove_reader(listener.ears.fd)
        listener.again = loop.call_later(listener.deaf_s, self._hear_again, watched, listener)
        if any(new):
            self._learned(watched)

    def _hear_again(self, watched: _Watched, listener: _Listener) -> None:
        listener.again = None
        asyncio.get_running_loop().add_reader(listener.ears.fd, self._on_frames, watched, listener)

    def _learned(self, watched: _Watched) -> None:
        """Tell soon, and not often: IPv4 and IPv6 come one after the other, and some guests show one after another."""
        if watched.telling is not None and not watched.telling.done():
            return
        now = asyncio.get_running_loop().time()
        if watched.last_told:
            wait_s = max(_FIRST_ADDRESS_S, watched.last_told + _NEXT_ADDRESS_S - now)
        else:
            wait_s = 0.0 if any(nic.addresses for nic in watched.nics) else _FIRST_ADDRESS_S
        watched.telling = asyncio.create_task(self._tell_later(watched, wait_s), name=f"addresses {watched.task.id}")

    async def _tell_later(self, watched: _Watched, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        watched.last_told = asyncio.get_running_loop().time()
        watched.known.addresses = {mac: seen.addresses() for mac, seen in watched.seen.items() if seen.addresses()}
        self._tell_addresses(watched)
        await self._save(watched)

    async def _save(self, watched: _Watched) -> None:
        async with watched.file:
            snapshot = replace(watched.known, lost=dict(watched.known.lost))
            try:
                await self._offload("keep", snapshot.save, watched.task.machine.run.links)
            except OSError as exc:  # its run directory is gone, or full: all of it can be learned again
                log.debug("links not written machine=%s: %s", watched.task.id, exc)

    def _tell_addresses(self, watched: _Watched) -> None:
        now = frozenset(one for nic in watched.nics for one in _global(watched.known.of(nic)))
        if not now or now == watched.shown or watched.known.told >= _EVENTS or watched.over:
            return
        watched.shown = now
        watched.known.told += 1
        self._tell(watched.task, f"address: {addresses_text(watched.nics, watched.known)}", "address")

    # -- sockets -------------------------------------------------------------------------------------------------

    def _deafen(self, watched: _Watched, link: str) -> None:
        listener = watched.listeners.pop(link)
        if listener.again is not None:
            listener.again.cancel()
        else:
            asyncio.get_running_loop().remove_reader(listener.ears.fd)
        self._close(listener.ears)

    def _close(self, ears: Ears) -> None:
        """Beside the loop: the kernel waits until nobody uses the socket any more."""
        self._background(self._offload("keep", ears.close))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        self._behind.add(done := asyncio.ensure_future(work))
        done.add_done_callback(self._behind.discard)


def addresses_text(nics: tuple[NicRecord, ...], what: known.Known) -> str:
    """For an event: "192.0.2.10, 2001:db8::10 on lan; 10.0.0.5 on br"."""
    parts = []
    for nic in nics:
        if addresses := _global(what.of(nic)):
            more = len(addresses) - _SHOWN
            parts.append(f"{', '.join(addresses[:_SHOWN])}{f' and {more} more' if more > 0 else ''} on {nic.network}")
    return "; ".join(parts)


def _global(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Without those that count on the link only."""
    return tuple(one for one in addresses if not one.startswith(("fe80:", "169.254.")))


def _was_told(task: Task, nic: NicRecord) -> bool:
    return any(notice.kind == "link lost" and nic.link in notice.text for notice in task.machine.notices)
