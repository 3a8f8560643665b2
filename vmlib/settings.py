"""What an operator decided for all machines of a host."""

from dataclasses import dataclass, field
from pathlib import Path

from vmlib.cores.service import CoreSettings
from vmlib.paths import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What the operator decided for all machines."""

    layout: Layout
    vm_uids: range | None = None
    vm_user: str = ""
    image_max_size_bytes: int = 2 << 40
    hooks: tuple[str, ...] = ()  # of vmlib.hooks, each NAME or NAME:ARGUMENT; for every machine, in this order
    host_root: Path = Path("/")  # below it lie the sys and dev in which devices for guests are looked for
    cores: CoreSettings = field(default_factory=CoreSettings)
