"""CPU lists as the kernel and Nomad write them: `0-3,8`. Sets of CPU ids everywhere else."""

import re
from collections.abc import Iterable

_MAX_CPU = 1 << 20
_ITEM = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7})(?::([0-9]{1,7})/([0-9]{1,7}))?)?")


def parse_cpus(text: str) -> frozenset[int]:
    """Read a list; blank and `(null)`, which some kernels show, are empty. Raises ValueError."""
    text = text.strip().strip("\0")
    if text in ("", "(null)"):
        return frozenset()
    cpus: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise ValueError(f"expected a CPU list such as 0-3,8, found {item.strip()[:32]!r}")
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last <= _MAX_CPU:
            raise ValueError(f"expected ascending CPU numbers below {_MAX_CPU}, found {item.strip()[:32]!r}")
        used, group = int(match[3] or 1), int(match[4] or 1)
        if not 1 <= used <= group:
            raise ValueError(f"expected FIRST-LAST:USED/GROUP with USED at most GROUP, found {item.strip()[:32]!r}")
        cpus.update(cpu for cpu in range(first, last + 1) if (cpu - first) % group < used)
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest list without spaces; "" for none."""
    parts: list[str] = []
    ordered = sorted(set(cpus))
    start = 0
    for index, cpu in enumerate(ordered):
        if index + 1 < len(ordered) and ordered[index + 1] == cpu + 1:
            continue
        first = ordered[start]
        parts.append(str(first) if first == cpu else f"{first}-{cpu}")
        start = index + 1
    return ",".join(parts)
