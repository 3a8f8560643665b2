"""Which hypervisor runs a machine, and the sentence that says why. Deciding is pure; looking at the host is apart."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmlib import probe
from vmlib.errors import HostError, SpecError
from vmlib.hypervisor import cloud_hypervisor
from vmlib.hypervisor.base import Capabilities, Hypervisor, Vmm
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor, attach_ch
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu, attach_qmp
from vmlib.spec import FileRef, MachineSpec, UserLink


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorSettings:
    """What the operator said about hypervisors."""

    hypervisor: str = "auto"  # or the name of one
    ch_binary: str = "cloud-hypervisor"
    ch_firmware: Path | None = None  # a CLOUDHV.fd or hypervisor-fw
    qemu_binary: str = "qemu-system-x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on the host."""

    kvm: bool
    why_no_kvm: str
    qemu: probe.Program
    cloud_hypervisor: probe.Program
    firmware: bool = False  # the file that the operator names for Cloud Hypervisor is there
    fake: bool  # CHV_ENABLE_FAKE=1
    io_uring: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One hypervisor that could run machines here: `hypervisor` when it can, else `why_not`.

    `why` says what is worth knowing about the choice, as "no usable KVM (…)"; it may be empty.
    """

    name: str
    hypervisor: Hypervisor | None = None
    why: str = ""
    why_not: str = ""
    pin_only: bool = False  # never chosen unless somebody names it
    expected: bool = True  # somebody has installed it here, so a choice of another one says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one look at the host gave: every hypervisor that we know, best first."""

    settings: HypervisorSettings
    candidates: tuple[Candidate, ...]

    @property
    def allowed(self) -> tuple[Candidate, ...]:
        """Those that the operator's config leaves; none when it names one that we do not know."""
        name = self.settings.hypervisor
        return tuple(one for one in self.candidates if one.name == name or (name == "auto" and not one.pin_only))

    @property
    def usable(self) -> tuple[Hypervisor, ...]:
        """Those that machines of this node run on, best first."""
        return tuple(one.hypervisor for one in self.allowed if one.hypervisor is not None)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each of the others cannot be used. Never empty when nothing is usable."""
        if not self.allowed:
            return (_unknown(self),)
        return tuple(f"{one.name}: {one.why_not}" for one in self.allowed if one.hypervisor is None)


def probe_offers(settings: HypervisorSettings) -> Offer:
    """Look at the host. May ask programs for their versions, once for each state of the file."""
    kvm, why_no_kvm = probe.kvm_usable()
    facts = Facts(
        kvm=kvm,
        why_no_kvm=why_no_kvm,
        qemu=probe.qemu_program(settings.qemu_binary),
        cloud_hypervisor=probe.cloud_hypervisor_program(settings.ch_binary),
        firmware=settings.ch_firmware is not None and settings.ch_firmware.is_file(),
        fake=os.environ.get("CHV_ENABLE_FAKE") == "1",
        io_uring=probe.io_uring_usable(),
    )
    return Offer(settings=settings, candidates=candidates(settings, facts))


def candidates(settings: HypervisorSettings, facts: Facts) -> tuple[Candidate, ...]:
    """Every hypervisor that we know, best first, and whether it can run machines here. Pure."""
    found = [_cloud_hypervisor(settings, facts), _qemu(settings, facts)]
    if facts.fake:
        found.append(Candidate(name="fake", hypervisor=Fake(), pin_only=True))
    return tuple(found)


def _cloud_hypervisor(settings: HypervisorSettings, facts: Facts) -> Candidate:
    """It comes before QEMU wherever it can run a machine."""
    name = cloud_hypervisor.NAME
    if facts.cloud_hypervisor.why_not:
        return Candidate(
            name=name, why_not=facts.cloud_hypervisor.why_not, expected=bool(facts.cloud_hypervisor.version)
        )
    if not facts.kvm and not facts.fake:
        # Without which QEMU says the same of itself.
        return Candidate(name=name, why_not=f"no usable KVM ({facts.why_no_kvm})", expected=False)
    return Candidate(
        name=name,
        hypervisor=CloudHypervisor(
            binary=facts.cloud_hypervisor.path,
            version=facts.cloud_hypervisor.version,
            firmware=settings.ch_firmware if facts.firmware else None,
            accel="kvm" if facts.kvm else "none",
        ),
        pin_only=not facts.kvm,  # one that plays it, in tests
    )


def _qemu(settings: HypervisorSettings, facts: Facts) -> Candidate:
    if facts.qemu.why_not:
        return Candidate(name="qemu", why_not=facts.qemu.why_not)
    no_kvm = f"no usable KVM ({facts.why_no_kvm})"
    match settings.accel:
        case "kvm" if not facts.kvm:
            return Candidate(name="qemu", why_not=f"accel = 'kvm' in the plugin config, but {no_kvm}")
        case "tcg":
            accel, why = "tcg", "accel = 'tcg' in the plugin config"
        case _:
            accel, why = ("kvm", "") if facts.kvm else ("tcg", no_kvm)
    qemu = Qemu(
        binary=facts.qemu.path,
        accel="kvm" if accel == "kvm" else "tcg",
        version=facts.qemu.version,
        io_uring=facts.io_uring,
    )
    return Candidate(name="qemu", hypervisor=qemu, why=why)


def choose(spec: MachineSpec, offer: Offer) -> tuple[Hypervisor, str]:
    """The hypervisor for one machine, and why that one. Raises SpecError or HostError, by who can change it. Pure."""
    allowed = _allowed(spec.hypervisor, offer)
    lacking: list[str] = []
    better: list[str] = []
    for one in allowed:
        if one.hypervisor is None:
            why_not = one.why_not
        elif one.name in spec.avoid:
            why_not = spec.avoid[one.name]
        else:
            why_not = _lack(spec, one.hypervisor.capabilities, pinned=bool(spec.hypervisor))
            if not why_not:
                return one.hypervisor, _reason(one, one.hypervisor, better, pinned=bool(spec.hypervisor))
        lacking.append(f"{one.name}: {why_not}")
        if one.expected:
            better.append(lacking[-1])
    if any(one.hypervisor is not None for one in allowed):
        raise SpecError(f"no hypervisor here can run this machine ({'; '.join(lacking)})")
    # QEMU does not help a machine that may not run on it.
    install = "install QEMU 7.2 or later, and " if any(one.name == "qemu" for one in allowed) else ""
    raise HostError(f"no usable hypervisor ({'; '.join(lacking)})", hint=f"{install}look at `chv doctor`")


def _lack(spec: MachineSpec, can: Capabilities, *, pinned: bool) -> str:
    """What the machine needs and such a hypervisor has not; "" for nothing."""
    if any(isinstance(nic.link, UserLink) for nic in spec.nics) and not can.user_nic:
        return "has no user-mode network"
    if spec.boot is None and (why_not := _lacks_firmware(spec, can, pinned=pinned)):
        return why_not
    if spec.tpm and not can.tpm:
        return "has no TPM"
    if spec.mounts and not can.shares:
        return "has no virtiofs shares"
    if any(nic.rate_bytes for nic in spec.nics) and not can.nic_rate:
        return "does not limit the rate of a network_interface"
    if spec.vfio and not can.vfio:
        return "hands no device of the host's to a guest"
    if not can.remote_disks and nfs_files(spec):
        return "does not open files of an NFS server"
    if can.max_vcpus is not None and spec.vcpus > can.max_vcpus:
        return f"has at most {can.max_vcpus} vCPUs for a guest"
    if can.max_devices is not None and _devices(spec) > can.max_devices:
        return f"has places for {can.max_devices} disks, interfaces, shares and devices, not for {_devices(spec)}"
    return ""


def _devices(spec: MachineSpec) -> int:
    several = (spec.disks, spec.nics, spec.mounts, spec.vfio)
    return sum(map(len, several)) + sum((spec.root is not None, spec.seed is not None, spec.balloon))


def _lacks_firmware(spec: MachineSpec, can: Capabilities, *, pinned: bool) -> str:
    if isinstance(spec.boot_firmware, FileRef) and not can.flash:
        # Whoever names a file and no hypervisor has one that distributions ship.
        return "" if pinned else "takes other firmware files"
    if not can.firmware_boot:
        return "cannot boot from a disk" if can.bios else "has no firmware file to boot a disk with"
    if spec.firmware == "bios" and not can.bios:
        return "has no BIOS"
    return "has no UEFI firmware" if spec.boot_firmware and not can.uefi else ""


def nfs_files(spec: MachineSpec) -> tuple[FileRef, ...]:
    """The disks that lie on a file server and are used where they lie."""
    used = [] if spec.root is None or spec.root.cached or spec.root.mode == "copy" else [spec.root.image]
    used += [disk.source for disk in spec.disks if disk.source is not None and disk.readonly and not disk.cached]
    return tuple(ref for ref in used if ref.nfs is not None)


def _allowed(pin: str, offer: Offer) -> tuple[Candidate, ...]:
    """The candidates among which the job and the operator leave a choice; at least one."""
    if not pin:
        if not offer.allowed:
            raise HostError(_unknown(offer))
        return offer.allowed
    if offer.settings.hypervisor not in ("auto", pin):
        raise SpecError(
            f"hypervisor = {pin!r}: the plugin config of this node allows only {offer.settings.hypervisor!r}"
        )
    found = tuple(one for one in offer.candidates if one.name == pin)
    if not found:
        raise SpecError(f"hypervisor = {pin!r}: expected one of {_names(offer)}")
    return found


def _names(offer: Offer) -> str:
    return ", ".join(one.name for one in offer.candidates)


def _unknown(offer: Offer) -> str:
    return f"hypervisor = {offer.settings.hypervisor!r} in the plugin config: expected one of auto, {_names(offer)}"


def _reason(one: Candidate, hypervisor: Hypervisor, better: list[str], *, pinned: bool) -> str:
    """As `qemu with tcg: no usable KVM (cpu has neither vmx nor svm)`; `better` says what the ones before it lack."""
    what = one.name if hypervisor.accel == "none" else f"{one.name} with {hypervisor.accel}"
    whys = [why for why in (one.why, "pinned by the job" if pinned else "", *better) if why]
    return f"{what}: {', '.join(whys)}" if whys else what


def attach(name: str, run_dir: Path) -> Vmm:
    """Talk to a VMM that a hypervisor of that name planned, whatever is installed or configured by now."""
    if name == cloud_hypervisor.NAME:
        return attach_ch(run_dir)
    if name not in ("qemu", "fake"):
        raise HostError(f"machine of hypervisor {name!r}: this version of chv cannot talk to it")
    return attach_qmp(run_dir)
