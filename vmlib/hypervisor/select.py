"""Which hypervisor runs a machine, and the sentence that says why. Deciding is pure; looking at the host is apart."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmlib import probe
from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.base import Hypervisor, Vmm
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qemu import Qemu, attach_qmp
from vmlib.spec import MachineSpec, UserLink


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorSettings:
    """What the operator said about hypervisors."""

    hypervisor: str = "auto"  # or the name of one
    qemu_binary: str = "qemu-system-x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on the host."""

    kvm: bool
    why_no_kvm: str
    qemu: probe.Program
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
    """Look at the host. May start `qemu --version`, once for each state of the file."""
    kvm, why_no_kvm = probe.kvm_usable()
    facts = Facts(
        kvm=kvm,
        why_no_kvm=why_no_kvm,
        qemu=probe.qemu_program(settings.qemu_binary),
        fake=os.environ.get("CHV_ENABLE_FAKE") == "1",
        io_uring=probe.io_uring_usable(),
    )
    return Offer(settings=settings, candidates=candidates(settings, facts))


def candidates(settings: HypervisorSettings, facts: Facts) -> tuple[Candidate, ...]:
    """Every hypervisor that we know, best first, and whether it can run machines here. Pure."""
    found = [_qemu(settings, facts)]
    if facts.fake:
        found.append(Candidate(name="fake", hypervisor=Fake(), pin_only=True))
    return tuple(found)


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
    lacking = []
    for one in allowed:
        if one.hypervisor is None:
            why_not = one.why_not
        elif any(isinstance(nic.link, UserLink) for nic in spec.nics) and not one.hypervisor.capabilities.user_nic:
            why_not = "has no user-mode network"
        elif spec.boot is None and not one.hypervisor.capabilities.firmware_boot:
            why_not = "cannot boot from a disk"
        elif spec.boot_firmware and not one.hypervisor.capabilities.uefi:
            why_not = "has no UEFI firmware"
        elif spec.tpm and not one.hypervisor.capabilities.tpm:
            why_not = "has no TPM"
        elif spec.mounts and not one.hypervisor.capabilities.shares:
            why_not = "has no virtiofs shares"
        else:
            return one.hypervisor, _reason(one, one.hypervisor, pinned=bool(spec.hypervisor))
        lacking.append(f"{one.name}: {why_not}")
    if any(one.hypervisor is not None for one in allowed):
        raise SpecError(f"no hypervisor here can run this machine ({'; '.join(lacking)})")
    raise HostError(
        f"no usable hypervisor ({'; '.join(lacking)})",
        hint="install QEMU 7.2 or later, and look at `chv doctor`",
    )


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


def _reason(one: Candidate, hypervisor: Hypervisor, *, pinned: bool) -> str:
    """As `qemu with tcg: no usable KVM (cpu has neither vmx nor svm)`."""
    what = one.name if hypervisor.accel == "none" else f"{one.name} with {hypervisor.accel}"
    whys = [why for why in (one.why, "pinned by the job" if pinned else "") if why]
    return f"{what}: {', '.join(whys)}" if whys else what


def attach(name: str, run_dir: Path) -> Vmm:
    """Talk to a VMM that a hypervisor of that name planned, whatever is installed or configured by now."""
    if name not in ("qemu", "fake"):
        raise HostError(f"machine of hypervisor {name!r}: this version of chv cannot talk to it")
    return attach_qmp(run_dir)
