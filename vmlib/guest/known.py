"""What a guest has said of itself, for whoever looks next: beside the machine, in memory. Any of it may be missing."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmlib.files import write_atomic
from vmlib.guest.report import Report, number_within, plain

_MAX_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class Known:
    """The last report, and what of it people were told; without it some things are said twice."""

    report: Report = field(default_factory=Report)
    at: float = 0.0  # seconds since the epoch
    told_boot: str = ""  # `agent ready`, of that boot of the guest
    told_shares: str = ""  # what is wrong with shares, at that boot
    told_addresses: tuple[str, ...] = ()  # in whatever event
    address_events: int = 0

    def save(self, path: Path) -> None:
        """Raises OSError."""
        write_atomic(path, json.dumps(asdict(self)).encode())

    def age_s(self) -> float:
        return max(0.0, time.time() - self.at)


def load(path: Path) -> Known:
    """Empty when there is nothing, or nothing that can be understood."""
    try:
        with path.open("rb") as file:
            data: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
        return Known(
            report=Report().updated(data["report"]),
            at=float(data["at"]),
            told_boot=plain(data["told_boot"]),
            told_shares=plain(data["told_shares"]),
            told_addresses=tuple(plain(one) for one in data["told_addresses"]),
            address_events=number_within(data["address_events"], 0, 100, 0),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Known()
