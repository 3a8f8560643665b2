"""The flash chips of a machine's firmware: code, which is only read, and a variable store of the machine's own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from vmlib.disk.copy import clone_or_copy, made_beside, told
from vmlib.disk.image import in_words
from vmlib.errors import HostError, SpecError, VmError
from vmlib.files import open_ref, parse_json, read_own, write_atomic
from vmlib.resources import Firmware, FirmwareFiles, OpenFile
from vmlib.spec import FileRef

_SECTOR_BYTES = 4096
_ELF_MAGIC = b"\x7fELF"
_MAX_FLASH_BYTES = 8 << 20  # what QEMU maps below 4 GiB, code and variables together


def prepare_uefi(store: Path, find: Callable[[], Firmware]) -> FirmwareFiles:
    """Open firmware and the variable store at `store`, which is made from the firmware's template when there is none.

    A store that is there is kept, and goes on with the firmware that it was made for, whatever `find` would say by
    now; once that is gone from the host, with what `find` says if its store is as large. The caller owns the
    descriptors. Raises HostError, NoCapacityError.
    """
    with told(f"firmware variables {store}"):
        firmware = _of_the_store(store, find) if store.exists() else None
        if firmware is None:
            firmware = find()
            # The note first: a store without it could not be told from one of another firmware.
            write_atomic(_note_of(store), json.dumps(_as_note(firmware)).encode())
            if firmware.variables is None:
                raise HostError(f"firmware {firmware.code}: has no template of its variables")
            _make_store(store, firmware.variables)
    with told(f"firmware {firmware.code}"):
        code = OpenFile(fd=os.open(firmware.code, os.O_RDONLY | os.O_CLOEXEC), path=firmware.code)
    try:
        with told(f"firmware variables {store}"):
            variables = OpenFile(fd=os.open(store, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), path=store)
    except BaseException:
        os.close(code.fd)
        raise
    files = FirmwareFiles(code=code, variables=variables, smm=firmware.smm)
    try:
        _check(HostError, f"firmware {firmware.code}", code.fd, variables.fd)
    except BaseException:
        for file in (code, variables):
            os.close(file.fd)
        raise
    return files


def open_firmware(ref: FileRef) -> FirmwareFiles:
    """Open the firmware that a job brought. It gets no variable store. Raises SpecError."""
    fd = open_ref(ref, key="firmware", max_bytes=_MAX_FLASH_BYTES)
    try:
        _check(SpecError, f"firmware = {str(ref)!r}", fd)
    except BaseException:
        os.close(fd)
        raise
    return FirmwareFiles(code=OpenFile(fd=fd, path=ref.root / ref.relative))


def open_payload(code: Path) -> FirmwareFiles:
    """Open firmware that its VMM loads like a kernel. Raises HostError."""
    with told(f"firmware {code}"):
        return FirmwareFiles(code=OpenFile(fd=os.open(code, os.O_RDONLY | os.O_CLOEXEC), path=code))


def open_own_payload(ref: FileRef) -> FirmwareFiles:
    """The same, that a job brought. Raises SpecError."""
    fd = open_ref(ref, key="firmware", max_bytes=_MAX_FLASH_BYTES)
    if os.pread(fd, len(_ELF_MAGIC), 0) != _ELF_MAGIC:
        os.close(fd)
        raise SpecError(f"firmware = {str(ref)!r}: not an ELF file, expected a CLOUDHV.fd or hypervisor-fw")
    return FirmwareFiles(code=OpenFile(fd=fd, path=ref.root / ref.relative))


def _make_store(store: Path, template: Path) -> None:
    template_fd = os.open(template, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with made_beside(store) as (fd, _):
            clone_or_copy(template_fd, fd)
    finally:
        os.close(template_fd)


def _of_the_store(store: Path, find: Callable[[], Firmware]) -> Firmware:
    """The firmware that goes on with a store that is there."""
    noted = _read_note(store)
    if noted is not None and noted.code.is_file():
        return noted
    firmware = find()
    if firmware.variables is None:
        raise HostError(f"firmware {firmware.code}: has no template of its variables")
    have, expected = store.stat().st_size, firmware.variables.stat().st_size
    if have != expected:
        raise HostError(
            f"firmware {'that is no longer here' if noted is None else noted.code}: this machine's variables are of it"
            f" ({have} bytes), and do not fit {firmware.code} ({expected} bytes)",
            hint="install that firmware again",
        )
    write_atomic(_note_of(store), json.dumps(_as_note(firmware)).encode())
    return firmware


def _note_of(store: Path) -> Path:
    return store.with_suffix(".json")


def _as_note(firmware: Firmware) -> dict[str, object]:
    return {"code": str(firmware.code), "variables": str(firmware.variables), "smm": firmware.smm}


def _read_note(store: Path) -> Firmware | None:
    try:
        match parse_json(read_own(_note_of(store))):
            case {"code": str(code), "variables": str(variables), "smm": bool(smm)}:
                return Firmware(code=Path(code), variables=Path(variables), smm=smm)
    except (FileNotFoundError, ValueError):
        pass
    return None


def _check(error: type[VmError], what: str, *fds: int) -> None:
    """What QEMU takes for flash, said before it says so in its own words."""
    sizes = [os.fstat(fd).st_size for fd in fds]
    if any(size == 0 or size % _SECTOR_BYTES for size in sizes) or sum(sizes) > _MAX_FLASH_BYTES:
        raise error(
            f"{what}: {' and '.join(map(str, sizes))} bytes, expected multiples of {_SECTOR_BYTES} bytes and at most"
            f" {in_words(_MAX_FLASH_BYTES)}"
        )
