"""What is on disk about a machine, for whoever comes after the process that started it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vmlib.cores.words import Placement
from vmlib.files import write_atomic

VERSION = 1

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Whose a machine's directory is, and how long it is wanted. Written before anything else is made."""

    name: str
    owner: str
    alive_while: str  # a directory; "" = nobody says when the machine is no longer wanted

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class NicRecord:
    """One network interface of a machine, as it was made."""

    network: str
    mac: str
    addresses: tuple[str, ...] = ()  # known at the start, with the length of the prefix
    link: str = ""  # the name of the host's link; "" = the VMM or a helper is the router
    ifindex: int = 0
    router: str = ""  # of a user network: "passt", or "qemu" for QEMU itself

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "NicRecord":
        return cls(**{**data, "addresses": tuple(data.get("addresses", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """One start of a machine. Written before the machine is committed."""

    id: str
    name: str
    owner: str
    boot_id: str
    started_at: float  # seconds since the epoch
    run_dir: str  # of this start
    hypervisor: str
    reason: str
    vcpus: int
    memory_mib: int
    uid: int
    vmm_pid: int
    vmm_start_time: int
    placement: Placement | None = None  # what it got at its start, should the ledger be lost; None: nobody knows
    renews: bool = False  # its VMM makes all threads anew at each reboot of the guest
    nics: tuple[NicRecord, ...] = ()
    vfio: tuple[str, ...] = ()  # PCI addresses of devices that its guest has
    alive_while: str = ""

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps({"version": VERSION, **asdict(self)}).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How one start of a machine ended."""

    id: str
    at: float  # seconds since the epoch
    exit_code: int
    signal: int = 0
    message: str = ""
    oom_killed: bool = False

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)).encode())

    @classmethod
    def from_message(cls, data: dict[str, Any]) -> "ExitRecord":
        """From what a keeper says."""
        return cls(**data)


def load_mark(path: Path) -> Mark | None:
    return _made(Mark, _load(path))


def load_machine(path: Path) -> MachineRecord | None:
    """None when there is none, or when it cannot be understood: the machine is then found by other marks."""
    data = _load(path)
    if data is None or data.pop("version", None) != VERSION:
        return None
    data.pop("addresses", None)  # of a version without links, which left it empty
    try:
        data["nics"] = tuple(NicRecord.from_json(nic) for nic in data.get("nics", ()))
    except (AttributeError, TypeError):
        data["nics"] = ()
    vfio = data.get("vfio")
    data["vfio"] = tuple(map(str, vfio)) if isinstance(vfio, list) else ()
    try:
        data["placement"] = Placement.from_json(data["placement"])
    except (KeyError, TypeError, ValueError):  # of a version that knew no cores
        data["placement"] = None
    return _made(MachineRecord, data)


def load_exit(path: Path, machine_id: str) -> ExitRecord | None:
    """The end of that very start; None while there is none."""
    data = _load(path)
    if data is None or data.get("id") != machine_id:
        return None
    return _made(ExitRecord, data)


def _made(kind: type[_Record], data: dict[str, Any] | None) -> _Record | None:
    """One damaged or foreign record must not hide all the others."""
    try:
        return None if data is None else kind(**data)
    except TypeError:
        return None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data if isinstance(data, dict) else None
