"""QEMU's command line, whole, for each kind of machine; and the values that it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.base import Accel, LaunchPlan
from vmlib.hypervisor.options import inherited, option, plain
from vmlib.hypervisor.qemu import Qemu
from vmlib.hypervisor.qemu_argv import tcg_buffer_mib
from vmlib.resources import (
    BootFiles,
    Credentials,
    DiskAttachment,
    FirmwareFiles,
    Forward,
    OpenFile,
    PciDevice,
    Resources,
    ShareAttachment,
    StreamNic,
    TapNic,
    TpmAttachment,
    UserNic,
)
from vmlib.spec import CoresSpec, DirectBoot, FileRef, MachineSpec

Golden = Callable[[str, str], None]

SPEC = MachineSpec(id="alloc/task/0a1b2c3d", name="alloc/task", owner="nomad", vcpus=2, memory_mib=512)
RES = Resources(run_dir=Path("/run/chv/m/x"), credentials=Credentials(uid=200000, gid=200000))
KERNEL = OpenFile(fd=10, path=Path("/data/vmlinuz"))
INITRD = OpenFile(fd=11, path=Path("/data/initrd.img"))
ROOT = OpenFile(fd=12, path=Path("/data/root"))
BACKING = OpenFile(fd=13, path=Path("/data/base.qcow2"))
SEED = OpenFile(fd=14, path=Path("/data/seed.iso"))
CODE = OpenFile(fd=15, path=Path("/data/code.fd"))
VARS = OpenFile(fd=16, path=Path("/data/vars.fd"))

DIRECT = replace(RES, boot=BootFiles(kernel=KERNEL, initrd=INITRD, cmdline="console=ttyS0"))
OVERLAY_DISK = DiskAttachment(name="root", file=ROOT, format="qcow2", backing=BACKING, backing_format="qcow2")
RAW_DISK = DiskAttachment(name="root", file=ROOT, format="raw")
BLOCK_DEVICE = DiskAttachment(name="volume0", file=SEED, format="raw", serial="data", block_device=True)
SEED_DISK = DiskAttachment(name="seed", file=SEED, format="raw", readonly=True, serial="chv-seed")
DATA_DISK = DiskAttachment(name="data", file=OpenFile(fd=17, path=Path("/data/data")), format="raw", serial="data")
LIMITED_DISK = replace(DATA_DISK, rate_bytes=100 << 20)
WINDOWS = replace(SPEC, guest_os="windows")
NIC = UserNic(name="net0", mac="52:54:00:12:34:56")
QUEUES = tuple(OpenFile(fd=20 + number, path=Path("/dev/chv0")) for number in range(4))
VHOST = tuple(OpenFile(fd=30 + number, path=Path("/dev/chv0")) for number in range(4))
TAP = TapNic(name="net0", mac="52:54:00:12:34:56", queues=QUEUES[:1])
SHARE = ShareAttachment(name="fs0", tag="srv-data", guest_path="/srv/data", source=Path("/data"))
TPM = TpmAttachment(name="tpm", state_dir=Path("/var/lib/chv/tpm"))
EXPOSED = CoresSpec(exclusive=True, expose=True)

GPU = PciDevice(address="0000:3b:00.0", group="12")


def plan(spec: MachineSpec, res: Resources, accel: Accel = "tcg") -> LaunchPlan:
    return Qemu(binary="/usr/bin/qemu-system-x86_64", accel=accel).plan(spec, res, reason="because")


def rendered(launch: LaunchPlan) -> str:
    """The plan as text: an option and its value share a line."""
    lines = [launch.argv[0]]
    for word in launch.argv[1:]:
        if word.startswith("-") or not lines[-1].startswith("-") or " " in lines[-1]:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    rest = {
        "files": dict(launch.files),
        "listeners": dict(launch.listeners),
        "environment": dict(launch.environment),
        "on_reboot": launch.on_reboot,
        "on_panic": launch.on_panic,
    }
    return "\n".join(lines) + "\n\n" + json.dumps(rest, indent=2) + "\n"


def value_of(launch: LaunchPlan, name: str) -> list[str]:
    return [launch.argv[at + 1] for at, word in enumerate(launch.argv) if word == name]


@pytest.mark.parametrize(
    ("name", "spec", "res", "accel"),
    [
        ("direct-boot", SPEC, DIRECT, "tcg"),
        ("overlay", SPEC, replace(RES, disks=(OVERLAY_DISK,)), "tcg"),
        ("uefi", SPEC, replace(RES, firmware=FirmwareFiles(code=CODE, variables=VARS), disks=(OVERLAY_DISK,)), "tcg"),
        (
            "uefi-smm",
            replace(SPEC, hugepages=True),
            replace(RES, firmware=FirmwareFiles(code=CODE, variables=VARS, smm=True), disks=(RAW_DISK,)),
            "kvm",
        ),
        (
            "windows",
            WINDOWS,
            replace(
                RES,
                firmware=FirmwareFiles(code=CODE, variables=VARS),
                disks=(OVERLAY_DISK, DATA_DISK, SEED_DISK),
            ),
            "kvm",
        ),
        (
            "windows-tcg",
            WINDOWS,
            replace(RES, firmware=FirmwareFiles(code=CODE, variables=VARS), disks=(OVERLAY_DISK,)),
            "tcg",
        ),
        ("balloon-and-rate", replace(SPEC, balloon=True), replace(RES, disks=(OVERLAY_DISK, LIMITED_DISK)), "tcg"),
        ("own-firmware", SPEC, replace(RES, firmware=FirmwareFiles(code=CODE), disks=(RAW_DISK,)), "tcg"),
        ("raw-copy-with-seed", SPEC, replace(RES, disks=(RAW_DISK, SEED_DISK)), "tcg"),
        (
            "user-nic",
            SPEC,
            replace(
                DIRECT,
                nics=(
                    replace(
                        NIC,
                        forwards=(
                            Forward(protocol="tcp", host_ip="", host_port=25000, guest_port=80),
                            Forward(protocol="udp", host_ip="192.168.1.5", host_port=25001, guest_port=53),
                        ),
                    ),
                ),
            ),
            "tcg",
        ),
        ("tap", SPEC, replace(DIRECT, nics=(TAP,)), "tcg"),
        (
            "taps-vhost",
            SPEC,
            replace(
                DIRECT,
                nics=(
                    replace(TAP, queues=QUEUES, vhost=VHOST, mtu=1450),
                    replace(TAP, name="net1", mac="52:54:00:12:34:57", vhost=VHOST[:1]),
                ),
            ),
            "kvm",
        ),
        ("stream", SPEC, replace(DIRECT, nics=(StreamNic(name="net0", mac="52:54:00:12:34:56"),)), "tcg"),
        ("kvm", SPEC, DIRECT, "kvm"),
        ("threads-exposed", replace(SPEC, vcpus=4, cores=EXPOSED), DIRECT, "kvm"),
        ("huge-pages", replace(SPEC, hugepages=True), DIRECT, "tcg"),
        ("shares", SPEC, replace(DIRECT, shares=(SHARE, replace(SHARE, name="fs1", tag="t", readonly=True))), "tcg"),
        ("share-and-huge-pages", replace(SPEC, hugepages=True), replace(DIRECT, shares=(SHARE,)), "kvm"),
        ("devices", SPEC, replace(DIRECT, vfio=(GPU, replace(GPU, address="0000:3b:00.1"))), "kvm"),
        ("tpm", SPEC, replace(DIRECT, tpm=TPM), "tcg"),
        ("block-device", SPEC, replace(RES, disks=(OVERLAY_DISK, BLOCK_DEVICE)), "tcg"),
        ("panic-restart-reboot-exit", replace(SPEC, on_panic="restart", on_reboot="exit"), DIRECT, "tcg"),
        (
            "nasty",
            SPEC,
            replace(
                RES,
                boot=BootFiles(kernel=KERNEL, initrd=None, cmdline='a=1,2 b="x y" -S,fd=3 {not-ours} $(id) ä'),
                disks=(replace(RAW_DISK, serial="a,readonly=on,b=c"),),
            ),
            "tcg",
        ),
    ],
)
def test_command_line(name: str, spec: MachineSpec, res: Resources, accel: Accel, golden: Golden) -> None:
    golden(f"qemu/{name}.txt", rendered(plan(spec, res, accel)))


def test_every_placeholder_has_its_descriptor() -> None:
    firmware = FirmwareFiles(code=CODE, variables=VARS)
    launch = plan(SPEC, replace(DIRECT, disks=(OVERLAY_DISK, SEED_DISK), firmware=firmware))
    named = {word.split("{fd:")[1].split("}")[0] for word in launch.argv if "{fd:" in word}
    assert named == launch.files.keys() | launch.listeners.keys()
    assert launch.files == {
        "kernel": 10, "initrd": 11, "disk.root": 12, "disk.root.backing": 13, "disk.seed": 14,
        "firmware": 15, "firmware-vars": 16,
    }  # fmt: skip


REMOTE_BACKING = replace(OVERLAY_DISK, backing=replace(BACKING, remote=True))
REMOTE_ROOT = replace(RAW_DISK, file=replace(ROOT, remote=True))


@pytest.mark.parametrize(
    ("io_uring", "disk", "node", "aio", "direct"),
    [
        (True, REMOTE_BACKING, "root-backing-file", "io_uring", False),
        (True, REMOTE_BACKING, "root-file", "threads", False),  # the overlay lies on this host
        (True, REMOTE_ROOT, "root-file", "io_uring", True),
        (False, REMOTE_ROOT, "root-file", "threads", True),
        (True, OVERLAY_DISK, "root-backing-file", "threads", False),
    ],
)
def test_what_lies_on_a_file_server_is_used_so_that_sigkill_ends_it(
    io_uring: bool, disk: DiskAttachment, node: str, aio: str, direct: bool
) -> None:
    launch = Qemu(binary="qemu", io_uring=io_uring).plan(SPEC, replace(RES, disks=(disk,)), reason="because")
    nodes = {found["node-name"]: found for found in map(json.loads, value_of(launch, "-blockdev"))}
    assert (nodes[node]["aio"], nodes[node]["cache"]["direct"]) == (aio, direct)


def test_no_path_of_a_file_is_on_the_command_line() -> None:
    launch = plan(SPEC, replace(DIRECT, disks=(OVERLAY_DISK, SEED_DISK)))
    assert not [word for word in launch.argv if "/data" in word]


def test_an_image_of_its_own_never_gets_a_backing_file() -> None:
    launch = plan(SPEC, replace(RES, disks=(replace(RAW_DISK, format="qcow2"),)))
    top = json.loads(value_of(launch, "-blockdev")[-1])
    assert top["driver"] == "qcow2"
    assert top["backing"] is None


def test_words_of_the_job_do_not_become_options() -> None:
    launch = plan(SPEC, replace(RES, disks=(replace(RAW_DISK, serial="a,readonly=on,b=c"),)))
    (device,) = [word for word in value_of(launch, "-device") if word.startswith("virtio-blk-pci")]
    assert ",serial=a,,readonly=on,,b=c,bootindex=1," in device


def with_boot(cmdline: str) -> Resources:
    return replace(RES, boot=BootFiles(kernel=KERNEL, initrd=None, cmdline=cmdline))


@pytest.mark.parametrize(
    ("spec", "res", "message"),
    [
        (replace(SPEC, vcpus=0), DIRECT, "vcpus = 0: expected 1 to 255"),
        (replace(SPEC, vcpus=256), DIRECT, "vcpus = 256: expected 1 to 255"),
        (replace(SPEC, memory_mib=0), DIRECT, "memory = 0: expected at least 1 MiB"),
        (
            replace(SPEC, vcpus=3, cores=EXPOSED),
            DIRECT,
            "vcpus = 3: expected an even number with threads = 'expose', two for each core",
        ),
        (
            replace(SPEC, memory_mib=513, hugepages=True),
            DIRECT,
            "memory = 513: expected a multiple of 2 MiB with hugepages = true",
        ),
        (SPEC, RES, "nothing to boot from: expected image or kernel"),
        (
            replace(WINDOWS, firmware="bios"),
            replace(RES, disks=(RAW_DISK,)),
            "guest_os = 'windows': boots by UEFI from a disk, expected neither kernel nor firmware = 'bios'",
        ),
        (
            replace(WINDOWS, boot=DirectBoot(kernel=FileRef(root=Path("/alloc"), relative="vmlinuz"))),
            DIRECT,
            "guest_os = 'windows': boots by UEFI from a disk, expected neither kernel nor firmware = 'bios'",
        ),
        (SPEC, with_boot("x" * 2048), "cmdline: 2048 bytes long, expected at most 2047"),
        (SPEC, with_boot("a\0b"), "cmdline = 'a\\x00b': holds a NUL byte"),
        (SPEC, with_boot("a={fd:kernel}"), "cmdline = 'a={fd:kernel}': holds '{fd:', which cannot be passed on"),
        (
            SPEC,
            replace(RES, disks=(replace(RAW_DISK, serial="x" * 21),)),
            "serial of disk root: 21 bytes long, expected at most 20",
        ),
        (
            SPEC,
            replace(RES, disks=(replace(RAW_DISK, name="a,b"),)),
            "disk name = 'a,b': expected a lower case letter, then at most 15 of a-z 0-9 _ -",
        ),
        (SPEC, replace(RES, disks=(RAW_DISK, RAW_DISK)), "disk names root, root: expected each once"),
        (
            SPEC,
            replace(RES, disks=(replace(OVERLAY_DISK, backing_format=None),)),
            "disk 'root': only qcow2 has a backing image, and the format of that must be known",
        ),
        (
            SPEC,
            replace(RES, disks=tuple(replace(RAW_DISK, name=f"d{n}") for n in range(21))),
            "21 disks: expected at most 20",
        ),
        (SPEC, replace(DIRECT, shares=(SHARE,) * 9), "9 shares: expected at most 8"),
        (
            SPEC,
            replace(DIRECT, shares=(replace(SHARE, tag="t" * 37),)),
            "tag of the share at /srv/data: 37 bytes long, expected at most 36",
        ),
        (SPEC, replace(DIRECT, vfio=(GPU,) * 9), "9 devices in vfio: expected at most 8"),
        (
            SPEC,
            replace(DIRECT, vfio=(replace(GPU, address="x"),)),
            "vfio = 'x': expected a PCI address, as 0000:65:00.0",
        ),
        (SPEC, replace(DIRECT, nics=(NIC,) * 9), "9 network interfaces: expected at most 8"),
        (
            SPEC,
            replace(DIRECT, nics=(replace(NIC, mac="52:54:00:12:34:56,x=y"),)),
            "mac = '52:54:00:12:34:56,x=y': expected six pairs of lower case hex digits, as 52:54:00:12:34:56",
        ),
        (
            SPEC,
            replace(
                DIRECT,
                nics=(replace(NIC, forwards=(Forward(protocol="tcp", host_ip="", host_port=0, guest_port=80),)),),
            ),
            "port 0: expected 1 to 65535",
        ),
    ],
)
def test_what_qemu_would_misread_is_refused(spec: MachineSpec, res: Resources, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(spec, res)
    assert str(caught.value) == message


def test_qemu_is_in_the_namespace_of_its_own_router_alone() -> None:
    def where(*nics: UserNic | StreamNic) -> str:
        return plan(SPEC, replace(DIRECT, nics=nics)).netns

    inside = replace(NIC, netns="/run/netns/a")
    by_passt = StreamNic(name="net1", mac="52:54:00:12:34:57", netns="/run/netns/a")
    assert where(NIC) == where(by_passt) == where() == ""
    assert where(inside) == where(inside, by_passt) == "/run/netns/a"
    with pytest.raises(SpecError, match=r"^user networks in several network namespaces"):
        where(inside, replace(NIC, name="net1", mac="52:54:00:12:34:57"))
    assert plan(SPEC, replace(DIRECT, nics=(by_passt,))).listeners["net1"] == "net1"


def test_a_host_address_that_cannot_be_forwarded_is_the_operators() -> None:
    forward = Forward(protocol="tcp", host_ip="fe80::1", host_port=25000, guest_port=80)
    with pytest.raises(HostError, match="forwards IPv4 only"):
        plan(SPEC, replace(DIRECT, nics=(replace(NIC, forwards=(forward,)),)))


def test_limits_leave_room_on_the_bus() -> None:
    disks = tuple(replace(RAW_DISK, name=f"d{n}") for n in range(20))
    nics = tuple(replace(NIC, mac=f"52:54:00:00:00:{n:02x}") for n in range(8))
    devices = value_of(plan(SPEC, replace(DIRECT, disks=disks, nics=nics)), "-device")
    slots = [word.rsplit("addr=", 1)[1] for word in devices if "addr=" in word]
    places = [slot.split(",")[0] for slot in slots]
    assert len(places) == len(set(places)) == 31
    assert max(int(place.split(".")[0], 16) for place in places) < 0x1F  # the south bridge's


def test_every_file_has_a_descriptor_set_of_its_own() -> None:
    disks = tuple(replace(OVERLAY_DISK, name=f"d{n}") for n in range(20))
    launch = plan(SPEC, replace(RES, disks=disks, firmware=FirmwareFiles(code=CODE, variables=VARS)))
    sets = [word.split(",set=")[1].split(",")[0] for word in value_of(launch, "-add-fd")]
    assert len(sets) == len(set(sets)) == 42


@pytest.mark.parametrize(("memory_mib", "expected"), [(64, 64), (512, 128), (2048, 256), (1 << 20, 256)])
def test_translation_buffer_is_bounded(memory_mib: int, expected: int) -> None:
    assert tcg_buffer_mib(memory_mib) == expected


def test_ordinary_ram_is_of_any_size_and_names_no_backend() -> None:
    launch = plan(replace(SPEC, memory_mib=513), DIRECT)
    assert value_of(launch, "-m") == ["513M"]
    assert not [word for word in launch.argv if "memory-backend" in word]


def test_one_start_has_its_own_name_and_a_job_cannot_choose_it() -> None:
    names = {value_of(plan(replace(SPEC, id=id_), DIRECT), "-name")[0] for id_ in ("a,debug-threads=off", "b")}
    assert len(names) == 2
    assert all(name.startswith("guest=") and name.endswith(",debug-threads=on") and len(name) == 35 for name in names)


def test_commas_are_doubled_and_placeholders_pass() -> None:
    assert option("a", ("b", "x,y"), ("c", "")) == "a,b=x,,y,c="
    assert option("", ("fd", inherited("qmp"))) == "fd={fd:qmp}"
    assert plain("fine", key="k", max_bytes=4) == "fine"
    with pytest.raises(SpecError):
        option("a", ("b", "{fd:qmp}"))


def test_a_boot_that_names_a_kernel_uses_the_staged_one() -> None:
    ref = FileRef(root=Path("/alloc"), relative="evil,file")
    launch = plan(replace(SPEC, boot=DirectBoot(kernel=ref, cmdline="x")), DIRECT)
    assert value_of(launch, "-kernel") == ["/proc/self/fd/{fd:kernel}"]
