"""What `chv doctor` says of KVM, the hypervisors, and what their machines boot by."""

from collections.abc import Iterable, Iterator

from driver.cli.doctor_check import Check, Verdict
from driver.cli.doctor_cloud import CloudFacts, cloud_lines, firmware_line
from driver.config_plugin import PluginConfig
from driver.node import hypervisor_settings
from vmlib import probe
from vmlib.errors import HostError
from vmlib.hypervisor import cloud_hypervisor
from vmlib.hypervisor.base import Hypervisor
from vmlib.hypervisor.select import Candidate, Offer, probe_offers

_NO_KVM = "no usable KVM"
_ABSENT = ("cloud-hypervisor is not installed", "qemu-system-x86_64 is not installed")  # one that nobody asked for
_CURES = {
    cloud_hypervisor.NAME: "install Cloud Hypervisor 53.0 or later, or name another one as cloud_hypervisor.binary",
    "qemu": "install QEMU 7.2 or later (qemu-system-x86), or name another one as qemu.binary",
}


def hypervisor_checks(config: PluginConfig) -> Iterator[Check]:
    yield kvm_check(config, *probe.kvm_usable())
    offer = probe_offers(hypervisor_settings(config))
    for one in offer.candidates:
        yield _candidate(one, offer)
    if not offer.usable:
        yield Check("hypervisors", "problem", "none is usable", "install QEMU 7.2 or later, or Cloud Hypervisor")
    yield from firmware_checks(offer.usable)
    yield from _cloud_hypervisor(config, offer)


def kvm_check(config: PluginConfig, usable: bool, why_not: str) -> Check:
    if usable:
        return Check("kvm", "ok", "makes a VM with a vCPU, and lets the machines' users in")
    if config.hypervisor == "qemu" and config.qemu_accel == "tcg":
        return Check("kvm", "ok", f"not wanted by qemu.accel = 'tcg', and not usable: {why_not}")
    verdict: Verdict = "warning"
    then = "machines are emulated, many times slower"
    if config.qemu_accel == "kvm" or config.hypervisor == cloud_hypervisor.NAME:
        verdict, then = "problem", "no machine starts"
    return Check("kvm", verdict, f"{why_not}: {then}", probe.kvm_cure(why_not))


def _candidate(one: Candidate, offer: Offer) -> Check:
    if one not in offer.allowed and not one.pin_only:
        return Check(one.name, "ok", f"not used, by hypervisor = '{offer.settings.hypervisor}'")
    if one.hypervisor is None and offer.usable and one.why_not in _ABSENT and offer.settings.hypervisor == "auto":
        return Check(one.name, "ok", f"{one.why_not}: machines run on {offer.usable[0].name}")
    if one.hypervisor is None:
        cure = "what the line kvm says" if _NO_KVM in one.why_not else _CURES.get(one.name, "")
        return Check(one.name, "warning", one.why_not, cure)
    how = f"{one.hypervisor.version} with {one.hypervisor.accel}".strip()
    return Check(one.name, "ok", f"{how}: {one.why}" if one.why else how)


def _cloud_hypervisor(config: PluginConfig, offer: Offer) -> Iterator[Check]:
    names = [one.name for one in offer.usable]
    if cloud_hypervisor.NAME in names:
        version = next(one.version for one in offer.usable if one.name == cloud_hypervisor.NAME)
        facts = CloudFacts(version=version, qemu="qemu" in names, landlock=probe.landlock_usable())
        yield from (Check(*line) for line in cloud_lines(facts, config.ch_firmware))
    elif config.ch_firmware is not None:
        yield Check(*firmware_line(config.ch_firmware, qemu="qemu" in names))


def firmware_checks(hypervisors: Iterable[Hypervisor]) -> Iterator[Check]:
    """What jobs with firmware = "uefi" (and Windows) boot by, once for each hypervisor that does."""
    for one in hypervisors:
        if not one.capabilities.uefi or not one.capabilities.flash:
            continue
        try:
            found = one.uefi_firmware()
        except HostError as exc:
            yield Check("firmware", "warning", str(exc), exc.hint)
            continue
        text = f"{found.code}, variables from {found.variables}"
        if found.smm:
            text += "; it protects them by system management mode"
        if not found.enrolled:
            yield Check("firmware", "ok", text)
            continue
        cure = "install the variant without keys, or hide this one by an empty file of its name in /etc/qemu/firmware"
        text += "; it enforces Secure Boot, so only signed systems boot"
        yield Check("firmware", "warning", text, cure)
