"""How a benchmark measures and what it reports: baseline and ours in turns, the ratios of the pairs, their quartiles.

Never a bare time: a number that stands alone says more about the machine than about us.
"""

import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_MACHINE_BYTES = 18 << 20  # of a fake VMM and its keeper

Unit = Literal["s", "bytes", "share", "cores", "1/s"]


class LeftOutError(Exception):
    """A benchmark whose baseline cannot be had here; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One ratio. `low` and `high` are the quartiles of the pairs' ratios, `baseline` and `ours` medians in `unit`."""

    name: str
    compared: str  # "ours / baseline", in words
    ratio: float
    low: float
    high: float
    pairs: int
    ours: float
    baseline: float
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the caller of the benchmarks decides."""

    pairs: int  # of slow measurements; quick ones take a multiple
    machines: int  # on a full node
    stats_machines: int  # that give numbers at once
    chv: Path
    guest_dir: Path
    base: Path  # a short directory that is removed afterwards

    def directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir(parents=True)
        return path


def line(name: str, compared: str, *, ours: Sequence[float], baseline: Sequence[float], unit: Unit = "s") -> Line:
    """The line of measurements that were taken in turns: the first of ours belongs to the first of the baseline's."""
    ratios = [one / base for one, base in zip(ours, baseline, strict=True)]
    low, middle, high = quartiles(ratios)
    return Line(
        name=name,
        compared=compared,
        ratio=middle,
        low=low,
        high=high,
        pairs=len(ratios),
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        unit=unit,
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def in_turns(measures: Sequence[Callable[[], float]], *, pairs: int, warm_up: int = 1) -> list[list[float]]:
    """Take each measure in turn, `pairs` rounds; the first `warm_up` rounds are thrown away. One list a measure."""
    rounds = [[measure() for measure in measures] for _ in range(warm_up + pairs)]
    return [list(column) for column in zip(*rounds[warm_up:], strict=True)]


async def in_turns_async(
    measures: Sequence[Callable[[], Awaitable[float]]], *, pairs: int, warm_up: int = 1
) -> list[list[float]]:
    """The same for measures that await."""
    rounds = [[await measure() for measure in measures] for _ in range(warm_up + pairs)]
    return [list(column) for column in zip(*rounds[warm_up:], strict=True)]


def expect_memory(machines: int) -> None:
    """Raises LeftOutError where so many fake machines have no room."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(one.split()[1]) for one in lines if one.startswith("MemAvailable:")) * 1024
    needed = machines * _MACHINE_BYTES
    if needed > free:
        words = f"{machines} machines need {needed >> 30} GiB of memory, {free >> 30} GiB are free"
        raise LeftOutError(f"{words}: set CHV_BENCH_STATS_MACHINES")


def pss_bytes(pid: int) -> int:
    """A process's share of memory: what is its own, and of what it shares the part that falls to it."""
    for text in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if text.startswith("Pss:"):
            return int(text.split()[1]) * 1024
    raise ValueError(f"no Pss in /proc/{pid}/smaps_rollup")


def table(lines: Iterable[Line]) -> str:
    rows = [("benchmark", "ratio", "quartiles", "pairs", "compared")]
    rows += [
        (one.name, _number(one.ratio), f"{_number(one.low)} – {_number(one.high)}", str(one.pairs), one.compared)
        for one in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )


def write_json(path: Path, lines: Iterable[Line], left_out: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"lines": [asdict(one) for one in lines], "left_out": left_out}, indent=2) + "\n")


def say(text: str) -> None:
    """Progress, apart from the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
