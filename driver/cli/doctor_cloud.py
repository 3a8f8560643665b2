"""What `chv doctor` says of Cloud Hypervisor where it can run machines: its version, its firmware, Landlock."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Line = tuple[str, Literal["ok", "warning", "problem"], str, str]  # check, verdict, text, cure

_RECOMMENDED = (53, 0)
_FIRMWARE = "cloud-hypervisor firmware"
_PAGE = "docs/cloud-hypervisor.md says where one comes from"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudFacts:
    """What else is known of a host whose Cloud Hypervisor can run machines."""

    version: str
    qemu: bool  # may run what Cloud Hypervisor cannot
    landlock: bool


def cloud_lines(facts: CloudFacts, firmware: Path | None) -> list[Line]:
    """`firmware` is what the operator names; looks at that file only."""
    return [*_version(facts.version), firmware_line(firmware, qemu=facts.qemu), _landlock(usable=facts.landlock)]


def _version(version: str) -> list[Line]:
    if tuple(map(int, version.split("."))) >= _RECOMMENDED:
        return []
    text = f"{version} works, but may not tell a guest that powered itself off from a VMM that was ended"
    return [("cloud-hypervisor version", "warning", text, "install 53.0 or later")]


def firmware_line(path: Path | None, *, qemu: bool) -> Line:
    """What machines need that boot from a disk."""
    if path is None:
        then = "QEMU runs what boots from a disk" if qemu else "no machine can boot from a disk"
        return _FIRMWARE, "warning", f"none: {then}; that image needs firmware which no distribution ships", _PAGE
    cure = f"put a CLOUDHV.fd there: {_PAGE}"
    try:
        with path.open("rb") as file:
            head, mode = file.read(4), path.stat().st_mode
    except OSError as exc:
        return _FIRMWARE, "warning", f"{path}: {(exc.strerror or str(exc)).lower()}", cure
    if head != b"\x7fELF":
        return _FIRMWARE, "problem", f"{path}: not an ELF file, no machine boots by it", cure
    if not mode & 0o004:
        return _FIRMWARE, "problem", f"{path}: not readable for everybody", f"chmod a+r {path}"
    return _FIRMWARE, "ok", str(path), ""


def _landlock(*, usable: bool) -> Line:
    if usable:
        return "landlock", "ok", "keeps each cloud-hypervisor from every file but its machine's", ""
    lack = "the kernel has none: a cloud-hypervisor is kept from files by its user only"
    return "landlock", "warning", lack, "Linux 6.2 or later with landlock among the names of lsm="
