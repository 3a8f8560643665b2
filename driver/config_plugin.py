"""The plugin block, decoded and checked: all complaints at once, each with key, value and what was expected."""

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from driver import config_network
from driver.config_network import Network
from driver.config_values import pci_addresses, size_bytes, with_fake
from driver.decode import Complaints, decode, path_of_label
from driver.keys import PLUGIN
from vmlib.cores.cpulist import format_cpus, parse_cpus
from vmlib.disk import nfs_options
from vmlib.errors import HostError
from vmlib.hooks import split
from vmlib.spec import NfsExport
from vmlib.units import parse_duration

# A unix socket's path has at most 107 bytes; ours need this many after run_dir: `/m/`, the run's key, the longest name.
_SOCKET_PATH_MAX_BYTES = 107
_SOCKET_TAIL_BYTES = 40
_MAX_UID = (1 << 32) - 2  # the one above means "nobody in particular" to the kernel
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}")
_HOOK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_USER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_UID_RANGE = re.compile(r"([0-9]{1,10}) ?- ?([0-9]{1,10})")
_SERVER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?")


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


def decode_plugin_config(msgpack_config: bytes, complaints: Complaints | None = None) -> PluginConfig:
    """The operator's block; an empty map gives the defaults. Raises HostError with every complaint, one a line; with
    `complaints` given they go there.

    Looks at nothing of the host, so that the same bytes get the same verdict whenever they come.
    """
    alone = complaints is None
    complaints = Complaints() if complaints is None else complaints
    values = decode(msgpack_config, PLUGIN, complaints, with_hidden=with_fake())
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
        image_max_size_bytes=size_bytes(complaints, "image_max_size", values["image_max_size"]),
        image_paths=_image_paths(complaints, values["image_paths"]),
        default_network=values["default_network"],
        networks=networks,
        image_cache_max_bytes=_size_or_none(complaints, "gc.image_cache_max", values["gc"]["image_cache_max"]),
        image_cache_max_age_s=_duration(complaints, "gc.image_cache_max_age", values["gc"]["image_cache_max_age"]),
        hooks=_hooks(complaints, values["hooks"]),
        nfs=_nfs(complaints, values["nfs"]),
        vfio_allow=pci_addresses(complaints, "vfio_allow", values["vfio_allow"]),
        orphan_grace_s=_duration(complaints, "gc.orphan_grace", values["gc"]["orphan_grace"]),
        gc_dry_run=values["gc"]["dry_run"],
    )
    if config.data_dir == config.run_dir and not complaints.any_about("data_dir", "run_dir"):
        complaints.add("run_dir", "expected another directory than data_dir", value=str(config.run_dir))
    if alone:
        complaints.raise_as(HostError)
    return config


def _size_or_none(complaints: Complaints, key: str, text: str) -> int:
    """A size of which nothing is a good answer."""
    return 0 if text == "0" else size_bytes(complaints, key, text)


def _duration(complaints: Complaints, key: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return 0.0


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
