"""What is on disk about a machine, for whoever comes after the process that started it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from vmlib.cores.words import Placement
from vmlib.files import each, parse_json, read_own, write_atomic
from vmlib.paths import Layout, MachinePaths

VERSION = 1

_Record = TypeVar("_Record", "Mark", "RunMark", "MachineRecord", "ExitRecord")
_PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "bool": bool}


class DamagedError(Exception):
    """A file of ours that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Whose a machine's directory is, and how long it is wanted. Written before anything else is made."""

    name: str
    owner: str
    alive_while: str  # a directory; "" = nobody says when the machine is no longer wanted

    def save(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMark:
    """Whose a run directory is. Means something only as long as neither journal nor record names it."""

    id: str  # of the start
    name: str
    owner: str
    data_dir: str
    data_identity: str = ""  # of that directory, see `files.directory_identity`; "" = of a version that did not note it

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
        known = {field.name for field in fields(cls)}
        found = {name: value for name, value in data.items() if name in known}
        return cls(**{**found, "addresses": tuple(data.get("addresses", ()))})


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
    hugepages: bool = False  # all of its RAM is of them
    renews: bool = False  # its VMM makes all threads anew at each reboot of the guest
    nics: tuple[NicRecord, ...] = ()
    vfio: tuple[str, ...] = ()  # PCI addresses of devices that its guest has
    alive_while: str = ""
    agent: bool = False  # its guest may have our agent

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
    """None when there is none, or when it is damaged."""
    try:
        return _read_mark(path)
    except DamagedError:
        return None


def load_run_mark(path: Path) -> RunMark | None:
    """None when there is none, or when it is damaged."""
    try:
        data = _load(path)
        return None if data is None else _made(RunMark, data)
    except DamagedError:
        return None


def load_machine(path: Path) -> MachineRecord | None:
    """None when there is none, or when it cannot be understood: the machine is then found by other marks."""
    try:
        return _read_machine(path)
    except DamagedError:
        return None


def load_exit(path: Path, machine_id: str) -> ExitRecord | None:
    """The end of that very start; None while there is none."""
    try:
        record = _read_exit(path)
    except DamagedError:
        return None
    return record if record is not None and record.id == machine_id else None


def damaged(paths: MachinePaths) -> Iterator[tuple[Path, str]]:
    """Records in a machine's directory that cannot be used, and why. One of a later version is not damaged."""
    for path, read in ((paths.mark, _read_mark), (paths.record, _read_machine), (paths.exit_record, _read_exit)):
        try:
            read(path)
        except DamagedError as exc:
            yield path, str(exc)


def ownerless(layout: Layout) -> Iterator[Path]:
    """Directories of machines that nobody removes, because neither mark nor record can say whose they are."""
    for path in each(layout.machines, "mark.json"):
        paths = MachinePaths(path.parent)
        if load_mark(path) is not None or load_machine(paths.record) is not None:
            continue
        if any(found in (paths.mark, paths.record) for found, _ in damaged(paths)):
            yield path.parent


def _read_mark(path: Path) -> Mark | None:
    data = _load(path)
    return None if data is None else _made(Mark, data)


def _read_exit(path: Path) -> ExitRecord | None:
    data = _load(path)
    return None if data is None else _made(ExitRecord, data)


def _read_machine(path: Path) -> MachineRecord | None:
    data = _load(path)
    if data is None:
        return None
    version = data.get("version")
    if not isinstance(version, int):
        raise DamagedError(f"version = {version!r}, expected {VERSION}")
    if version != VERSION:
        return None
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


def _made(kind: type[_Record], data: dict[str, Any]) -> _Record:
    """Passes over what a later version may have added. Raises DamagedError."""
    known = {field.name: field for field in fields(kind)}
    for name, field in known.items():
        expected = _PLAIN.get(str(field.type))
        if name in data and expected is not None and not isinstance(data[name], expected):
            raise DamagedError(f"{name} = {data[name]!r}, expected {field.type}")
    try:
        return kind(**{name: value for name, value in data.items() if name in known})
    except TypeError as exc:
        raise DamagedError(str(exc)) from exc


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = parse_json(read_own(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as exc:
        raise DamagedError(str(exc)) from exc
    if not isinstance(data, dict):
        raise DamagedError(f"a {type(data).__name__}, expected an object")
    return data
