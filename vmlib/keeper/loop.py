"""The keeper's event loop: readable and writable descriptors, and timers. One thread, nothing that blocks."""

import selectors
import time
from collections.abc import Callable

Action = Callable[[], object]


class Loop:
    """Calls whoever registered for a descriptor or a moment."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._readers: dict[int, Action] = {}
        self._first: set[int] = set()
        self._timers: list[tuple[float, Action]] = []

    def on_read(self, fd: int, action: Action, *, first: bool = False) -> None:
        """Call `action` whenever `fd` has something, or its end; `first` goes before all others of the same turn."""
        if first:
            self._first.add(fd)
        self.want_read(fd, action)

    def want_read(self, fd: int, action: Action | None) -> None:
        """The same, for who does not always want to know; None is no interest now."""
        if action is None:
            self._readers.pop(fd, None)
        else:
            self._readers[fd] = action
        known = self._selector.get_map().get(fd)
        self._watch(fd, known.data if known is not None else None)

    def want_write(self, fd: int, pump: Action | None) -> None:
        """Call `pump` as soon as `fd` takes more; None when nothing waits any more."""
        self._watch(fd, pump)

    def _watch(self, fd: int, pump: Action | None) -> None:
        events = (selectors.EVENT_READ if fd in self._readers else 0) | (selectors.EVENT_WRITE if pump else 0)
        known = self._selector.get_map().get(fd)
        if known is None:
            if events:
                self._selector.register(fd, events, pump)
        elif not events:
            self._selector.unregister(fd)
        elif (known.events, known.data) != (events, pump):
            self._selector.modify(fd, events, pump)

    def forget(self, fd: int) -> None:
        """To be called before `fd` is closed."""
        self._readers.pop(fd, None)
        self._first.discard(fd)
        self._watch(fd, None)

    def after(self, delay_s: float, action: Action) -> None:
        """Call `action` once, `delay_s` from now."""
        self._timers.append((time.monotonic() + delay_s, action))

    def turn(self) -> None:
        """Wait for something and do what there is to do."""
        ready = self._selector.select(self._next_timer_s())
        for key, mask in sorted(ready, key=lambda one: one[0].fd not in self._first):
            # One before it may have closed this one; its number then means nothing, or something new.
            if self._selector.get_map().get(key.fd) is not key:
                continue
            if mask & selectors.EVENT_READ and key.fd in self._readers:
                self._readers[key.fd]()
            if mask & selectors.EVENT_WRITE and key.data is not None:
                key.data()
        now = time.monotonic()
        due = [action for at, action in self._timers if at <= now]
        self._timers = [(at, action) for at, action in self._timers if at > now]
        for action in due:
            action()

    def _next_timer_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(at for at, _ in self._timers) - time.monotonic())
