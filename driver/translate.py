"""From Nomad's words to vmlib's: a task of Nomad's and its decoded config become a MachineSpec. Pure."""

import hashlib
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from driver import links
from driver._pb import driver_pb2 as pb
from driver.config_network import known
from driver.config_plugin import PluginConfig
from driver.config_task import TaskConfig, is_inline
from driver.core_wishes import cores_spec, mhz_lint
from driver.decode import Complaints
from vmlib.cores.topology import Topology
from vmlib.errors import SpecError
from vmlib.spec import (
    DirectBoot,
    DiskKey,
    DiskSpec,
    FileRef,
    FirmwareKind,
    MachineSpec,
    MountSpec,
    NicSpec,
    RootDisk,
    SeedSpec,
)

_MIN_MEMORY_MIB = 16
_NO_LIMIT_MIB = 1 << 42  # more than any host has, and a number of bytes that the kernel takes
_NAME_MAX_BYTES = 128
_DIGEST_DIGITS = 16
_LABEL_MAX_BYTES = 63
_DEFAULT_CMDLINE = "console=ttyS0"
_META = "NOMAD_META_"  # how a job's meta blocks come
_TASK_DIRS = ("local", "secrets")
_NFS = "nfs://"


def machine_spec(
    task: pb.TaskConfig,
    options: TaskConfig,
    plugin: PluginConfig,
    *,
    owner: Literal["nomad", "dev", "run"],
    complaints: Complaints | None = None,
    topology: Topology | None = None,
    smt: Literal["core", "thread"] = "core",
    in_namespace: Sequence[str] = (),
    host_dns: Sequence[str] = (),
) -> MachineSpec:
    """The machine that a task asks for. Raises SpecError with every complaint, one a line.

    `complaints` holds what was found in the config already, so that a job's author is told of all at once.
    `in_namespace` says who uses the group's network namespace by now, `host_dns` which name servers this host has.
    """
    complaints = Complaints() if complaints is None else complaints
    if "/" in task.name or task.name in ("", ".", ".."):
        complaints.add("task", "expected a name that can be a directory", value=task.name)
    finder = _Finder(complaints, task, plugin)
    cores, vcpus = cores_spec(complaints, task, options, topology=topology, smt=smt)
    nics = links.nic_specs(complaints, task, options, plugin, in_namespace=in_namespace, host_dns=host_dns)
    spec = MachineSpec(
        id=task.id,
        name=machine_name(task.alloc_id, task.name),
        owner=owner,
        vcpus=vcpus,
        memory_mib=_memory_mib(complaints, task),
        boot=_boot(finder, options),
        firmware=_firmware(finder, options),
        guest_os=options.guest_os,
        root=_root(complaints, finder, options),
        disks=_disks(finder, task, options),
        mounts=_mounts(complaints, task, options),
        tpm=options.tpm,
        seed=_seed(finder, task, options, nics),
        agent=_has_agent(options),
        nics=nics,
        cores=cores,
        memory_max_mib=_memory_max_mib(task),
        hugepages=options.hugepages,
        balloon=options.balloon,
        vfio=_vfio(complaints, options, plugin),
        hypervisor=options.hypervisor,
        on_reboot=options.on_reboot,
        on_panic=options.on_panic,
        stdout=Path(task.stdout_path or "/dev/null"),
        stderr=Path(task.stderr_path or "/dev/null"),
        labels=_labels(task),
        alive_while=Path(task.alloc_dir),
    )
    complaints.raise_as(SpecError)
    return spec


def lints(
    task: pb.TaskConfig,
    options: TaskConfig,
    nics: Sequence[NicSpec],
    *,
    level: str = "shared",
    mhz_floor: int = 0,
) -> list[str]:
    """What will work, but perhaps not as its author thinks.

    `level` is what the machine got; `mhz_floor` what Nomad counts for the slowest CPU of the node, 0 when unknown.
    """
    found = list(links.lints(task, nics))
    if options.network_config and not nics:
        found.append("network_config configures nothing: the machine has no network_interface")
    if level == "driver" and (lint := mhz_lint(task, options, mhz_floor)):
        found.append(lint)
    return found


# -- names -----------------------------------------------------------------------------------------------------------


def machine_name(alloc_id: str, task_name: str) -> str:
    """`ALLOC/TASK`, the same over all starts of the task and safe as two directories.

    Letters, digits, `_`, `-` and single inner dots stand for themselves; every other byte is %XX. A part of more than
    128 bytes is cut and ends in `~` and a digest of the whole.
    """
    return f"{_safe(alloc_id)}/{_safe(task_name)}"


def _safe(part: str) -> str:
    escaped = quote(part, safe="").replace("~", "%7E")
    if escaped.startswith(".") or ".." in escaped:
        escaped = escaped.replace(".", "%2E")
    if len(escaped) <= _NAME_MAX_BYTES:
        return escaped or "%"
    digest = hashlib.sha256(part.encode()).hexdigest()[:_DIGEST_DIGITS]
    return f"{escaped[: _NAME_MAX_BYTES - _DIGEST_DIGITS - 1]}~{digest}"


def default_hostname(job_name: str, task_name: str) -> str:
    """`JOB-TASK` as one label of a host name: lower case, other characters become -, at most 63."""
    text = re.sub(r"[^a-z0-9]+", "-", f"{job_name}-{task_name}".lower())
    return text.strip("-")[:_LABEL_MAX_BYTES].strip("-") or "machine"


# -- files -----------------------------------------------------------------------------------------------------------


class _Finder:
    """Finds what a path in a job leads to: the task's own directories, or one that the operator named."""

    def __init__(self, complaints: Complaints, task: pb.TaskConfig, plugin: PluginConfig) -> None:
        self._complaints = complaints
        self._task_dir = Path(task.alloc_dir) / task.name
        self._shared_dir = Path(task.alloc_dir) / "alloc"
        self._image_paths = plugin.image_paths
        self._nfs = plugin.nfs

    def find(self, key: str, text: str) -> FileRef:
        if text.startswith(_NFS):
            return self._on_a_server(key, text)
        path = posixpath.normpath(text)
        parts = path.strip("/").split("/")
        if ".." in text.split("/"):
            self._complaints.add(key, 'expected a path without ".."', value=text)
        elif parts[0] == "alloc":
            return FileRef(root=self._shared_dir, relative="/".join(parts[1:]) or ".")
        elif not path.startswith("/") or parts[0] in _TASK_DIRS:
            return FileRef(root=self._task_dir, relative="/".join(parts))
        else:
            return self._of_the_operator(key, text, Path("/", *parts))
        return FileRef(root=self._task_dir, relative=".")

    def may_change(self, ref: FileRef) -> bool:
        """Whether the tasks of the group can write to it."""
        return ref.root in (self._task_dir, self._shared_dir)

    def _on_a_server(self, key: str, text: str) -> FileRef:
        """`nfs://NAME/path`, with the path from the top of what the operator calls NAME."""
        name, _, path = text.removeprefix(_NFS).partition("/")
        relative = posixpath.normpath("/" + path).lstrip("/")
        export = self._nfs.get(name)
        if export is None:
            self._complaints.add(
                key, f"expected an nfs block of this node's plugin block, {known(self._nfs)}", value=text
            )
        elif ".." in path.split("/"):
            self._complaints.add(key, 'expected a path without ".."', value=text)
        elif not relative:
            self._complaints.add(key, "expected a file, as in nfs://NAME/path", value=text)
        return FileRef(root=Path("/"), relative=relative or ".", nfs=export)

    def _of_the_operator(self, key: str, text: str, path: Path) -> FileRef:
        roots = [root for root in self._image_paths if path.is_relative_to(root)]
        if roots:
            # The innermost: what holds a file most closely also lets the fewest links through.
            root = max(roots, key=lambda root: len(root.parts))
            return FileRef(root=root, relative=str(path.relative_to(root)))
        named = f": {', '.join(map(str, self._image_paths))}" if self._image_paths else " (this node has none)"
        self._complaints.add(
            key,
            f"expected a path in local/, secrets/ or alloc/ of the task, or beneath one of image_paths{named}"
            + (f", or nfs://NAME/path with NAME of {', '.join(sorted(self._nfs))}" if self._nfs else ""),
            value=text,
        )
        return FileRef(root=self._task_dir, relative=".")


def _boot(finder: _Finder, options: TaskConfig) -> DirectBoot | None:
    if not options.kernel:
        return None
    return DirectBoot(
        kernel=finder.find("kernel", options.kernel),
        initrd=finder.find("initrd", options.initrd) if options.initrd else None,
        cmdline=options.cmdline or _DEFAULT_CMDLINE,
    )


def _firmware(finder: _Finder, options: TaskConfig) -> FirmwareKind | FileRef:
    match options.firmware:
        case "" | "bios" | "uefi" as kind:
            return kind
        case path:
            return finder.find("firmware", path)


def _root(complaints: Complaints, finder: _Finder, options: TaskConfig) -> RootDisk | None:
    if not options.image:
        return None
    image = finder.find("image", options.image)
    in_place = options.root_mode == "direct" and options.image_format == "qcow2" and finder.may_change(image)
    if in_place and options.root_size_bytes is not None:
        # A tool grows it, as root, and would follow a file name that the job writes into the header meanwhile.
        complaints.add(
            "root_size",
            "a qcow2 image in the task's directories is not grown where it lies, expected root_mode = copy or overlay",
            value=options.root_size_bytes,
        )
    return RootDisk(
        image=image,
        format=options.image_format,
        mode=options.root_mode,
        size_bytes=options.root_size_bytes,
        packed=options.image_packed,
        cached=options.root_mode == "overlay" and finder.may_change(image),
    )


def _disks(finder: _Finder, task: pb.TaskConfig, options: TaskConfig) -> tuple[DiskSpec, ...]:
    made = []
    for index, disk in enumerate(options.disks):
        source = finder.find(f"disk[{index}].source", disk.source) if disk.source else None
        made.append(
            DiskSpec(
                name=disk.name,
                format=disk.format,
                source=source,
                packed=disk.packed,
                # A raw one leads nowhere, whatever the job writes into it meanwhile.
                cached=source is not None and disk.readonly and disk.format == "qcow2" and finder.may_change(source),
                size_bytes=disk.size_bytes,
                readonly=disk.readonly,
                serial=disk.serial,
                rate_bytes=disk.rate_bytes,
                persistent=_disk_key(task, disk.name) if disk.persistent else None,
            )
        )
    return tuple(made)


def _mounts(complaints: Complaints, task: pb.TaskConfig, options: TaskConfig) -> tuple[MountSpec, ...]:
    """The task's own directories that it shares with its guest, then the volumes that the client hands over."""
    alloc_dir = Path(task.alloc_dir)
    mounts = [
        MountSpec(source=alloc_dir / word if word == "alloc" else alloc_dir / task.name / word, guest_path=f"/{word}")
        for word in options.share
    ]
    for mount in task.mounts:
        path = posixpath.normpath(f"/{mount.task_path.lstrip('/')}")
        if any(path == known.guest_path for known in mounts):
            complaints.add("volume_mount.destination", "something else is mounted there", value=mount.task_path)
        mounts.append(MountSpec(source=Path(mount.host_path), guest_path=path, readonly=mount.readonly))
    return tuple(mounts)


def _vfio(complaints: Complaints, options: TaskConfig, plugin: PluginConfig) -> tuple[str, ...]:
    """The host's devices that the job wants, of those that this node's operator lets jobs have."""
    allowed = ", ".join(plugin.vfio_allow) or "none"
    for index, address in enumerate(options.vfio):
        if address not in plugin.vfio_allow and not complaints.any_about(f"vfio[{index}]"):
            complaints.add(
                f"vfio[{index}]",
                f"vfio = {list(options.vfio)}, expected addresses of this node's vfio_allow: {allowed}",
                value=address,
            )
    return options.vfio


def _disk_key(task: pb.TaskConfig, name: str) -> DiskKey:
    """The same for every alloc that takes the place of this one; each run of a periodic or dispatched job, too."""
    index = task.env.get("NOMAD_ALLOC_INDEX", "0")
    return DiskKey(
        # An old agent does not send them as fields.
        namespace=task.namespace or task.env.get("NOMAD_NAMESPACE", "default"),
        job=task.parent_job_id or task.job_id or task.env.get("NOMAD_JOB_ID", task.job_name),
        group=task.task_group_name,
        index=int(index) if index.isdecimal() else 0,
        name=name,
    )


def _labels(task: pb.TaskConfig) -> dict[str, str]:
    """What an operator's hooks may tell a task by."""
    place = _disk_key(task, "")
    return {
        "namespace": place.namespace,
        "job": place.job,
        "group": place.group,
        "task": task.name,
        "alloc": task.alloc_id,
        "index": str(place.index),
        **{f"meta.{key.removeprefix(_META)}": value for key, value in task.env.items() if key.startswith(_META)},
    }


def _seed(finder: _Finder, task: pb.TaskConfig, options: TaskConfig, nics: Sequence[NicSpec]) -> SeedSpec | None:
    """Only for a job that needs it: a guest that knows no cloud-init sees no disk it did not ask for.

    An image is taken to know it, so the agent is a reason for one; a kernel's initrd is not.
    """
    hostname = options.hostname or links.group_hostname(task)
    for_guest = (hostname, options.ssh_authorized_keys, options.user_data, options.network_config)
    for_agent = _has_agent(options) and (options.image or options.wait_for == "agent")
    if not any((*for_guest, options.share, task.mounts, links.need_seed(nics), for_agent)):
        return None
    user_data, user_data_file = None, None
    if is_inline(options.user_data):
        user_data = options.user_data.encode()
    elif options.user_data:
        user_data_file = finder.find("user_data", options.user_data)
    return SeedSpec(
        # cloud-init makes a directory of that name.
        instance_id=machine_name(task.alloc_id, task.name).replace("/", "-"),
        hostname=hostname or default_hostname(task.job_name, task.name),
        ssh_authorized_keys=options.ssh_authorized_keys,
        user_data=user_data,
        user_data_file=user_data_file,
        network_config=options.network_config.encode() if options.network_config else None,
        environment={**task.device_env, **task.env},
        agent=_has_agent(options),
    )


def _has_agent(options: TaskConfig) -> bool:
    return options.agent and options.guest_os == "linux"


# -- resources -------------------------------------------------------------------------------------------------------


def _memory_mib(complaints: Complaints, task: pb.TaskConfig) -> int:
    memory_mib = task.resources.allocated_resources.memory.memory_mb
    if memory_mib < _MIN_MEMORY_MIB:
        complaints.add("memory", f"expected at least {_MIN_MEMORY_MIB} MiB in resources", value=memory_mib)
    return memory_mib


def _memory_max_mib(task: pb.TaskConfig) -> int:
    memory_max_mib = task.resources.allocated_resources.memory.memory_max_mb
    return _NO_LIMIT_MIB if memory_max_mib < 0 else memory_max_mib
