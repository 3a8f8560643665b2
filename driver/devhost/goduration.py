"""Times as Go writes them: `30s`, `1h30m`, `1.5s`. Job files use them, and Nomad's words show them."""

import re
from decimal import ROUND_HALF_EVEN, Decimal

_UNITS_S = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of `1h30m` and the like. Raises ValueError for anything else."""
    rest = text.removeprefix("-").removeprefix("+")
    if rest == "0":
        return 0.0
    total = Decimal(0)
    position = 0
    while match := _PART.match(rest, position):
        total += Decimal(match[1]) * _UNITS_S[match[2]]
        position = match.end()
    if position == 0 or position != len(rest):
        raise ValueError(f"{text!r}, expected a time like 30s or 1h30m")
    return float(-total if text.startswith("-") else total)


def format_duration(seconds: float) -> str:
    """As Go prints it: `30s`, `1m0s`, `2h0m0s`, `1.5s`, `250ms`, `0s`."""
    nanos = int((Decimal(repr(seconds)) * 1_000_000_000).to_integral_value(ROUND_HALF_EVEN))
    if nanos == 0:
        return "0s"
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    for unit, size in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if nanos < size * 1000:
            return f"{sign}{_plain(nanos, size)}{unit}"
    minutes, rest = divmod(nanos, 60_000_000_000)
    shown = f"{_plain(rest, 1_000_000_000)}s"
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{sign}{hours}h{minutes_left}m{shown}"
    return f"{sign}{minutes}m{shown}" if minutes else f"{sign}{shown}"


def _plain(nanos: int, unit: int) -> str:
    text = format((Decimal(nanos) / unit).normalize(), "f")
    return text or "0"
