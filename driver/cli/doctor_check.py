"""What `chv doctor` is made of: lines of a report, and looks at the host that end in time whatever the host does."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]

_PATIENCE_S = 20.0  # longer than any tool or server is waited for by itself


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One look at the host. Its lines count as they come, should it break later."""

    name: str
    look: Callable[[], Iterable[Check]]


def gather(parts: Sequence[Part], *, patience_s: float = _PATIENCE_S) -> list[Check]:
    """The lines of all parts, in their order. All look at once, and each has `patience_s`.

    A part that breaks or does not end has a line that says so after those that it came to.
    """
    looks = [_Look(part) for part in parts]
    # Threads that nobody waits for at the end: what touches a dead file system does not come back.
    threads = [threading.Thread(target=look.run, daemon=True) for look in looks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [line for look in looks for line in look.lines(patience_s)]


@dataclass(slots=True)
class _Look:
    part: Part
    found: list[Check] = field(default_factory=list)
    over: bool = False
    failure: str = ""

    def run(self) -> None:
        try:
            for line in self.part.look():
                self.found.append(line)
        except Exception as exc:  # noqa: BLE001  the report has other lines, and this is one of them
            self.failure = f"{type(exc).__name__}: {exc}"
        self.over = True

    def lines(self, patience_s: float) -> list[Check]:
        found = list(self.found)
        if not self.over:
            hangs = f"no answer within {patience_s:g} s"
            cure = "look at `cat /proc/self/mountinfo` for a file system whose server is gone"
            return [*found, Check(self.part.name, "problem", hangs, cure)]
        if self.failure:
            cure = "run it as root; if it stays, it is a bug: report this line"
            return [*found, Check(self.part.name, "problem", f"cannot be looked at: {self.failure}", cure)]
        return found
