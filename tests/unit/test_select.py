"""Which hypervisor runs a machine: every rule on made-up facts."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.select import Facts, HypervisorSettings, Offer, attach, candidates, choose
from vmlib.probe import Program
from vmlib.spec import (
    DirectBoot,
    FileRef,
    MachineSpec,
    MacvtapLink,
    MountSpec,
    NfsExport,
    NicSpec,
    RootDisk,
    SeedSpec,
    UserLink,
)

QEMU = Program(path="/usr/bin/qemu-system-x86_64", version="7.2.22")
NO_QEMU = Program(path="qemu-system-x86_64", why_not="qemu-system-x86_64 is not installed")
CH = Program(path="/usr/local/bin/cloud-hypervisor", version="53.0")
NO_CH = Program(path="cloud-hypervisor", why_not="cloud-hypervisor is not installed")
OLD_CH = Program(path=CH.path, version="50.0", why_not="version 50.0 is too old, expected at least 51.2")
NO_KVM = Facts(
    kvm=False, why_no_kvm="cpu has neither vmx nor svm", qemu=QEMU, cloud_hypervisor=NO_CH, firmware=False, fake=False
)
KVM = replace(NO_KVM, kvm=True, why_no_kvm="")
BOTH = replace(KVM, cloud_hypervisor=CH)
FAKE = replace(NO_KVM, fake=True)
CH_MISSING = "cloud-hypervisor: cloud-hypervisor is not installed"
NO_USABLE_KVM = "no usable KVM (cpu has neither vmx nor svm)"
AUTO = HypervisorSettings()
SPEC = MachineSpec(id="a/b/c", name="a/b", owner="nomad", vcpus=1, memory_mib=128)


WITH_KERNEL = replace(SPEC, boot=DirectBoot(kernel=FileRef(root=Path("/alloc"), relative="k")))
VOLUME = MountSpec(source=Path("/mnt/v"), guest_path="/v")
SEED = SeedSpec(instance_id="i", hostname="h")
NFS = NfsExport(name="vms", server="10.0.0.5", export="/srv")


def offer(settings: HypervisorSettings, facts: Facts) -> Offer:
    return Offer(settings=settings, candidates=candidates(settings, facts))


@pytest.mark.parametrize(
    ("settings", "facts", "pin", "accel", "reason"),
    [
        (AUTO, KVM, "", "kvm", "qemu with kvm"),
        (AUTO, NO_KVM, "", "tcg", "qemu with tcg: no usable KVM (cpu has neither vmx nor svm)"),
        (replace(AUTO, accel="tcg"), KVM, "", "tcg", "qemu with tcg: accel = 'tcg' in the plugin config"),
        (replace(AUTO, accel="kvm"), KVM, "", "kvm", "qemu with kvm"),
        (replace(AUTO, hypervisor="qemu"), KVM, "", "kvm", "qemu with kvm"),
        (AUTO, KVM, "qemu", "kvm", "qemu with kvm: pinned by the job"),
        (AUTO, FAKE, "", "tcg", "qemu with tcg: no usable KVM (cpu has neither vmx nor svm)"),
        (AUTO, FAKE, "fake", "none", "fake: pinned by the job"),
        (replace(AUTO, hypervisor="fake"), FAKE, "", "none", "fake"),
        (AUTO, BOTH, "cloud-hypervisor", "kvm", "cloud-hypervisor with kvm: pinned by the job"),
        (replace(AUTO, hypervisor="cloud-hypervisor"), BOTH, "", "kvm", "cloud-hypervisor with kvm"),
        (
            AUTO,
            replace(KVM, cloud_hypervisor=OLD_CH),
            "",
            "kvm",
            "qemu with kvm: cloud-hypervisor: version 50.0 is too old, expected at least 51.2",
        ),
        (AUTO, replace(FAKE, cloud_hypervisor=CH), "cloud-hypervisor", "none", "cloud-hypervisor: pinned by the job"),
        (
            AUTO,
            replace(FAKE, cloud_hypervisor=CH),
            "",
            "tcg",
            "qemu with tcg: no usable KVM (cpu has neither vmx nor svm)",
        ),
        (
            AUTO,
            replace(NO_KVM, cloud_hypervisor=CH),
            "",
            "tcg",
            "qemu with tcg: no usable KVM (cpu has neither vmx nor svm)",
        ),
    ],
)
def test_choice_and_its_reason(settings: HypervisorSettings, facts: Facts, pin: str, accel: str, reason: str) -> None:
    hypervisor, said = choose(replace(WITH_KERNEL, hypervisor=pin), offer(settings, facts))
    assert (hypervisor.accel, said) == (accel, reason)


def test_qemu_is_what_was_found() -> None:
    hypervisor, _ = choose(SPEC, offer(AUTO, KVM))
    assert hypervisor.version == "7.2.22"


@pytest.mark.parametrize(
    ("settings", "facts", "pin", "error", "message"),
    [
        (
            replace(AUTO, accel="kvm"),
            NO_KVM,
            "",
            HostError,
            f"no usable hypervisor ({CH_MISSING}; qemu: accel = 'kvm' in the plugin config, but {NO_USABLE_KVM})",
        ),
        (
            AUTO,
            replace(KVM, qemu=NO_QEMU),
            "",
            HostError,
            f"no usable hypervisor ({CH_MISSING}; qemu: qemu-system-x86_64 is not installed)",
        ),
        (AUTO, KVM, "fake", SpecError, "hypervisor = 'fake': expected one of cloud-hypervisor, qemu"),
        (
            replace(AUTO, hypervisor="qemu"),
            FAKE,
            "fake",
            SpecError,
            "hypervisor = 'fake': the plugin config of this node allows only 'qemu'",
        ),
        (
            replace(AUTO, hypervisor="cloud-hypervisor"),
            KVM,
            "",
            HostError,
            f"no usable hypervisor ({CH_MISSING})",
        ),
        (
            replace(AUTO, hypervisor="firecracker"),
            KVM,
            "",
            HostError,
            "hypervisor = 'firecracker' in the plugin config: expected one of auto, cloud-hypervisor, qemu",
        ),
    ],
)
def test_no_choice_says_who_can_change_it(
    settings: HypervisorSettings, facts: Facts, pin: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        choose(replace(SPEC, hypervisor=pin), offer(settings, facts))
    assert str(caught.value) == message


def test_who_may_not_run_on_qemu_is_not_told_to_install_it() -> None:
    with pytest.raises(HostError) as free:
        choose(SPEC, offer(AUTO, replace(NO_KVM, qemu=NO_QEMU)))
    assert free.value.hint == "install QEMU 7.2 or later, and look at `chv doctor`"
    with pytest.raises(HostError) as pinned:
        choose(replace(SPEC, hypervisor="cloud-hypervisor"), offer(AUTO, replace(NO_KVM, cloud_hypervisor=CH)))
    assert str(pinned.value) == f"no usable hypervisor (cloud-hypervisor: {NO_USABLE_KVM})"
    assert pinned.value.hint == "look at `chv doctor`"


def test_a_machine_that_needs_more_than_the_pinned_one_has_is_the_jobs_fault() -> None:
    nic = NicSpec(network="lan", link=UserLink(), mac="52:54:00:00:00:01")
    with pytest.raises(SpecError, match="fake: has no user-mode network"):
        choose(replace(SPEC, hypervisor="fake", nics=(nic,)), offer(AUTO, FAKE))


@pytest.mark.parametrize("firmware", ["uefi", FileRef(root=Path("/alloc"), relative="x.fd")])
def test_a_machine_boots_by_uefi_only_where_there_is_some(firmware: Literal["uefi"] | FileRef) -> None:
    uefi = replace(SPEC, firmware=firmware)
    assert choose(uefi, offer(AUTO, FAKE))[0].name == "qemu"
    with pytest.raises(SpecError, match="fake: has no UEFI firmware"):
        choose(replace(uefi, hypervisor="fake"), offer(AUTO, FAKE))
    with_kernel = replace(uefi, boot=DirectBoot(kernel=FileRef(root=Path("/alloc"), relative="k")))
    assert choose(replace(with_kernel, hypervisor="fake"), offer(AUTO, FAKE))[0].name == "fake"


def test_what_is_usable_and_why_the_rest_is_not() -> None:
    assert [one.name for one in offer(AUTO, FAKE).usable] == ["qemu"]
    assert offer(AUTO, FAKE).reasons == (CH_MISSING,)
    assert [one.name for one in offer(replace(AUTO, hypervisor="fake"), FAKE).usable] == ["fake"]
    without = offer(AUTO, replace(KVM, qemu=NO_QEMU))
    assert (without.usable, without.reasons) == ((), (CH_MISSING, "qemu: qemu-system-x86_64 is not installed"))


def test_nothing_usable_never_goes_without_a_reason() -> None:
    unknown = offer(replace(AUTO, hypervisor="firecracker"), KVM)
    assert unknown.usable == ()
    assert unknown.reasons == (
        "hypervisor = 'firecracker' in the plugin config: expected one of auto, cloud-hypervisor, qemu",
    )


def test_a_machine_of_an_unknown_hypervisor_is_not_talked_to(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="'firecracker'"):
        attach("firecracker", tmp_path)


def nic(link: UserLink | MacvtapLink) -> NicSpec:
    return NicSpec(network="lan", link=link, mac="52:54:00:00:00:01")


@pytest.mark.parametrize(
    ("spec", "firmware", "name", "why"),
    [
        (WITH_KERNEL, False, "cloud-hypervisor", ""),
        (replace(WITH_KERNEL, nics=(nic(MacvtapLink(parent="eth0")),)), False, "cloud-hypervisor", ""),
        (replace(WITH_KERNEL, nics=(nic(UserLink()),)), False, "qemu", "has no user-mode network"),
        (SPEC, False, "qemu", "has no firmware file to boot a disk with"),
        (SPEC, True, "cloud-hypervisor", ""),
        (replace(SPEC, firmware="uefi"), True, "cloud-hypervisor", ""),
        (replace(SPEC, guest_os="windows"), True, "cloud-hypervisor", ""),
        (replace(SPEC, firmware="bios"), True, "qemu", "has no BIOS"),
        (
            replace(SPEC, firmware=FileRef(root=Path("/alloc"), relative="OVMF.fd")),
            True,
            "qemu",
            "takes other firmware files",
        ),
        (
            replace(
                WITH_KERNEL,
                root=RootDisk(image=FileRef(root=Path("/mnt"), relative="a.qcow2", nfs=NFS), format="qcow2"),
            ),
            False,
            "qemu",
            "does not open files of an NFS server",
        ),
        (replace(WITH_KERNEL, vcpus=254), False, "cloud-hypervisor", ""),
        (replace(WITH_KERNEL, vcpus=255), False, "qemu", "has at most 254 vCPUs for a guest"),
        (replace(WITH_KERNEL, mounts=(VOLUME,) * 28), False, "cloud-hypervisor", ""),
        (
            replace(WITH_KERNEL, mounts=(VOLUME,) * 20, vfio=("0000:65:00.0",) * 8, seed=SEED),
            False,
            "qemu",
            "has places for 28 disks, interfaces, shares and devices, not for 29",
        ),
    ],
)
def test_cloud_hypervisor_runs_what_it_can(spec: MachineSpec, firmware: bool, name: str, why: str) -> None:
    settings = replace(AUTO, ch_firmware=Path("/srv/CLOUDHV.fd") if firmware else None)
    chosen, reason = choose(spec, offer(settings, replace(BOTH, firmware=firmware)))
    assert (chosen.name, reason) == (name, f"{name} with kvm" + (f": cloud-hypervisor: {why}" if why else ""))


def test_what_was_found_too_late_for_the_choice_is_a_reason_as_any_other() -> None:
    spec = replace(WITH_KERNEL, avoid={"cloud-hypervisor": "/srv/a.raw: uid 1 may not read it"})
    chosen, reason = choose(spec, offer(AUTO, BOTH))
    assert (chosen.name, reason) == (
        "qemu",
        "qemu with kvm: cloud-hypervisor: /srv/a.raw: uid 1 may not read it",
    )
    with pytest.raises(SpecError, match="cloud-hypervisor: /srv/a"):
        choose(replace(spec, hypervisor="cloud-hypervisor"), offer(AUTO, BOTH))


def test_only_cloud_hypervisor_keeps_an_interface_to_a_rate() -> None:
    limited = replace(WITH_KERNEL, nics=(replace(nic(MacvtapLink(parent="eth0")), rate_bytes=1 << 20),))
    assert choose(limited, offer(AUTO, BOTH))[0].name == "cloud-hypervisor"
    with pytest.raises(SpecError, match="qemu: does not limit the rate of a network_interface"):
        choose(limited, offer(AUTO, KVM))


def test_a_pinned_one_takes_the_firmware_file_of_the_job_and_no_user_network() -> None:
    pinned = replace(SPEC, hypervisor="cloud-hypervisor", firmware=FileRef(root=Path("/alloc"), relative="CLOUDHV.fd"))
    with_file = replace(BOTH, firmware=True)
    assert choose(pinned, offer(replace(AUTO, ch_firmware=Path("/x")), with_file))[0].name == "cloud-hypervisor"
    with pytest.raises(SpecError, match="cloud-hypervisor: has no user-mode network"):
        choose(replace(WITH_KERNEL, hypervisor="cloud-hypervisor", nics=(nic(UserLink()),)), offer(AUTO, BOTH))
