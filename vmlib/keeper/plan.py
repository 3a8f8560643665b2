"""What a keeper is told to do, as plain JSON: the words between the process that starts a machine and its keeper."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperPlan:
    """Everything about one start of a machine that its keeper, or the next keeper, must know.

    `files` maps names to descriptors that the keeper has inherited; they mean nothing to a later keeper.
    """

    id: str
    run_dir: str
    exit_record: str
    stdout: str
    stderr: str
    argv: list[str]
    files: dict[str, int] = field(default_factory=dict)
    listeners: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    keeper_cgroups: list[str] = field(default_factory=list)
    memory_group: str = ""  # the cgroup whose limit holds the VMM's memory; "" = there is none
    monitor: str = "events"
    channel: str = "channel"
    on_reboot: str = "restart"
    on_panic: str = "exit"

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> "KeeperPlan":
        """Passes over what a later version may have added. Raises ValueError on what is no plan."""
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: value for key, value in json.loads(data).items() if key in known})
        except (AttributeError, TypeError) as exc:
            raise ValueError(f"no keeper plan: {exc}") from exc

    @property
    def run(self) -> Path:
        return Path(self.run_dir)
