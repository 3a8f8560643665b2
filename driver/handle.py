"""The opaque bytes that Nomad keeps for us with each task: enough to find the machine with no plugin config at hand."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vmlib.errors import HostError
from vmlib.paths import Layout

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """Where a task's machine is found, whatever the plugin block says by then."""

    data_dir: str
    run_dir: str
    name: str

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.data_dir), Path(self.run_dir))

    def encode(self) -> bytes:
        return json.dumps({"version": VERSION, **asdict(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Handle":
        """Raises HostError on what this version of the driver cannot read."""
        try:
            fields = json.loads(data)
            version = fields.pop("version")
            if version != VERSION:
                raise HostError(f"task handle has version {version}, expected {VERSION}")
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise HostError(f"task handle of {len(data)} bytes cannot be read, expected one of this driver's") from exc
