"""What a guest says of itself, checked: whoever is in the guest may say anything, in any type and length."""

import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vmlib.guest.facts import HOOKED_SIGNALS

MAX_TEXT = 200  # characters
_MOST = 64  # of anything that there may be several of
_MAX_ADDRESS = 45
_MAX_BYTES = 1 << 60
_MAX_SECONDS = 1e10
_MAX_LOAD = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The guest's own facts and numbers; what it never said, or said in a form that makes no sense, is empty."""

    boot_id: str = ""
    boot_s: float = 0.0  # from its kernel's start to its agent's
    python: str = ""
    addresses: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()  # for which it has hooks
    shares: Mapping[str, str] = field(default_factory=dict)  # by path; "" = mounted, else why not
    load: tuple[float, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)  # total_bytes, available_bytes
    uptime_s: float = 0.0

    def updated(self, said: Mapping[str, Any]) -> "Report":
        """With what the guest says now; of what it does not mention, the old."""
        found: dict[str, Any] = {}
        for key, value in said.items():
            match key, value:
                case (("boot_id" | "python"), str()):
                    found[key] = plain(value)
                case (("boot_s" | "uptime_s"), int() | float()):
                    found[key] = _number(value, _MAX_SECONDS)
                case "addresses", list():
                    found[key] = tuple(_addresses(value))
                case "signals", list():
                    found[key] = tuple(name for name in HOOKED_SIGNALS if name in value)
                case "shares", dict():
                    found[key] = {plain(path): _reason(why) for path, why in list(value.items())[:_MOST]}
                case "load", list():
                    found[key] = tuple(_number(one, _MAX_LOAD) for one in value[:3])
                case "memory", dict():
                    found[key] = {
                        name: int(_number(value[name], _MAX_BYTES))
                        for name in ("total_bytes", "available_bytes")
                        if name in value
                    }
        return replace(self, **found)


def plain(value: object, most: int = MAX_TEXT) -> str:
    """A guest's text as it may stand in an event or an error: short, of printable characters, in one line."""
    if not isinstance(value, str):
        return ""
    shown = "".join(char if char.isprintable() else " " for char in value[: 2 * most]).strip()
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def number_within(value: object, least: int, most: int, otherwise: int) -> int:
    """A guest's whole number; `otherwise` for what is none, or none of these."""
    return value if type(value) is int and least <= value <= most else otherwise


def _number(value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), most))


def _addresses(values: Iterable[object]) -> Iterable[str]:
    for value in list(values)[:_MOST]:
        if isinstance(value, str) and len(value) <= _MAX_ADDRESS and "%" not in value:
            try:
                yield str(ipaddress.ip_address(value))
            except ValueError:
                continue


def _reason(why: object) -> str:
    return "" if why == "" else plain(why) or "no reason given"
