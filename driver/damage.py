"""What the node has of damaged files, in the words of health text and doctor, with what to do about it."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib import aside
from vmlib.paths import Layout
from vmlib.record import ownerless


@dataclass(frozen=True, slots=True)
class Damage:
    found: str
    cure: str


def damage(layout: Layout) -> Iterator[Damage]:
    """Nothing where one cannot look: that is said of the directory."""
    with contextlib.suppress(OSError):
        if found := _first_of(aside.found(layout)):
            yield Damage(f"damaged files were set aside: {found}", "look at them, then remove them")
        if found := _first_of(ownerless(layout)):
            yield Damage(
                f"mark and record are damaged, nobody knows whose machine it was: {found}",
                "look at the directory, then remove it",
            )


def _first_of(paths: Iterable[Path]) -> str:
    found = list(paths)
    if not found:
        return ""
    return f"{found[0]} and {len(found) - 1} more" if found[1:] else str(found[0])
