"""Finds UEFI firmware for QEMU by the descriptors (QEMU's docs/interop/firmware.json) that firmware packages install.

Reading a descriptor and choosing among them is pure; a thin reader knows the directories.
"""

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vmlib.errors import HostError
from vmlib.resources import Firmware

# The first one wins where both have a file of the same name.
DIRECTORIES = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))

_ARCHITECTURE = "x86_64"
_MAX_DESCRIPTOR_BYTES = 1 << 20
_UNWANTED = ("enrolled-keys", "requires-smm")  # the first is worse: systems that nobody signed do not boot


class _UnfitError(ValueError):
    """Why a descriptor's firmware is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What one file says about a firmware that we can use."""

    name: str  # of the file
    firmware: Firmware
    features: frozenset[str]

    @property
    def rank(self) -> tuple[bool | str, ...]:
        """Smaller is better: what asks less of a guest, then the order that the packagers gave by file names."""
        return (*(feature in self.features for feature in _UNWANTED), self.name)


def find_firmware(machine: str, *, root: Path = Path("/")) -> Firmware:
    """The best UEFI firmware here for that machine type, with a template of its variable store. Raises HostError."""
    usable = []
    complaints = []
    for name, path in descriptor_files(root).items():
        try:
            with path.open("rb") as file:
                found = read_descriptor(name, file.read(_MAX_DESCRIPTOR_BYTES), machine)
            if found is not None:
                usable.append(_with_root(found, root))
        except (OSError, _UnfitError) as exc:
            words = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
            complaints.append(f"{name}: {words}")
    if usable:
        return min(usable, key=lambda one: one.rank).firmware
    looked = " and ".join(map(str, DIRECTORIES))
    reasons = f" ({'; '.join(complaints)})" if complaints else ""
    raise HostError(
        f"firmware = 'uefi': no descriptor in {looked} names UEFI firmware for {machine}{reasons}",
        hint="install OVMF, which is the package ovmf on Debian",
    )


def descriptor_files(root: Path = Path("/")) -> dict[str, Path]:
    """The descriptors that count, by file name, in their order. An empty file hides those of its name."""
    found: dict[str, Path] = {}
    for directory in reversed(DIRECTORIES):
        found.update({path.name: path for path in (root / directory.relative_to("/")).glob("*.json")})
    return {name: found[name] for name in sorted(found)}


def read_descriptor(name: str, data: bytes, machine: str) -> Descriptor | None:
    """What a descriptor says; None for firmware of another kind and for an empty file. Raises ValueError. Pure."""
    if not data.strip():
        return None
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _UnfitError("not JSON") from exc
    if not isinstance(said, dict):
        raise _UnfitError("not a descriptor")
    if "uefi" not in _list(said, "interface-types") or not _fits(said, machine):
        return None
    mapping = said.get("mapping")
    # Firmware in one piece with its variables, or without any, is no store that a machine could have for itself.
    if not isinstance(mapping, dict) or mapping.get("device") != "flash" or mapping.get("mode", "split") != "split":
        return None
    features = frozenset(word for word in _list(said, "features") if isinstance(word, str))
    firmware = Firmware(
        code=_raw_file(mapping, "executable"),
        variables=_raw_file(mapping, "nvram-template"),
        smm="requires-smm" in features,
        enrolled="enrolled-keys" in features,
    )
    return Descriptor(name=name, firmware=firmware, features=features)


def _list(said: Mapping[str, object], key: str) -> list[object]:
    value = said.get(key)
    return value if isinstance(value, list) else []


def _fits(said: Mapping[str, object], machine: str) -> bool:
    for target in _list(said, "targets"):
        if isinstance(target, dict) and target.get("architecture") == _ARCHITECTURE:
            patterns = (word for word in _list(target, "machines") if isinstance(word, str))
            if any(fnmatch.fnmatchcase(machine, pattern) for pattern in patterns):
                return True
    return False


def _raw_file(mapping: Mapping[str, object], key: str) -> Path:
    match mapping.get(key):
        case {"filename": str(name), "format": "raw"} if name.startswith("/"):
            return Path(name)
        case {"format": str(form)} if form != "raw":
            raise _UnfitError(f"{key} is {form}, expected raw")
    raise _UnfitError(f"{key} names no file")


def _with_root(found: Descriptor, root: Path) -> Descriptor:
    """The same with its files beneath `root`. Raises ValueError when one is not there."""
    one = found.firmware
    assert one.variables is not None
    code, variables = (root / path.relative_to("/") for path in (one.code, one.variables))
    for path in (code, variables):
        if not path.is_file():
            raise _UnfitError(f"{path} is not there")
    return replace(found, firmware=replace(one, code=code, variables=variables))
