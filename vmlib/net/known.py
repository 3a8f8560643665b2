"""What was learned about the links of one start of a machine, for whoever looks next: beside the machine, in memory."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmlib.files import write_atomic
from vmlib.net.learn import MAX_ADDRESSES, in_order
from vmlib.net.linkstate import Nic


@dataclass(slots=True, kw_only=True)
class Known:
    """Nothing of it is needed; without it some things are said twice, or later."""

    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by MAC, seen on the link
    told: int = 0  # events about addresses
    lost: dict[str, str] = field(default_factory=dict)  # by link, why no frame passes

    def save(self, path: Path) -> None:
        """Raises OSError."""
        write_atomic(path, json.dumps(asdict(self)).encode())

    def of(self, nic: Nic) -> tuple[str, ...]:
        """Addresses of an interface without the length of the prefix: those it was given, then those seen."""
        given = tuple(address.partition("/")[0] for address in nic.addresses)
        return given + tuple(one for one in self.addresses.get(nic.mac, ()) if one not in given)


def load(path: Path) -> Known:
    """Empty when there is nothing, or nothing that can be understood."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        return Known(
            addresses={
                str(mac): in_order([str(one) for one in found[:MAX_ADDRESSES]])
                for mac, found in data["addresses"].items()
            },
            told=int(data["told"]),
            lost={str(link): str(why) for link, why in data["lost"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Known()
