"""What operator and job asked for, as frozen values: decoded, checked as far as that goes without a host or a task."""

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from driver import config_network
from driver.config_network import InterfaceConfig, Network
from driver.decode import Complaints, decode, one_of, path_of_label
from driver.schema import PATH_MAX_BYTES, PLUGIN, TASK
from driver.units import parse_duration, parse_size
from vmlib.cores.cpulist import format_cpus, parse_cpus
from vmlib.disk import nfs_options
from vmlib.disk.unpack import packed_name
from vmlib.errors import HostError, SpecError
from vmlib.hooks import split
from vmlib.spec import DiskFormat, FirmwareKind, GuestOs, NfsExport, NumaPolicy, OnPanic, OnReboot, Packing, RootMode
from vmlib.vfio import PCI_ADDRESS

# A unix socket's path has at most 107 bytes; ours need this many after run_dir: `/m/`, the run's key, the longest name.
_SOCKET_PATH_MAX_BYTES = 107
_SOCKET_TAIL_BYTES = 40
_MAX_VCPUS = 255
_MAX_UID = (1 << 32) - 2  # the one above means "nobody in particular" to the kernel

_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}")
_HOOK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_UID_RANGE = re.compile(r"([0-9]{1,10}) ?- ?([0-9]{1,10})")
_DISK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SERVER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?")
_FORMAT_OF_SUFFIX: dict[str, DiskFormat] = {".raw": "raw", ".qcow2": "qcow2"}
SHARES = ("local", "secrets", "alloc")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresConfig:
    """The cores block. What it says may not fit the node: that is for health text and doctor."""

    dedicated: frozenset[int] = frozenset()
    dedicated_auto: bool = False  # all that Nomad reports as withheld
    housekeeping: frozenset[int] | None = None  # None: what nobody holds
    smt: Literal["core", "thread"] = "core"
    tokens: bool = False
    partition: Literal["", "root", "isolated"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """The plugin block."""

    data_dir: Path
    run_dir: Path
    hypervisor: str  # "auto", or the only one that this node may use
    vm_uids: range | None  # one for each machine
    vm_user: str  # without vm_uids: one for all
    qemu_binary: str
    qemu_accel: Literal["auto", "kvm", "tcg"]
    ch_binary: str
    ch_firmware: Path | None  # a CLOUDHV.fd or hypervisor-fw
    image_max_size_bytes: int
    image_paths: tuple[Path, ...]
    default_network: str
    networks: Mapping[str, Network]
    image_cache_max_bytes: int
    image_cache_max_age_s: float
    orphan_grace_s: float
    gc_dry_run: bool
    cores: CoresConfig = field(default_factory=CoresConfig)
    hooks: tuple[str, ...] = ()  # NAME or NAME:ARGUMENT
    nfs: Mapping[str, NfsExport] = field(default_factory=dict)
    vfio_allow: tuple[str, ...] = ()  # PCI addresses


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
    share: tuple[str, ...] = ()  # words of SHARES
    tpm: bool = False
    balloon: bool = False
    vfio: tuple[str, ...] = ()  # PCI addresses
    hypervisor: str = ""


def decode_plugin_config(msgpack_config: bytes) -> PluginConfig:
    """The operator's block; an empty map gives the defaults. Raises HostError with every complaint, one a line.

    Looks at nothing of the host, so that the same bytes get the same verdict whenever they come.
    """
    complaints = Complaints()
    values = decode(msgpack_config, PLUGIN, complaints, with_hidden=_with_fake())
    networks = config_network.networks(complaints, values["network"])
    config_network.check_default_network(complaints, values["default_network"], networks)
    config = PluginConfig(
        data_dir=_directory(complaints, "data_dir", values["data_dir"]),
        run_dir=_run_dir(complaints, values["run_dir"]),
        hypervisor=values["hypervisor"],
        vm_uids=_uids(complaints, values["vm_uids"]),
        vm_user=_user(complaints, values["vm_user"]),
        qemu_binary=_binary(complaints, "qemu.binary", values["qemu"]["binary"]),
        qemu_accel=values["qemu"]["accel"],
        ch_binary=_binary(complaints, "cloud_hypervisor.binary", values["cloud_hypervisor"]["binary"]),
        ch_firmware=_firmware_file(complaints, values["cloud_hypervisor"]["firmware"]),
        cores=_cores(complaints, values["cores"]),
        image_max_size_bytes=_size(complaints, "image_max_size", values["image_max_size"]),
        image_paths=_image_paths(complaints, values["image_paths"]),
        default_network=values["default_network"],
        networks=networks,
        image_cache_max_bytes=_size_or_none(complaints, "gc.image_cache_max", values["gc"]["image_cache_max"]),
        image_cache_max_age_s=_duration(complaints, "gc.image_cache_max_age", values["gc"]["image_cache_max_age"]),
        hooks=_hooks(complaints, values["hooks"]),
        nfs=_nfs(complaints, values["nfs"]),
        vfio_allow=_pci_addresses(complaints, "vfio_allow", values["vfio_allow"]),
        orphan_grace_s=_duration(complaints, "gc.orphan_grace", values["gc"]["orphan_grace"]),
        gc_dry_run=values["gc"]["dry_run"],
    )
    if config.data_dir == config.run_dir and not complaints.any_about("data_dir", "run_dir"):
        complaints.add("run_dir", "expected another directory than data_dir", value=str(config.run_dir))
    complaints.raise_as(HostError)
    return config


def decode_task_config(msgpack_config: bytes, complaints: Complaints | None = None) -> TaskConfig:
    """The job's block. Raises SpecError with every complaint, one a line; with `complaints` given they go there.

    What is returned beside complaints is good for finding further ones, and for nothing else.
    """
    alone = complaints is None
    complaints = Complaints() if complaints is None else complaints
    values = decode(msgpack_config, TASK, complaints, with_hidden=_with_fake())
    _check_boot(complaints, values)
    _check_user_data(complaints, values["user_data"])
    _check_hostname(complaints, values["hostname"])
    _check_ssh_keys(complaints, values["ssh_authorized_keys"])
    config = TaskConfig(
        image=values["image"],
        image_format=_image_format(complaints, values["image"], values["image_format"]),
        image_packed=packed_name(values["image"])[1] or "",
        root_mode=values["root_mode"],
        root_size_bytes=_size(complaints, "root_size", values["root_size"]) if values["root_size"] else None,
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


def _with_fake() -> bool:
    return os.environ.get("CHV_ENABLE_FAKE") == "1"


# -- of both blocks --------------------------------------------------------------------------------------------------


def _size(complaints: Complaints, key: str, text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return 1
    if size == 0:
        complaints.add(key, "expected more than nothing", value=text)
    return size


def _size_or_none(complaints: Complaints, key: str, text: str) -> int:
    """A size of which nothing is a good answer."""
    return 0 if text == "0" else _size(complaints, key, text)


def _duration(complaints: Complaints, key: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return 0.0


def _pci_addresses(complaints: Complaints, key: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    for index, text in enumerate(texts):
        if not PCI_ADDRESS.fullmatch(text):
            complaints.add(f"{key}[{index}]", "expected a PCI address, as 0000:65:00.0", value=text)
        elif text in texts[:index]:
            complaints.add(f"{key}[{index}]", f"the same as {key}[{texts.index(text)}]", value=text)
    return texts


# -- plugin block ----------------------------------------------------------------------------------------------------


def _directory(complaints: Complaints, key: str, text: str) -> Path:
    if not text.startswith("/") or ".." in text.split("/"):
        complaints.add(key, 'expected an absolute path without ".."', value=text)
    return Path(posixpath.normpath("/" + text.lstrip("/")))


def _run_dir(complaints: Complaints, text: str) -> Path:
    path = _directory(complaints, "run_dir", text)
    most = _SOCKET_PATH_MAX_BYTES - _SOCKET_TAIL_BYTES
    if (size := len(os.fsencode(path))) > most:
        complaints.add(
            "run_dir", f"{size} bytes, expected at most {most} (the path of a socket in it has a limit)", value=text
        )
    return path


def _uids(complaints: Complaints, text: str) -> range | None:
    if not text:
        return None
    match = _UID_RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= _MAX_UID:
        complaints.add("vm_uids", "expected a range of uids without 0, such as 200000-265535", value=text)
        return None
    return range(first, last + 1)


def _user(complaints: Complaints, text: str) -> str:
    if text and not _USER_NAME.fullmatch(text):
        complaints.add("vm_user", "expected the name of a user", value=text)
    return text


def _binary(complaints: Complaints, key: str, text: str) -> str:
    if not text or ("/" in text and not text.startswith("/")):
        complaints.add(key, "expected the name of a program or an absolute path", value=text)
    return text


def _firmware_file(complaints: Complaints, text: str) -> Path | None:
    return _directory(complaints, "cloud_hypervisor.firmware", text) if text else None


def _image_paths(complaints: Complaints, texts: tuple[str, ...]) -> tuple[Path, ...]:
    paths: list[Path] = []
    for index, text in enumerate(texts):
        path = _directory(complaints, f"image_paths[{index}]", text)
        if path in paths:
            complaints.add(f"image_paths[{index}]", f"the same as image_paths[{paths.index(path)}]", value=text)
        paths.append(path)
    return tuple(paths)


def _hooks(complaints: Complaints, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Whether there are such hooks is a matter of the node, and not looked at here."""
    names: list[str] = []
    for index, text in enumerate(texts):
        name, _ = split(text)
        if not _HOOK_NAME.fullmatch(name):
            complaints.add(f"hooks[{index}]", "expected the name of a hook, or NAME:ARGUMENT", value=text)
        elif name in names:
            complaints.add(f"hooks[{index}]", f"the same hook as hooks[{names.index(name)}]", value=text)
        names.append(name)
    return texts


def _nfs(complaints: Complaints, blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, NfsExport]:
    exports = {}
    for name, block in blocks.items():
        path = path_of_label("nfs", name)
        if not _LABEL.fullmatch(name):
            complaints.add(path, "expected a name of at most 32 letters, digits, - and _")
        if not _SERVER.fullmatch(block["server"]):
            complaints.add(
                f"{path}.server", "expected a host name or an address, such as 10.0.0.5", value=block["server"]
            )
        export = block["export"]
        if not export.startswith("/") or ".." in export.split("/"):
            complaints.add(f"{path}.export", 'expected an absolute path without ".."', value=export)
        options = nfs_options.split(block["options"])
        for fault in nfs_options.faults(options):
            complaints.add(f"{path}.options", fault, value=block["options"])
        exports[name] = NfsExport(
            name=name, server=block["server"], export=export, options=options, read_only=block["read_only"]
        )
    return exports


def _cores(complaints: Complaints, block: Mapping[str, Any]) -> CoresConfig:
    auto = block["dedicated"] == "auto"
    dedicated = frozenset[int]() if auto else _cpus(complaints, "cores.dedicated", block["dedicated"])
    housekeeping = _cpus(complaints, "cores.housekeeping", block["housekeeping"])
    if both := dedicated & housekeeping:
        complaints.add(
            "cores.housekeeping",
            f"expected CPUs outside cores.dedicated, where VMM threads have no place; {format_cpus(both)} is in both",
            value=block["housekeeping"],
        )
    if not block["dedicated"]:
        for key in ("tokens", "partition"):
            if block[key]:
                complaints.add(f"cores.{key}", "works with cores.dedicated only, which is missing", value=block[key])
    return CoresConfig(
        dedicated=dedicated,
        dedicated_auto=auto,
        housekeeping=housekeeping or None,
        smt=block["smt"],
        tokens=block["tokens"],
        partition=block["partition"],
    )


def _cpus(complaints: Complaints, key: str, text: str) -> frozenset[int]:
    try:
        return parse_cpus(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return frozenset()


# -- task block ------------------------------------------------------------------------------------------------------


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
                size_bytes=_size(complaints, f"{path}.size", block["size"]) if block["size"] else None,
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
    found = _pci_addresses(complaints, "vfio", values["vfio"])
    if found and values["balloon"]:
        complaints.add(
            "balloon", "does not go with vfio, because a device of the host's keeps all memory in its place", value=True
        )
    return found


def _share(complaints: Complaints, words: tuple[str, ...]) -> tuple[str, ...]:
    for index, word in enumerate(words):
        if word not in SHARES:
            complaints.add(f"share[{index}]", one_of(SHARES), value=word)
        elif word in words[:index]:
            complaints.add(f"share[{index}]", f"the same as share[{words.index(word)}]", value=word)
    return words
