"""Sizes and durations as people write them. Both functions raise ValueError with what was expected."""

import re
from fractions import Fraction

# A bare K, M, G or T is refused: qemu-img reads 10G as 1024³, disk makers as 1000³, and the difference is 7 %.
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_MAX_BYTES = (1 << 63) - 1  # of a file

# Longest first: the order in which the parts of a duration stand.
_DURATION_UNITS = {
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}
_DURATION_PART = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_DURATION_PART}){unit})?" for unit in _DURATION_UNITS))
_MAX_SECONDS = (1 << 63) // 10**9  # Nomad counts nanoseconds in 64 bits


def parse_size(text: str) -> int:
    """Bytes: `10GiB` (1024³), `10GB` (1000³), `1.5TiB`, or a plain number of bytes."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _SIZE_UNITS:
        if match is not None and match[2] in tuple("KMGT"):
            unit = match[2]
            raise ValueError(
                f"expected {unit}iB (1024{_POWERS[unit]}) or {unit}B (1000{_POWERS[unit]}) after the number"
            )
        raise ValueError("expected a size such as 10GiB")
    size = Fraction(match[1]) * _SIZE_UNITS[match[2]]
    if size.denominator != 1:
        raise ValueError("expected a whole number of bytes")
    if size > _MAX_BYTES:
        raise ValueError(f"expected at most {_MAX_BYTES} bytes")
    return int(size)


_POWERS = {"K": "", "M": "²", "G": "³", "T": "⁴"}


def parse_duration(text: str) -> float:
    """Seconds: `30s`, `5m`, `1h30m`, `1.5h`, `30d`, `250ms`; parts go from long to short, each unit once. `0` is 0."""
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    parts = {unit: part for unit, part in match.groupdict().items() if part} if match else {}
    if not parts:
        raise ValueError("expected a duration such as 30s, 5m, 1h30m or 30d")
    seconds = sum((Fraction(part) * _DURATION_UNITS[unit] for unit, part in parts.items()), Fraction(0))
    if seconds > _MAX_SECONDS:
        raise ValueError(f"expected at most {_MAX_SECONDS}s")
    return float(seconds)
