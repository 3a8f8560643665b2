"""Cloud Hypervisor's machine config, whole, for each kind of machine; and the values that it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.ch.schema import misfits
from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.base import LaunchPlan
from vmlib.hypervisor.ch_config import longest_string
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.resources import (
    BootFiles,
    Credentials,
    DiskAttachment,
    FirmwareFiles,
    NumaCell,
    OpenFile,
    PciDevice,
    Resources,
    ShareAttachment,
    TapNic,
    TpmAttachment,
    UserNic,
)
from vmlib.spec import CoresSpec, DirectBoot, FileRef, MachineSpec, MacvtapLink, NicSpec

Golden = Callable[[str, str], None]


def file(fd: int, name: str) -> OpenFile:
    return OpenFile(fd=fd, path=Path("/data") / name)


SPEC = MachineSpec(id="alloc/task/0a1b2c3d", name="alloc/task", owner="nomad", vcpus=2, memory_mib=512)
RES = Resources(
    run_dir=Path("/run/chv/m/x"),
    credentials=Credentials(uid=200000, gid=200000, groups=(104,)),
    vmm_dir=file(9, "v"),
    landlock=True,
)
DIRECT = replace(
    RES, boot=BootFiles(kernel=file(10, "vmlinuz"), initrd=file(11, "initrd.img"), cmdline="console=ttyS0")
)
FIRMWARE = replace(RES, firmware=FirmwareFiles(code=file(15, "CLOUDHV.fd")))
OVERLAY = DiskAttachment(
    name="root", file=file(12, "root"), format="qcow2", backing=file(13, "base.raw"), backing_format="raw"
)
RAW = DiskAttachment(name="root", file=file(12, "root"), format="raw")
SEED = DiskAttachment(name="seed", file=file(14, "seed.iso"), format="raw", readonly=True, serial="chv-seed")
DATA = DiskAttachment(name="data", file=file(17, "data"), format="raw", serial="data", rate_bytes=100 << 20)
NIC = TapNic(name="net0", mac="52:54:00:12:34:56", queues=(file(20, "tap5"),))
TWO_QUEUES = replace(NIC, name="net1", mac="52:54:00:12:34:57", queues=(file(21, "tap6"), file(22, "tap6")))
SHARE = ShareAttachment(name="fs0", tag="chv:srv-data", guest_path="/srv/data", source=Path("/srv/data"))
WITH_KERNEL = DirectBoot(kernel=FileRef(root=Path("/alloc"), relative="vmlinuz"))
LAN = NicSpec(network="lan", link=MacvtapLink(parent="eth0"))
OWN_CORES = CoresSpec(exclusive=True)

GPU = PciDevice(address="0000:3b:00.0", group="12")


def plan(spec: MachineSpec, res: Resources) -> LaunchPlan:
    return CloudHypervisor(binary="/usr/local/bin/cloud-hypervisor", version="53.0").plan(spec, res, reason="because")


def rendered(launch: LaunchPlan) -> str:
    whole = {
        "argv": list(launch.argv),
        "files": dict(launch.files),
        "listeners": dict(launch.listeners),
        "environment": dict(launch.environment),
        "monitor": launch.monitor,
        "dialect": launch.dialect,
        "boot_timeout_s": launch.boot_timeout_s,
        "requests": [{"call": one.call, "fds": list(one.fds), "body": dict(one.body)} for one in launch.requests],
    }
    return json.dumps(whole, indent=2) + "\n"


MACHINES = {
    "direct-boot": (SPEC, DIRECT),
    "overlay-with-seed": (SPEC, replace(DIRECT, disks=(OVERLAY, SEED))),
    "firmware": (SPEC, replace(FIRMWARE, disks=(RAW, DATA, SEED))),
    "windows": (replace(SPEC, guest_os="windows", tpm=True), replace(
        FIRMWARE, disks=(OVERLAY,), tpm=TpmAttachment(name="tpm", state_dir=Path("/data/tpm"))
    )),
    "interfaces": (
        replace(SPEC, nics=(LAN, replace(LAN, rate_bytes=1 << 20))),
        replace(DIRECT, nics=(NIC, TWO_QUEUES)),
    ),
    "shares": (SPEC, replace(DIRECT, shares=(SHARE, replace(SHARE, name="fs1", tag="chv:other")))),
    "cores": (
        replace(SPEC, cores=OWN_CORES),
        replace(DIRECT, affinity=(frozenset({2}), frozenset({3})), cells=(NumaCell(node=0, vcpus=(0, 1)),)),
    ),
    "cores-exposed": (
        replace(SPEC, vcpus=4, cores=CoresSpec(exclusive=True, expose=True)),
        replace(DIRECT, affinity=tuple(frozenset({cpu}) for cpu in (2, 10, 3, 11))),
    ),
    "numa": (
        replace(SPEC, vcpus=3, memory_mib=1024, cores=OWN_CORES),
        replace(
            DIRECT,
            affinity=tuple(frozenset({cpu}) for cpu in (2, 3, 8)),
            cells=(NumaCell(node=0, vcpus=(0, 1)), NumaCell(node=1, vcpus=(2,))),
        ),
    ),
    "hugepages": (replace(SPEC, hugepages=True), DIRECT),
    "balloon": (replace(SPEC, balloon=True), DIRECT),
    "devices": (SPEC, replace(DIRECT, disks=(OVERLAY,), vfio=(GPU, replace(GPU, address="0000:3b:00.1")))),
    "no-landlock": (SPEC, replace(DIRECT, disks=(OVERLAY,), landlock=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_plan_of_each_kind_of_machine(golden: Golden, name: str) -> None:
    golden(f"ch/{name}.json", rendered(plan(*MACHINES[name])))


@pytest.mark.parametrize("name", MACHINES)
def test_every_body_is_one_that_the_api_describes(name: str) -> None:
    for request in plan(*MACHINES[name]).requests:
        assert misfits(request.call, dict(request.body)) == []


@pytest.mark.parametrize("name", MACHINES)
def test_every_id_is_short_enough_for_the_names_of_its_threads(name: str) -> None:
    def ids(value: object) -> list[str]:
        if isinstance(value, dict):
            here = [value["id"]] if "id" in value else []
            return here + [one for inner in value.values() for one in ids(inner)]
        return [one for inner in value for one in ids(inner)] if isinstance(value, list) else []

    found = [one for request in plan(*MACHINES[name]).requests for one in ids(dict(request.body))]
    assert all(len(one) <= 10 and not one.startswith("_") for one in found)
    assert len(found) == len(set(found))


def test_zones_hold_all_of_the_memory_in_whole_huge_pages() -> None:
    cells = (NumaCell(node=0, vcpus=(0,)), NumaCell(node=1, vcpus=(1, 2)))
    spec = replace(SPEC, vcpus=3, memory_mib=1000, hugepages=True, cores=OWN_CORES)
    body = json.loads(json.dumps(dict(plan(spec, replace(DIRECT, cells=cells)).requests[0].body)))
    sizes = [zone["size"] for zone in body["memory"]["zones"]]
    assert sum(sizes) == 1000 << 20
    assert all(size % (2 << 20) == 0 for size in sizes)


def test_huge_pages_get_more_time_to_boot() -> None:
    large = replace(SPEC, hugepages=True, memory_mib=64 << 10)
    assert plan(large, DIRECT).boot_timeout_s > plan(SPEC, DIRECT).boot_timeout_s + 60


@pytest.mark.parametrize(
    ("spec", "res", "message"),
    [
        (replace(SPEC, vcpus=0), DIRECT, "vcpus = 0: expected 1 to 254"),
        (replace(SPEC, vcpus=255), DIRECT, "vcpus = 255: expected 1 to 254"),
        (replace(SPEC, vcpus=3, cores=CoresSpec(expose=True)), DIRECT, "expected an even number"),
        (replace(SPEC, memory_mib=0), DIRECT, "memory = 0"),
        (replace(SPEC, memory_mib=511, hugepages=True), DIRECT, "expected a multiple of 2 MiB"),
        (SPEC, RES, "expected a kernel or a firmware file"),
        (SPEC, FIRMWARE, "nothing to boot from"),
        (replace(SPEC, guest_os="windows", boot=WITH_KERNEL), DIRECT, "expected no kernel"),
        (SPEC, replace(DIRECT, disks=(RAW, RAW)), "expected each once"),
        (SPEC, replace(DIRECT, disks=tuple(replace(RAW, name=f"d{i}") for i in range(29))), "29 disks"),
        (
            replace(SPEC, balloon=True),
            replace(DIRECT, disks=tuple(replace(RAW, name=f"d{i}") for i in range(28))),
            "29 disks, interfaces, shares and devices: expected at most 28",
        ),
        (SPEC, replace(DIRECT, disks=(replace(RAW, name="Ä"),)), "disk name"),
        (SPEC, replace(DIRECT, disks=(replace(RAW, serial="x" * 21),)), "expected at most 20"),
        (SPEC, replace(DIRECT, disks=(replace(OVERLAY, format="raw"),)), "only qcow2 has a backing image"),
        (replace(SPEC, nics=(LAN,)), replace(DIRECT, nics=(replace(NIC, mac="52:54"),)), "six pairs"),
        (
            replace(SPEC, nics=(LAN,)),
            replace(DIRECT, nics=(UserNic(name="net0", mac=NIC.mac),)),
            "no user-mode network",
        ),
        (SPEC, replace(DIRECT, shares=(replace(SHARE, tag="x" * 37),)), "expected at most 36"),
        (SPEC, replace(DIRECT, vfio=(replace(GPU, address="../../../etc"),)), "expected a PCI address"),
        (replace(SPEC, balloon=True), replace(DIRECT, vfio=(GPU,)), "balloon = true: .* expected one of the two"),
        (SPEC, replace(DIRECT, boot=BootFiles(kernel=file(1, "k"), initrd=None, cmdline="x" * 2048)), "2047"),
        (SPEC, replace(DIRECT, boot=BootFiles(kernel=file(1, "k"), initrd=None, cmdline="a\0b")), "NUL"),
    ],
)
def test_refuses_what_would_not_arrive_as_it_is_meant(spec: MachineSpec, res: Resources, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(spec, res)


def test_cpus_that_it_cannot_name_are_left_to_whoever_pins_its_threads_from_outside() -> None:
    def cpus(*places: int) -> object:
        res = replace(DIRECT, affinity=tuple(frozenset({cpu}) for cpu in places))
        return plan(replace(SPEC, cores=OWN_CORES), res).requests[0].body["cpus"]

    assert "'affinity'" in str(cpus(1022, 1023))
    assert "'affinity'" not in str(cpus(1023, 1024))


def test_no_string_is_long_enough_to_kill_the_vmm_by_its_own_answer() -> None:
    assert longest_string({"a": [{"b": "xyz"}, "é"], "c": 7}) == 3
    long = replace(DIRECT, boot=BootFiles(kernel=file(10, "vmlinuz"), initrd=None, cmdline="x" * 2047))
    assert max(longest_string(one.body) for one in plan(SPEC, long).requests) < 4096


def test_without_a_firmware_file_no_disk_boots() -> None:
    bare = CloudHypervisor()
    assert not bare.capabilities.firmware_boot
    with pytest.raises(HostError, match="none is configured"):
        bare.uefi_firmware()
    assert CloudHypervisor(firmware=Path("/srv/CLOUDHV.fd")).uefi_firmware().code == Path("/srv/CLOUDHV.fd")
