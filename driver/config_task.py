"""A task's config block, decoded and checked: all complaints at once, each with key, value and what was expected."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from driver import config_network
from driver.config_network import InterfaceConfig
from driver.config_values import pci_addresses, size_bytes, with_fake
from driver.decode import Complaints, decode, one_of
from driver.keys import TASK
from driver.schema import PATH_MAX_BYTES
from vmlib.disk.unpack import packed_name
from vmlib.errors import SpecError
from vmlib.spec import DiskFormat, FirmwareKind, GuestOs, NumaPolicy, OnPanic, OnReboot, Packing, RootMode

_MAX_VCPUS = 255
_DISK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_FORMAT_OF_SUFFIX: dict[str, DiskFormat] = {".raw": "raw", ".qcow2": "qcow2"}
SHARES = ("local", "secrets", "alloc")
AGENT_WAIT_S = 600.0  # for wait_for = "agent"; docs/guest.md says so


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskConfig:
    """One disk block."""

    name: str
    format: DiskFormat
    source: str = ""
    packed: Packing = ""
    size_bytes: int | None = None
    readonly: bool = False
    persistent: bool = False
    serial: str = ""
    rate_bytes: int = 0  # a second


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """The task's config block. Paths are as the job wrote them; `driver.translate` knows what they lead to."""

    image: str = ""
    image_format: DiskFormat = "raw"  # means nothing without image
    image_packed: Packing = ""
    root_mode: RootMode = "overlay"
    root_size_bytes: int | None = None
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    firmware: str = ""  # a FirmwareKind, else a path
    guest_os: GuestOs = "linux"
    vcpus: int | None = None
    placement: Literal["exclusive", "shared"] = "exclusive"
    threads: Literal["hide", "expose"] = "hide"
    numa: NumaPolicy = "prefer"
    emulator: Literal["shared", "isolate"] = "shared"
    hugepages: bool = False
    hostname: str = ""
    ssh_authorized_keys: tuple[str, ...] = ()
    user_data: str = field(default="", repr=False)
    network_config: str = field(default="", repr=False)
    disks: tuple[DiskConfig, ...] = ()
    network_interfaces: tuple[InterfaceConfig, ...] = ()
    on_reboot: OnReboot = "restart"
    on_panic: OnPanic = "exit"
    agent: bool = True
    wait_for: Literal["", "agent"] = ""
    share: tuple[str, ...] = ()  # words of SHARES
    tpm: bool = False
    balloon: bool = False
    vfio: tuple[str, ...] = ()  # PCI addresses
    hypervisor: str = ""


def decode_task_config(msgpack_config: bytes, complaints: Complaints | None = None) -> TaskConfig:
    """The job's block. Raises SpecError with every complaint, one a line; with `complaints` given they go there.

    What is returned beside complaints is good for finding further ones, and for nothing else.
    """
    alone = complaints is None
    complaints = Complaints() if complaints is None else complaints
    values = decode(msgpack_config, TASK, complaints, with_hidden=with_fake())
    _check_boot(complaints, values)
    _check_user_data(complaints, values["user_data"])
    _check_hostname(complaints, values["hostname"])
    _check_ssh_keys(complaints, values["ssh_authorized_keys"])
    config = TaskConfig(
        image=values["image"],
        image_format=_image_format(complaints, values["image"], values["image_format"]),
        image_packed=packed_name(values["image"])[1] or "",
        root_mode=values["root_mode"],
        root_size_bytes=size_bytes(complaints, "root_size", values["root_size"]) if values["root_size"] else None,
        kernel=values["kernel"],
        initrd=values["initrd"],
        cmdline=values["cmdline"],
        firmware=values["firmware"],
        guest_os=values["guest_os"],
        vcpus=_vcpus(complaints, values["vcpus"]),
        placement=values["placement"],
        threads=values["threads"],
        numa=values["numa"],
        emulator=values["emulator"],
        hugepages=values["hugepages"],
        hostname=values["hostname"],
        ssh_authorized_keys=values["ssh_authorized_keys"],
        user_data=values["user_data"],
        network_config=values["network_config"],
        disks=_disks(complaints, values["disk"]),
        network_interfaces=config_network.interfaces(complaints, values["network_interface"]),
        on_reboot=values["on_reboot"],
        on_panic=values["on_panic"],
        agent=values["agent"],
        wait_for=_wait_for(complaints, values),
        share=_share(complaints, values["share"]),
        tpm=values["tpm"],
        balloon=values["balloon"],
        vfio=_vfio(complaints, values),
        hypervisor=values["hypervisor"],
    )
    if alone:
        complaints.raise_as(SpecError)
    return config


def is_inline(user_data: str) -> bool:
    """True for a text that is the user-data itself and not the path of a file that holds it."""
    return user_data.startswith(("#", "{"))


def _check_boot(complaints: Complaints, values: Mapping[str, Any]) -> None:
    if not values["image"] and not values["kernel"] and not complaints.any_about("image", "kernel"):
        complaints.add("image", "expected image (boots from the disk) or kernel (boots it directly), both are missing")
    if not values["kernel"] and not complaints.any_about("kernel"):
        for key in ("initrd", "cmdline"):
            if values[key]:
                complaints.add(key, "works with kernel only, which is missing", value=values[key])
    if values["kernel"] and values["firmware"]:
        complaints.add(
            "firmware", "a kernel is booted without firmware, expected one of the two", value=values["firmware"]
        )
    elif "/" not in values["firmware"] and values["firmware"] not in get_args(FirmwareKind):
        complaints.add("firmware", "expected bios, uefi or a path with a / in it", value=values["firmware"])
    if values["root_mode"] == "direct" and (kind := packed_name(values["image"])[1]):
        complaints.add(
            "root_mode", f"expected overlay or copy, because a .{kind} file cannot be written to", value="direct"
        )
    if values["guest_os"] == "windows":
        if values["kernel"]:
            complaints.add(
                "kernel",
                'only Linux is booted without firmware; guest_os = "windows" boots from image',
                value=values["kernel"],
            )
        if values["firmware"] == "bios":
            complaints.add("firmware", 'expected uefi or a path with guest_os = "windows"', value="bios")
    if not values["image"] and not complaints.any_about("image"):
        for key, default in (("image_format", ""), ("root_mode", "overlay"), ("root_size", "")):
            if values[key] != default:
                complaints.add(key, "works with image only, which is missing", value=values[key])


def _image_format(complaints: Complaints, image: str, image_format: str) -> DiskFormat:
    if image_format:
        return cast(DiskFormat, image_format)
    by_suffix = _format_of(image)
    if image and by_suffix is None and not complaints.any_about("image", "image_format"):
        complaints.add(
            "image_format", f"expected raw or qcow2, because the name {posixpath.basename(image)!r} does not say"
        )
    return by_suffix or "raw"


def _format_of(name: str) -> DiskFormat | None:
    """What the suffix says, the one before .xz, .zst or .gz."""
    return _FORMAT_OF_SUFFIX.get(posixpath.splitext(packed_name(name)[0])[1].lower())


def _vcpus(complaints: Complaints, count: int | None) -> int | None:
    if count is not None and not 1 <= count <= _MAX_VCPUS:
        complaints.add(
            "vcpus",
            f"expected 1 to {_MAX_VCPUS} (more need interrupt remapping, which machines do not have)",
            value=count,
        )
    return count


def _check_hostname(complaints: Complaints, name: str) -> None:
    if name and not all(_HOST_LABEL.fullmatch(label) for label in name.split(".")):
        complaints.add(
            "hostname", "expected letters, digits and inner -, at most 63 between two dots (RFC 1123)", value=name
        )


def _check_user_data(complaints: Complaints, text: str) -> None:
    """Text that is not inline is a path, and says so when it cannot be one; it may hold secrets and is not shown."""
    if not is_inline(text) and ("\n" in text or len(text.encode()) > PATH_MAX_BYTES):
        complaints.add(
            "user_data", "expected the path of a file, or text that starts with # or {", value=text, secret=True
        )


def _check_ssh_keys(complaints: Complaints, keys: tuple[str, ...]) -> None:
    for index, key in enumerate(keys):
        if len(key.split()) < 2:
            complaints.add(
                f"ssh_authorized_keys[{index}]",
                "expected a line such as: ssh-ed25519 AAAA… name",
                value=key,
                secret=True,
            )


def _disks(complaints: Complaints, blocks: list[dict[str, Any]]) -> tuple[DiskConfig, ...]:
    seen: dict[str, int] = {}
    disks = []
    for index, block in enumerate(blocks):
        path, name, source = f"disk[{index}]", block["name"], block["source"]
        if not _DISK_NAME.fullmatch(name):
            complaints.add(f"{path}.name", "expected a lower case letter, then at most 15 of a-z 0-9 _ -", value=name)
        elif name in seen:
            complaints.add(f"{path}.name", f"the same as disk[{seen[name]}].name", value=name)
        seen.setdefault(name, index)
        _check_disk_keys(complaints, path, block)
        serial = block["serial"] or name
        if not _SERIAL.fullmatch(serial) and not complaints.any_about(f"{path}.name"):
            complaints.add(f"{path}.serial", "expected at most 20 letters, digits, . _ and -", value=serial)
        by_suffix = _format_of(source)
        if source and not block["format"] and by_suffix is None and not complaints.any_about(f"{path}.source"):
            shown = posixpath.basename(source)
            complaints.add(f"{path}.format", f"expected raw or qcow2, because the name {shown!r} does not say")
        disks.append(
            DiskConfig(
                name=name,
                format=cast(DiskFormat, block["format"] or by_suffix or "raw"),
                source=source,
                packed=packed_name(source)[1] or "",
                size_bytes=size_bytes(complaints, f"{path}.size", block["size"]) if block["size"] else None,
                readonly=block["readonly"],
                persistent=block["persistent"],
                serial=serial,
                rate_bytes=config_network.rate_bytes(complaints, f"{path}.rate_limit", block["rate_limit"]),
            )
        )
    return tuple(disks)


def _check_disk_keys(complaints: Complaints, path: str, block: Mapping[str, Any]) -> None:
    """Which keys go together."""
    if not block["source"] and not block["size"] and not complaints.any_about(f"{path}.source", f"{path}.size"):
        complaints.add(path, "expected size (a new disk) or source (a file's content), both are missing")
    if block["persistent"] and block["source"]:
        complaints.add(f"{path}.source", "a persistent disk begins empty, expected size", value=block["source"])
    if not block["readonly"]:
        return
    for key in ("size", "persistent"):
        if block[key]:
            complaints.add(f"{path}.{key}", "does not go with readonly = true", value=block[key])
    if not block["source"] and block["size"]:
        complaints.add(f"{path}.source", "expected a file that the guest reads, with readonly = true")


def _vfio(complaints: Complaints, values: Mapping[str, Any]) -> tuple[str, ...]:
    found = pci_addresses(complaints, "vfio", values["vfio"])
    if found and values["balloon"]:
        complaints.add(
            "balloon", "does not go with vfio, because a device of the host's keeps all memory in its place", value=True
        )
    return found


def _wait_for(complaints: Complaints, values: Mapping[str, Any]) -> Literal["", "agent"]:
    if values["wait_for"] == "agent":
        if not values["agent"]:
            complaints.add("wait_for", "does not go with agent = false, because nobody would come", value="agent")
        elif values["guest_os"] == "windows":
            complaints.add("wait_for", 'the agent is for Linux, not for guest_os = "windows"', value="agent")
    return cast(Literal["", "agent"], values["wait_for"])


def _share(complaints: Complaints, words: tuple[str, ...]) -> tuple[str, ...]:
    for index, word in enumerate(words):
        if word not in SHARES:
            complaints.add(f"share[{index}]", one_of(SHARES), value=word)
        elif word in words[:index]:
            complaints.add(f"share[{index}]", f"the same as share[{words.index(word)}]", value=word)
    return words
