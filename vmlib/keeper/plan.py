"""What a keeper is told to do, as plain JSON: the words between the process that starts a machine and its keeper."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage:
    """What a process sees of the host beside the system's programs and libraries: `vmlib/cage.py` makes it.

    Paths are those of the host, and the same in the cage.
    """

    shows: list[str] = field(default_factory=list)  # directories and files, to be read
    nodes: list[str] = field(default_factory=list)  # devices, where the host has them
    hides: list[str] = field(default_factory=list)  # directories that are empty, should they lie in one that is shown
    own_network: bool = True  # a network of its own in which there is nothing
    terminals: bool = False  # it makes ptys, whose names then mean something to nobody else


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperPlan:
    """A process beside the VMM (virtiofsd, swtpm, passt), which the keeper starts before it and ends after it.

        It inherits a listening socket of its own as `{fd:listener}`; the VMM inherits one that is connected to it as
    `{fd:NAME}`, or connects by itself, as Cloud Hypervisor does. With `calls` it is the other way round: the VMM
    listens, and each start of the helper inherits a new connection as `{fd:vmm}`. All that a later keeper needs to
    start it again stands here: paths, and no descriptors.
    """

    name: str  # "fs0": of its files in the run directory, too
    what: str  # for people: "virtiofsd of share data"
    argv: list[str]
    loss: str  # what its end means for the guest, in a sentence
    directories: dict[str, str] = field(default_factory=dict)  # opened at each start, passed on as `{fd:NAME}`
    # This one of them is mounted at `bind_at`, where nobody but the helper sees it; its devices cannot be opened there.
    bind: str = ""
    bind_at: str = ""
    readonly: bool = False
    uid: int = 0
    gid: int = 0
    capabilities: list[int] = field(default_factory=list)  # of root; all others are dropped for good
    cgroups: list[str] = field(default_factory=list)
    calls: str = ""  # the VMM's listener to which it is connected, by file name in the run directory
    tells_ready: bool = False  # it writes to its standard output once it serves, and is waited for
    netns: str = ""  # the network namespace it runs in; "" = ours
    cage: Cage | None = None  # None: it sees all that its user may, or shuts itself in
    filtered: bool = False  # by vmlib/syscall_filter.py; others have a filter of their own, and need more
    limits: dict[str, int] = field(default_factory=dict)  # of resources, by the names of RLIMIT_
    seat: str = ""  # a threaded cgroup below one of these, in which it belongs as soon as there is one


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
    netns: str = ""  # the network namespace that the VMM runs in; "" = ours
    helpers: list[HelperPlan] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)
    keeper_cgroups: list[str] = field(default_factory=list)
    cpus: list[int] = field(default_factory=list)  # of the VMM's first thread, and so of all; [] = all of its cgroup
    memory_lock_bytes: int = 0  # how much memory the VMM may lock; 0 = as much as the keeper
    cage: Cage | None = None  # None: it sees all that its user may
    routes: bool = False  # it opens connections, for its guest
    limits: dict[str, int] = field(default_factory=dict)  # of resources, by the names of RLIMIT_
    memory_group: str = ""  # the cgroup whose limit holds the VMM's memory; "" = there is none
    dialect: str = "qmp"  # in which the VMM speaks: or "cloud-hypervisor"
    monitor: str = "events"  # of QMP: the listener on which it tells its events
    channel: str = "channel"  # of QMP: the listener of the guest channel
    # Of Cloud Hypervisor: how long a reboot of the guest may take before it is one that hangs for good.
    reboot_timeout_s: float = 10.0
    on_reboot: str = "restart"
    on_panic: str = "exit"

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Passes over what a later version may have added. Raises ValueError on what is no plan."""
        try:
            values = _known(cls, json.loads(data))
            values["helpers"] = [HelperPlan(**_of_cage(_known(HelperPlan, one))) for one in values.get("helpers", [])]
            return cls(**_of_cage(values))
        except (AttributeError, TypeError) as exc:
            raise ValueError(f"no keeper plan: {exc}") from exc

    @property
    def run(self) -> Path:
        return Path(self.run_dir)


def reboot_timeout_s(memory_mib: int, *, hugepages: bool, helpers: bool) -> float:
    """Long enough for a healthy VMM, which gives back the guest's memory and takes it again; a hang costs as much."""
    seconds = 10.0 + memory_mib / 4096
    if hugepages:
        seconds += memory_mib / 512  # zeroed one by one
    return seconds + (60.0 if helpers else 0.0)  # it waits a minute for a virtiofsd


def _of_cage(values: dict[str, Any]) -> dict[str, Any]:
    """Plans of earlier versions have none."""
    cage = values.get("cage")
    return values if cage is None else {**values, "cage": Cage(**_known(Cage, cage))}


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {key: value for key, value in values.items() if key in names}
