"""The opaque bytes that Nomad keeps for us with each task: enough to find the machine with no plugin config at hand."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vmlib.errors import HostError
from vmlib.files import parse_json
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
            found = parse_json(data)
            if (version := found["version"]) != VERSION:
                raise HostError(
                    f"task handle has version {version}, expected {VERSION}",
                    hint="another version of chv has started the task: use that, or stop the task first",
                )
            # A later version of the same may have added some.
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise HostError(f"task handle of {len(data)} bytes cannot be read, expected one of this driver's") from exc
