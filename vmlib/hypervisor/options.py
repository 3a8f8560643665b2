"""Words of a VMM's command line from untrusted values: the one place that escapes."""

import json
from collections.abc import Mapping

from vmlib.errors import SpecError
from vmlib.resources import PciDevice
from vmlib.vfio import PCI_ADDRESS

_PLACEHOLDER = "{fd:"

# A device reads and writes RAM by addresses that stand for good once it is there.
BALLOON_AND_DEVICE = "balloon = true: the memory of a machine with vfio cannot be given back, expected one of the two"


class Inherited(str):
    """A value that holds a placeholder on purpose: the launcher puts the number of a descriptor there."""

    __slots__ = ()


def inherited(name: str, before: str = "") -> Inherited:
    """The number of the descriptor of that name, after the text `before`."""
    return Inherited(f"{before}{_PLACEHOLDER}{name}}}")


def plain(value: str, *, key: str, max_bytes: int) -> str:
    """A word that stands alone. Raises SpecError for what would not reach the VMM as it is."""
    size = len(value.encode(errors="surrogateescape"))
    if size > max_bytes:
        raise SpecError(f"{key}: {size} bytes long, expected at most {max_bytes}")
    if "\0" in value:
        raise SpecError(f"{key} = {value!r}: holds a NUL byte")
    if _PLACEHOLDER in value and not isinstance(value, Inherited):
        raise SpecError(f"{key} = {value!r}: holds {_PLACEHOLDER!r}, which cannot be passed on")
    return value


def pci_address(device: PciDevice) -> str:
    """Raises SpecError for what could be something else to a VMM."""
    if PCI_ADDRESS.fullmatch(device.address) is None:
        raise SpecError(f"vfio = {device.address[:64]!r}: expected a PCI address, as 0000:65:00.0")
    return device.address


def option(first: str, *pairs: tuple[str, str]) -> str:
    """`first,name=value,…` with the commas in each value doubled, which is how QEMU reads a literal one."""
    words = [f"{name}={plain(value, key=name, max_bytes=1024).replace(',', ',,')}" for name, value in pairs]
    return ",".join([first, *words] if first else words)


def json_option(value: Mapping[str, object]) -> str:
    """An option as a JSON object, where `null` can be said and nothing needs escaping."""
    return json.dumps(value, separators=(",", ":"))
