"""Devices of the host's that a guest takes over: whether one is ready for that, and giving its node to the VMM's user.

The kernel hands out whole IOMMU groups, because the devices of one can reach each other past the IOMMU.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.files import parse_json
from vmlib.resources import PciDevice

PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")

_DRIVER = "vfio-pci"
_HARMLESS = (_DRIVER, "pci-stub")  # drivers that keep their hands off a device
_BRIDGE_CLASS = "0x06"
_PCI_BRIDGE_CLASS = "0x0604"


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a device cannot be taken over now, and what its operator can do about it."""

    found: str
    cure: str


def look(address: str, root: Path = Path("/")) -> PciDevice | Lack:
    """The device as a VMM needs it, or what it lacks. Reads sysfs and looks at nodes; opens none."""
    device = _sysfs(root, address)
    if not device.exists():
        return Lack("this host has no such PCI device", "lspci -D lists those that it has")
    if (driver := _link(device / "driver")) != _DRIVER:
        found = f"is bound to the driver {driver}" if driver else "is bound to no driver"
        return Lack(f"{found}, expected {_DRIVER}", bind_words(address))
    group = _link(device / "iommu_group")
    if not group:
        return Lack("is in no IOMMU group", "switch the IOMMU on, in the firmware and with intel_iommu=on on Intel")
    for other in sorted(path.name for path in (device / "iommu_group" / "devices").iterdir()):
        if (driver := _link(_sysfs(root, other) / "driver")) in _HARMLESS or _harmless_bridge(root, other, driver):
            continue
        found = f"is bound to the driver {driver}" if driver else "is bound to no driver"
        return Lack(
            f"its IOMMU group {group} has {other} as well, which {found}, expected {_DRIVER}", bind_words(other)
        )
    if not (root / node(group).relative_to("/")).exists():
        return Lack(f"{node(group)}: no such device node", f"modprobe {_DRIVER}, and look at what udev says")
    return PciDevice(address=address, group=group)


def bind_words(address: str) -> str:
    """What gives a device to vfio-pci."""
    here = f"/sys/bus/pci/devices/{address}"
    return (
        f"driverctl set-override {address} {_DRIVER}, or: echo {_DRIVER} > {here}/driver_override;"
        f" echo {address} > {here}/driver/unbind; echo {address} > /sys/bus/pci/drivers_probe"
    )


def node(group: str) -> Path:
    return Path("/dev/vfio") / group


def devices(addresses: Iterable[str], root: Path = Path("/")) -> tuple[PciDevice, ...]:
    """All of a machine's, each ready. Raises SpecError for what is no address, HostError for what a device lacks."""
    found = []
    for address in addresses:
        if PCI_ADDRESS.fullmatch(address) is None:
            raise SpecError(f"vfio = {address[:64]!r}: expected a PCI address, as 0000:65:00.0")
        match look(address, root):
            case Lack(found=why, cure=cure):
                raise HostError(f"vfio = {address!r}: {why}", hint=cure)
            case PciDevice() as device:
                found.append(device)
    return tuple(found)


# -- who has which group ---------------------------------------------------------------------------------------------


def dump_claim(wanted: Iterable[PciDevice]) -> bytes:
    return json.dumps(sorted({device.group for device in wanted})).encode()


def load_claims(paths: Iterable[Path]) -> dict[str, str]:
    """The machine that holds each group, by its directory; from files of `dump_claim`."""
    held: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):  # gone, or cut short
            groups = parse_json(path.read_bytes())
            if isinstance(groups, list):
                held |= dict.fromkeys(map(str, groups), f"{path.parent.parent.name}/{path.parent.name}")
    return held


def expect_free(wanted: Iterable[PciDevice], held: Mapping[str, str]) -> None:
    """Raises NoCapacityError when another machine has one of the groups."""
    for device in wanted:
        if device.group in held:
            raise NoCapacityError(
                f"vfio = {device.address!r}: its IOMMU group {device.group} is held by machine {held[device.group]}"
            )


# -- the nodes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A node that is to be the VMM's, and whose it was."""

    path: Path
    uid: int
    was: int


def handovers(wanted: Iterable[PciDevice], uid: int, root: Path = Path("/")) -> Iterator[Handover]:
    """The nodes that a VMM of that user needs and has not got. Each is tried first, with our own rights.

    Raises NoCapacityError for one that somebody else has open, HostError for one that cannot be used at all.
    """
    container = root / "dev/vfio/vfio"
    _try(container)
    if uid != 0 and container.stat().st_mode & 0o006 != 0o006:
        raise HostError(f"{container}: not open to every user, expected mode 0666", hint=f"chmod 0666 {container}")
    for group in sorted({device.group for device in wanted}):
        path = root / node(group).relative_to("/")
        _try(path)
        status = path.stat()
        if uid != 0 and status.st_mode & 0o600 != 0o600:
            raise HostError(f"{path}: its owner may not read and write it", hint=f"chmod 0600 {path}")
        if uid not in (0, status.st_uid):
            yield Handover(path=path, uid=uid, was=status.st_uid)


def hand_over(one: Handover) -> None:
    """Make it the VMM's, and look whether it is."""
    os.chown(one.path, one.uid, -1)
    if (found := one.path.stat().st_uid) != one.uid:
        raise HostError(f"{one.path}: belongs to uid {found}, expected {one.uid}")


def give_back(path: Path, *, uid: int, was: int) -> None:
    """Undo `hand_over`; nothing when the node is gone, or was given to somebody else since."""
    if path.parent.parts[-2:] != ("dev", "vfio") or not path.name.isdecimal():
        raise HostError(f"{path} is no node of an IOMMU group")
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_uid == uid:
            os.chown(path, was, -1)


def _try(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise NoCapacityError(f"{path}: another program has it open, expected a free IOMMU group") from exc
        raise HostError(f"{path}: {(exc.strerror or str(exc)).lower()}", hint=f"modprobe {_DRIVER}") from exc


def _sysfs(root: Path, address: str) -> Path:
    return root / "sys/bus/pci/devices" / address


def _harmless_bridge(root: Path, address: str, driver: str) -> bool:
    """A bridge to other buses moves nothing by itself; what is called a bridge otherwise may, if a driver has it."""
    try:
        class_ = (_sysfs(root, address) / "class").read_text()
    except OSError:
        return False
    return class_.startswith(_PCI_BRIDGE_CLASS) or (class_.startswith(_BRIDGE_CLASS) and not driver)


def _link(path: Path) -> str:
    """The last name of what a link leads to; "" when there is none."""
    try:
        return os.readlink(path).rstrip("/").rpartition("/")[2]
    except OSError:
        return ""
