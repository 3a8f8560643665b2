"""Everything that a machine has before it has a VMM: its uid, mounts, disks, seed, boot files, firmware, links.

Each step notes its undo in the journal first. What is open belongs to the stack that the caller gives.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from vmlib import credentials, far, files, helpers, hook_run, postflight, probe, process, vfio
from vmlib.cores.service import Notice
from vmlib.disk import nfs
from vmlib.disk.cache import ImageCache
from vmlib.disk.data import prepare_disk, wants_source
from vmlib.disk.flash import open_firmware, open_own_payload, open_payload, prepare_uefi
from vmlib.disk.intake import Intake, Tell
from vmlib.disk.persistent import Holder
from vmlib.disk.root import prepare_root, wants_image
from vmlib.disk.seed import cloud_config, seed_files, with_user_data, write_seed
from vmlib.disk.stage import stage_boot
from vmlib.disk.volume import prepare_mounts
from vmlib.errors import SpecError
from vmlib.handover import hand_over, name_backings, with_vmm_dir
from vmlib.hypervisor.base import Hypervisor
from vmlib.journal import Journal
from vmlib.net.making import MAX_QUEUE_PAIRS, Making, Plugged
from vmlib.net.names import link_mark
from vmlib.net.plug import plug
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.record import NicRecord, load_machine
from vmlib.resources import (
    Credentials,
    DiskAttachment,
    FirmwareFiles,
    Nic,
    OpenFile,
    PciDevice,
    Resources,
    ShareAttachment,
    StreamNic,
    UserNic,
)
from vmlib.settings import HostSettings
from vmlib.spec import FileRef, MachineSpec


class Preflight:
    """The preflight of one host."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._layout = settings.layout

    def bring_images(self, spec: MachineSpec, tell: Tell | None = None) -> None:
        """Put into the image cache what the job brings along. Raises VmError, OSError."""
        into = self._layout.machine(spec.name).disk_dir
        intake = self._intake(tell)
        root = spec.root
        wanted = []
        # What lies on a file server is brought by the start itself, which mounts that.
        if root is not None and root.image.nfs is None and (root.cached or root.packed) and wants_image(root, into):
            wanted.append((root.image, root.format, root.packed, "image"))
        for index, disk in enumerate(spec.disks):
            if disk.source is None or disk.source.nfs is not None:
                continue
            if (disk.packed or disk.cached) and wants_source(disk, into):
                wanted.append((disk.source, disk.format, disk.packed, f"disk[{index}].source"))
        if not wanted:
            return
        make_private(self._layout.data_dir)
        for ref, format_, packed, key in wanted:
            intake.bring(ref, format_, packed, None, key=key)

    @property
    def images(self) -> ImageCache:
        return ImageCache(self._layout.cache)

    def _intake(self, tell: Tell | None = None) -> Intake:
        return Intake(self.images, max_virtual_bytes=self._settings.image_max_size_bytes, tell=tell)

    def with_hooks(
        self, spec: MachineSpec, run: RunPaths, ours: ExitStack, journal: Journal
    ) -> tuple[MachineSpec, tuple[DiskAttachment, ...]]:
        """The machine as the operator's hooks want it, and the disks that they give it."""

        def note(hook: str, state: Mapping[str, str]) -> None:
            journal.note(
                "hook.postflight",
                hook=hook,
                state=json.dumps(dict(state)),
                machine=spec.name,
                machine_id=spec.id,
                run_dir=str(run.root),
            )

        limit = self._settings.image_max_size_bytes
        return hook_run.run_preflights(self._settings.hooks, spec, note, ours, max_virtual_bytes=limit)

    def mounted(self, spec: MachineSpec, run: RunPaths, journal: Journal) -> MachineSpec:
        """Mount what the machine needs of file servers; the same spec with its files beneath those mounts."""
        roots = {}
        for export in nfs.exports_of(spec):
            roots[export.name] = self._layout.mounts(run.root) / export.name
            journal.note("nfs.unmount", path=str(roots[export.name]), run_dir=str(run.root))
            nfs.mount(export, roots[export.name])
        return nfs.with_roots(spec, roots)

    def plugged(
        self, spec: MachineSpec, hypervisor: Hypervisor, run: RunPaths, ours: ExitStack, journal: Journal
    ) -> tuple[Plugged, ...]:
        """Make the links. Open files go to `ours` one by one: a later step may raise."""
        mark = link_mark(spec.owner, run.root)
        making = Making(
            machine_id=spec.id,
            mark=mark,
            queue_pairs=min(spec.vcpus, MAX_QUEUE_PAIRS),
            vhost=hypervisor.capabilities.vhost_net and hypervisor.accel == "kvm",
            passt=not probe.passt_program().why_not,
            note=lambda name, mac: journal.note("link.remove", name=name, mac=mac, mark=mark),
            keep=lambda file: _keep(ours, file),
        )
        return tuple(plug(nic, index, making) for index, nic in enumerate(spec.nics))

    def credentials(self, hypervisor: Hypervisor, paths: MachinePaths, run: RunPaths, journal: Journal) -> Credentials:
        if self._settings.vm_uids is not None:
            with files.locked(self._layout.uids_lock):
                uid = credentials.pick_uid(self._settings.vm_uids, self._held_uids())
                journal.note("uid.free", path=str(paths.uid), run_dir=str(run.root))
                files.write_atomic(paths.uid, f"{uid}\n".encode())
            who = Credentials(uid=uid, gid=uid)
        else:
            who = credentials.for_user(self._settings.vm_user) or credentials.ours()
        return credentials.with_kvm(who) if hypervisor.accel == "kvm" else who

    def devices(
        self, spec: MachineSpec, who: Credentials, paths: MachinePaths, run: RunPaths, journal: Journal
    ) -> tuple[PciDevice, ...]:
        """Take the host's devices that the guest shall have, and give their nodes to the VMM's user."""
        if not spec.vfio:
            return ()
        wanted = vfio.devices(spec.vfio, self._settings.host_root)
        with files.locked(self._layout.vfio_lock):
            vfio.expect_free(wanted, vfio.load_claims(files.each(self._layout.machines, "vfio")))
            handovers = list(vfio.handovers(wanted, who.uid, self._settings.host_root))
            journal.note("vfio.free", path=str(paths.vfio), run_dir=str(run.root))
            files.write_atomic(paths.vfio, vfio.dump_claim(wanted))
        for one in handovers:
            journal.note(
                "vfio.give_back", node=str(one.path), uid=str(one.uid), was=str(one.was), run_dir=str(run.root)
            )
            vfio.hand_over(one)
        return wanted

    def _held_uids(self) -> set[int]:
        held = set()
        for path in files.each(self._layout.machines, "uid"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # none, or freed meanwhile
                held |= held_uids(path)
        return held

    def resources(
        self,
        spec: MachineSpec,
        given: tuple[DiskAttachment, ...],
        nics: tuple[Nic, ...],
        paths: MachinePaths,
        run: RunPaths,
        who: Credentials,
        ours: ExitStack,
        journal: Journal,
    ) -> tuple[Resources, list[Notice]]:
        """Make everything the VMM gets. Open files go to `ours` one by one: a later step may raise."""

        def keep(file: OpenFile | None) -> None:
            if file is not None:
                _keep(ours, file)

        disks: list[DiskAttachment] = []
        told: list[Notice] = []
        intake = self._intake()
        if spec.root is not None or spec.disks:
            make_private(paths.disk_dir)
        if spec.root is not None:
            disks.append(prepare_root(spec.root, paths.disk_dir, intake=intake))
            keep(disks[-1].file)
            keep(disks[-1].backing)
        persistent = postflight.persistent_disks(self._layout)
        holder = Holder(machine_id=spec.id, name=spec.name, boot_id=process.boot_id(), run_dir=str(run.root))
        for index, disk in enumerate(spec.disks):
            if disk.persistent is not None:
                directory = persistent.directory(disk.persistent)
                journal.note("disk.release", directory=str(directory), machine_id=spec.id)
            new, words = prepare_disk(disk, index, paths.disk_dir, persistent=persistent, holder=holder, intake=intake)
            disks.append(new)
            keep(new.file)
            if words:
                told.append(Notice(spec.id, "disk created", words))
        disks += given
        shares: list[ShareAttachment] = []
        for one in prepare_mounts(spec.mounts):
            if isinstance(one, ShareAttachment):
                shares.append(one)
            else:
                disks.append(one)
                keep(one.file)
        if spec.seed is not None:
            disks.append(
                write_seed(
                    paths.seed,
                    seed_files(
                        with_user_data(spec.seed), spec.nics, vendor_config=cloud_config(shares), guest_os=spec.guest_os
                    ),
                )
            )
            keep(disks[-1].file)
        boot = None
        if spec.boot is not None:
            make_private(paths.boot_dir)
            boot = stage_boot(spec.boot, paths.boot_dir, owner_uid=who.uid, owner_gid=who.gid)
            keep(boot.kernel)
            keep(boot.initrd)
        made = Resources(
            run_dir=run.root,
            credentials=who,
            boot=boot,
            disks=tuple(disks),
            shares=tuple(shares),
            tpm=helpers.make_tpm_dir(paths.tpm_dir, who) if spec.tpm else None,
            nics=nics,
        )
        return made, told


def firmware_of(
    spec: MachineSpec, hypervisor: Hypervisor, paths: MachinePaths, ours: ExitStack
) -> FirmwareFiles | None:
    """The firmware that the machine brings along; None when the hypervisor's own will do. `ours` closes the files."""
    firmware, can = spec.boot_firmware, hypervisor.capabilities
    if not firmware and (spec.boot is not None or can.bios):
        return None
    if isinstance(firmware, FileRef):
        files_ = open_firmware(firmware) if can.flash else open_own_payload(firmware)
    elif not can.flash:
        files_ = open_payload(hypervisor.uefi_firmware().code)
    else:
        files_ = prepare_uefi(paths.firmware_vars, hypervisor.uefi_firmware)
    for file in (files_.code, files_.variables):
        if file is not None:
            ours.callback(os.close, file.fd)
    return files_


def handed_over(res: Resources, paths: MachinePaths, layout: Layout, run: RunPaths, ours: ExitStack) -> Resources:
    """The machine for a VMM that opens its files by itself. Raises SpecError when it may not open one of them."""
    if why_not := hand_over(res, (paths.root, layout.disks)):
        raise SpecError(why_not)
    name_backings(res)
    made = with_vmm_dir(res, run)
    if made.vmm_dir is not None:
        ours.callback(os.close, made.vmm_dir.fd)
    return replace(made, landlock=probe.landlock_usable())


def nic_record(one: Plugged) -> NicRecord:
    return NicRecord(
        network=one.spec.network,
        mac=one.spec.mac,
        addresses=one.spec.addresses,
        link=one.link,
        ifindex=one.ifindex,
        router="passt" if isinstance(one.nic, StreamNic) else "qemu" if isinstance(one.nic, UserNic) else "",
    )


def _keep(ours: ExitStack, file: OpenFile) -> None:
    ours.callback(far.close if file.remote else os.close, file.fd)


def held_uids(path: Path) -> set[int]:
    """What a machine's file says, and where that may have lost something, what its record says."""
    data = path.read_bytes()
    held = {int(data)} if data.strip().isdigit() else set()
    if not data.endswith(b"\n") and (record := load_machine(MachinePaths(path.parent).record)) is not None:
        held.add(record.uid)  # cut short, or of a version that wrote no end of line
    return held


def make_private(path: Path) -> None:
    files.make_directory(path)
