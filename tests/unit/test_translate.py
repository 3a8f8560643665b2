"""From a task of Nomad's to a MachineSpec: paths, ports, links, names and the seed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver._pb import driver_pb2 as pb
from driver.config_network import InterfaceConfig, UserNetwork
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import DiskConfig, TaskConfig, decode_task_config
from driver.decode import Complaints
from driver.links import derived_mac
from driver.translate import default_hostname, lints, machine_name, machine_spec
from vmlib.cores.topology import Core, NumaNode, Topology
from vmlib.errors import SpecError
from vmlib.spec import (
    CoresSpec,
    DirectBoot,
    DiskFormat,
    FileRef,
    MachineSpec,
    MountSpec,
    NfsExport,
    NicSpec,
    PortForward,
    RootDisk,
    RootMode,
    SeedSpec,
    UserLink,
)

ALLOC = "5f0e1c2a-1111-2222-3333-444455556666"
ALLOC_DIR = Path("/var/nomad/alloc") / ALLOC
TASK_DIR = ALLOC_DIR / "vm"
KERNEL = TaskConfig(kernel="local/vmlinuz")
DEFAULTS = decode_plugin_config(b"\x80")


def a_task(**fields: Any) -> pb.TaskConfig:
    known: dict[str, Any] = {
        "id": f"{ALLOC}/vm/0a1b2c3d",
        "name": "vm",
        "alloc_id": ALLOC,
        "alloc_dir": str(ALLOC_DIR),
        "job_name": "web",
        "stdout_path": "/x/out.fifo",
        "stderr_path": "/x/err.fifo",
        "resources": resources(),
    }
    return pb.TaskConfig(**known | fields)


def resources(*ports: pb.PortMapping, memory_mb: int = 512) -> pb.Resources:
    memory = pb.AllocatedMemoryResources(memory_mb=memory_mb)
    return pb.Resources(allocated_resources=pb.AllocatedTaskResources(memory=memory), ports=ports)


def a_plugin(
    *networks: str, default_network: str = "", image_paths: tuple[str, ...] = ("/srv/images", "/mnt/i")
) -> PluginConfig:
    fields = {field: getattr(DEFAULTS, field) for field in DEFAULTS.__dataclass_fields__}
    return PluginConfig(
        **fields
        | {
            "networks": {name: UserNetwork(name=name) for name in networks},
            "default_network": default_network,
            "image_paths": tuple(Path(path) for path in image_paths),
        }
    )


A_NETWORK = 'expected "alloc" or a network of this node\'s plugin block'
LABELS = {"namespace": "default", "job": "web", "group": "", "task": "vm", "alloc": ALLOC, "index": "0"}


def spec_of(options: TaskConfig, plugin: PluginConfig | None = None, **fields: Any) -> MachineSpec:
    return machine_spec(a_task(**fields), options, plugin or a_plugin(), owner="nomad")


def refused(options: TaskConfig, plugin: PluginConfig | None = None, **fields: Any) -> str:
    with pytest.raises(SpecError) as exc:
        spec_of(options, plugin, **fields)
    return str(exc.value)


def test_a_kernel_alone_makes_a_machine_without_disk_seed_or_link() -> None:
    assert spec_of(KERNEL) == MachineSpec(
        id=f"{ALLOC}/vm/0a1b2c3d",
        name=f"{ALLOC}/vm",
        owner="nomad",
        vcpus=1,
        memory_mib=512,
        boot=DirectBoot(kernel=FileRef(root=TASK_DIR, relative="local/vmlinuz"), initrd=None, cmdline="console=ttyS0"),
        stdout=Path("/x/out.fifo"),
        stderr=Path("/x/err.fifo"),
        labels=LABELS,
        alive_while=ALLOC_DIR,
        cores=CoresSpec(exclusive=True),
    )


def test_every_start_of_an_alloc_is_the_same_instance_at_the_same_addresses() -> None:
    options = TaskConfig(kernel="local/vmlinuz", hostname="web-1", network_interfaces=(InterfaceConfig(network="u"),))
    first = spec_of(options, a_plugin("u"))
    again = spec_of(options, a_plugin("u"), id=f"{ALLOC}/vm/another-start")
    other = spec_of(options, a_plugin("u"), alloc_id=ALLOC.replace("5", "6"))
    assert (again.seed, again.nics) == (first.seed, first.nics)
    assert first.seed is not None
    assert other.seed is not None
    assert other.seed.instance_id != first.seed.instance_id
    assert other.nics[0].mac != first.nics[0].mac


def test_everything_a_job_may_say_reaches_the_machine() -> None:
    options = TaskConfig(
        image="/srv/images/debian.qcow2",
        image_format="qcow2",
        root_mode="copy",
        root_size_bytes=20 << 30,
        kernel="/local/vmlinuz",
        initrd="/alloc/data/initrd",
        cmdline="quiet",
        vcpus=3,
        hostname="web-1",
        ssh_authorized_keys=("ssh-ed25519 AAAA",),
        user_data="#cloud-config\n{}\n",
        network_config="version: 2\n",
        network_interfaces=(InterfaceConfig(network="u", mac="52:54:00:00:00:01"), InterfaceConfig(network="w")),
        on_reboot="exit",
        on_panic="restart",
        hypervisor="qemu",
    )
    ports = (
        pb.PortMapping(label="http", value=20001, to=80, host_ip="10.0.0.7"),
        pb.PortMapping(label="same", value=20002, to=0, host_ip=""),
        pb.PortMapping(label="also", value=20003, to=-1, host_ip=""),
    )
    spec = spec_of(
        options,
        a_plugin("u", "w", default_network="w"),
        resources=resources(*ports),
        env={"A": "task", "B": "2"},
        device_env={"A": "device", "C": "3"},
    )
    assert spec == MachineSpec(
        id=f"{ALLOC}/vm/0a1b2c3d",
        name=f"{ALLOC}/vm",
        owner="nomad",
        vcpus=3,
        memory_mib=512,
        boot=DirectBoot(
            kernel=FileRef(root=TASK_DIR, relative="local/vmlinuz"),
            initrd=FileRef(root=ALLOC_DIR / "alloc", relative="data/initrd"),
            cmdline="quiet",
        ),
        root=RootDisk(
            image=FileRef(root=Path("/srv/images"), relative="debian.qcow2"),
            format="qcow2",
            mode="copy",
            size_bytes=20 << 30,
        ),
        seed=SeedSpec(
            instance_id=f"{ALLOC}-vm",
            hostname="web-1",
            ssh_authorized_keys=("ssh-ed25519 AAAA",),
            user_data=b"#cloud-config\n{}\n",
            network_config=b"version: 2\n",
            environment={"A": "task", "B": "2", "C": "3"},
        ),
        nics=(
            NicSpec(
                network="u",
                link=UserLink(
                    forwards=(
                        PortForward(label="http", host_ip="10.0.0.7", host_port=20001, guest_port=80),
                        PortForward(label="same", host_ip="", host_port=20002, guest_port=20002),
                        PortForward(label="also", host_ip="", host_port=20003, guest_port=20003),
                    )
                ),
                mac="52:54:00:00:00:01",
            ),
            NicSpec(network="w", link=UserLink(), mac=derived_mac(ALLOC, "vm", 1)),
        ),
        hypervisor="qemu",
        on_reboot="exit",
        on_panic="restart",
        stdout=Path("/x/out.fifo"),
        stderr=Path("/x/err.fifo"),
        labels=LABELS,
        alive_while=ALLOC_DIR,
        cores=CoresSpec(exclusive=True),
    )


@pytest.mark.parametrize(
    ("words", "firmware"),
    [
        ("", ""),
        ("bios", "bios"),
        ("uefi", "uefi"),
        ("./uefi", FileRef(root=TASK_DIR, relative="uefi")),
        ("local/x.fd", FileRef(root=TASK_DIR, relative="local/x.fd")),
        ("/srv/images/x.fd", FileRef(root=Path("/srv/images"), relative="x.fd")),
    ],
)
def test_firmware_is_a_word_or_a_path_like_any_other(words: str, firmware: str | FileRef) -> None:
    assert spec_of(TaskConfig(image="local/i.raw", firmware=words)).firmware == firmware


@pytest.mark.parametrize(
    ("firmware", "boots"),
    [("", "uefi"), ("uefi", "uefi"), ("local/x.fd", FileRef(root=TASK_DIR, relative="local/x.fd"))],
)
def test_windows_boots_by_uefi_unless_the_job_brings_firmware(firmware: str, boots: str | FileRef) -> None:
    spec = spec_of(TaskConfig(image="local/i.raw", guest_os="windows", firmware=firmware))
    assert (spec.guest_os, spec.boot_firmware) == ("windows", boots)


def test_hooks_tell_a_task_by_its_place_and_the_jobs_meta() -> None:
    message = a_task()
    message.parent_job_id, message.task_group_name = "nightly", "g"
    message.env.update({"NOMAD_META_volume": "pg", "NOMAD_META_VOLUME": "pg", "NOMAD_ALLOC_INDEX": "2", "SECRET": "s"})
    assert machine_spec(message, KERNEL, a_plugin(), owner="nomad").labels == {
        "namespace": "default",
        "job": "nightly",
        "group": "g",
        "task": "vm",
        "alloc": ALLOC,
        "index": "2",
        "meta.volume": "pg",
        "meta.VOLUME": "pg",
    }


def test_linux_boots_by_what_the_hypervisor_has() -> None:
    assert spec_of(TaskConfig(image="local/i.raw")).boot_firmware == ""
    assert spec_of(TaskConfig(image="local/i.raw", firmware="bios")).boot_firmware == ""
    assert spec_of(TaskConfig(kernel="local/vmlinuz")).boot_firmware == ""


def test_no_tool_grows_a_qcow2_image_that_the_job_can_write_to_meanwhile() -> None:
    def grown(image: str, image_format: DiskFormat, mode: RootMode = "direct") -> TaskConfig:
        return TaskConfig(image=image, image_format=image_format, root_mode=mode, root_size_bytes=1 << 30)

    for image in ("local/i.qcow2", "alloc/i.qcow2"):
        assert refused(grown(image, "qcow2")).startswith(
            "root_size = 1073741824: a qcow2 image in the task's directories"
        )
    for fine in (
        grown("/srv/images/i.qcow2", "qcow2"),
        grown("local/i.raw", "raw"),
        grown("local/i.qcow2", "qcow2", "copy"),
    ):
        assert spec_of(fine).root is not None


def test_firmware_of_elsewhere_is_refused() -> None:
    assert refused(TaskConfig(image="local/i.raw", firmware="/usr/share/x.fd")).startswith(
        "firmware = '/usr/share/x.fd': expected a path in local/, secrets/ or alloc/ of the task"
    )


# -- file servers ----------------------------------------------------------------------------------------------------

VMS = NfsExport(name="vms", server="10.0.0.5", export="/srv/vms")


def with_nfs(*exports: NfsExport) -> PluginConfig:
    return replace(a_plugin(), nfs={export.name: export for export in exports})


@pytest.mark.parametrize(
    ("path", "relative"), [("nfs://vms/a.raw", "a.raw"), ("nfs://vms//deep/./a.raw", "deep/a.raw")]
)
def test_a_path_on_a_file_server_is_told_by_the_operators_name_for_it(path: str, relative: str) -> None:
    options = TaskConfig(
        image=path, firmware=path, user_data=path, disks=(DiskConfig(name="d", format="raw", source=path),)
    )
    spec = spec_of(options, with_nfs(VMS))
    expected = FileRef(root=Path("/"), relative=relative, nfs=VMS)
    assert spec.root is not None
    assert spec.seed is not None
    assert [spec.root.image, spec.firmware, spec.seed.user_data_file, spec.disks[0].source] == [expected] * 4
    booted = spec_of(TaskConfig(kernel=path, initrd=path), with_nfs(VMS)).boot
    assert booted is not None
    assert [booted.kernel, booted.initrd] == [expected] * 2


@pytest.mark.parametrize(
    ("path", "plugin", "words"),
    [
        ("nfs://x/a.raw", with_nfs(VMS), "expected an nfs block of this node's plugin block, which are: vms"),
        ("nfs://x/a.raw", with_nfs(), "expected an nfs block of this node's plugin block, of which there are none"),
        ("nfs://vms/../a.raw", with_nfs(VMS), 'expected a path without ".."'),
        ("nfs://vms/", with_nfs(VMS), "expected a file, as in nfs://NAME/path"),
        ("nfs://vms", with_nfs(VMS), "expected a file, as in nfs://NAME/path"),
    ],
)
def test_a_path_on_a_file_server_that_cannot_be_is_refused(path: str, plugin: PluginConfig, words: str) -> None:
    assert refused(TaskConfig(kernel=path), plugin) == f"kernel = {path!r}: {words}"


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root", "relative"),
    [
        ("local/a.raw", TASK_DIR, "local/a.raw"),
        ("/local/a.raw", TASK_DIR, "local/a.raw"),
        ("//local//./a.raw", TASK_DIR, "local/a.raw"),
        ("/secrets/a.raw", TASK_DIR, "secrets/a.raw"),
        ("images/a.raw", TASK_DIR, "images/a.raw"),
        ("a..b/c.raw", TASK_DIR, "a..b/c.raw"),
        ("/alloc/data/a.raw", ALLOC_DIR / "alloc", "data/a.raw"),
        ("alloc/data/a.raw", ALLOC_DIR / "alloc", "data/a.raw"),
        ("/srv/images/deb/a.raw", Path("/srv/images"), "deb/a.raw"),
        ("/mnt/i/a.raw", Path("/mnt/i"), "a.raw"),
    ],
)
def test_a_path_leads_to_the_tasks_directories_or_the_operators(path: str, root: Path, relative: str) -> None:
    spec = spec_of(TaskConfig(image=path))
    assert spec.root is not None
    assert spec.root.image == FileRef(root=root, relative=relative)


def test_of_nested_image_paths_the_innermost_is_the_root() -> None:
    spec = spec_of(TaskConfig(image="/srv/images/b/a.raw"), a_plugin(image_paths=("/", "/srv/images/b", "/srv")))
    assert spec.root is not None
    assert spec.root.image == FileRef(root=Path("/srv/images/b"), relative="a.raw")


WHERE = "expected a path in local/, secrets/ or alloc/ of the task, or beneath one of image_paths"


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/etc/a.raw", f"image = '/etc/a.raw': {WHERE}: /srv/images, /mnt/i"),
        ("/srv/images2/a.raw", f"image = '/srv/images2/a.raw': {WHERE}: /srv/images, /mnt/i"),
        (f"{TASK_DIR}/local/a.raw", f"image = '{TASK_DIR}/local/a.raw': {WHERE}: /srv/images, /mnt/i"),
        ("../a.raw", "image = '../a.raw': expected a path without \"..\""),
        ("local/../../x", "image = 'local/../../x': expected a path without \"..\""),
        ("/srv/images/../x", "image = '/srv/images/../x': expected a path without \"..\""),
        ("/local/..", "image = '/local/..': expected a path without \"..\""),
    ],
)
def test_any_other_path_is_refused_with_what_is_allowed(path: str, complaint: str) -> None:
    assert refused(TaskConfig(image=path)) == complaint


def test_a_node_without_image_paths_says_so() -> None:
    assert refused(TaskConfig(image="/x/a.raw"), a_plugin(image_paths=())) == (
        f"image = '/x/a.raw': {WHERE} (this node has none)"
    )


@given(st.text(alphabet="a./lo\\ ", min_size=1, max_size=20))
def test_no_path_gets_out_of_its_root(path: str) -> None:
    try:
        spec = spec_of(TaskConfig(image=path))
    except SpecError:
        return
    assert spec.root is not None
    ref = spec.root.image
    assert ref.root in {TASK_DIR, ALLOC_DIR / "alloc", Path("/srv/images"), Path("/mnt/i")}
    assert not ref.relative.startswith("/")
    assert ".." not in ref.relative.split("/")


def test_all_complaints_come_at_once() -> None:
    options = TaskConfig(
        kernel="/k",
        initrd="../i",
        image="/x/a.raw",
        user_data="/u",
        network_interfaces=(InterfaceConfig(network="lan"), InterfaceConfig(network="u")),
    )
    lines = refused(options, a_plugin("u", "w"), resources=resources(memory_mb=8)).splitlines()
    assert lines == [
        f"network_interface[0].network = 'lan': {A_NETWORK}, which are: u, w",
        "memory = 8: expected at least 16 MiB in resources",
        f"kernel = '/k': {WHERE}: /srv/images, /mnt/i",
        "initrd = '../i': expected a path without \"..\"",
        f"image = '/x/a.raw': {WHERE}: /srv/images, /mnt/i",
        f"user_data = '/u': {WHERE}: /srv/images, /mnt/i",
    ]


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "", "a/b"])
def test_a_task_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert refused(KERNEL, name=name) == f"task = {name!r}: expected a name that can be a directory"


# -- links -----------------------------------------------------------------------------------------------------------


def test_without_an_interface_the_default_network_is_used_and_else_none() -> None:
    assert spec_of(KERNEL, a_plugin("u")).nics == ()
    assert spec_of(KERNEL, a_plugin("u", default_network="u")).nics == (
        NicSpec(network="u", link=UserLink(), mac=derived_mac(ALLOC, "vm", 0)),
    )


def test_a_network_that_the_operator_did_not_name_is_refused() -> None:
    options = TaskConfig(kernel="local/k", network_interfaces=(InterfaceConfig(network="lan"),))
    assert refused(options) == f"network_interface[0].network = 'lan': {A_NETWORK}, of which there are none"


@given(st.text(), st.text(), st.integers(0, 15))
def test_a_derived_mac_is_unicast_local_and_the_same_each_time(alloc: str, task: str, index: int) -> None:
    mac = derived_mac(alloc, task, index)
    assert re.fullmatch(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}", mac)
    assert mac == derived_mac(alloc, task, index)


def test_derived_macs_differ_by_alloc_task_and_index_and_never_change() -> None:
    assert derived_mac(ALLOC, "vm", 0) == "d2:1a:68:0f:f1:a5"
    macs = {derived_mac(*who) for who in ((ALLOC, "vm", 0), (ALLOC, "vm", 1), (ALLOC, "vm2", 0), ("b", "vm", 0))}
    assert len(macs) == 4


# -- mounts ----------------------------------------------------------------------------------------------------------


def test_own_directories_and_volumes_become_mounts() -> None:
    volumes = [
        pb.Mount(task_path="/srv/data/", host_path="/mnt/data"),
        pb.Mount(task_path="iso", host_path="/csi/x", readonly=True),
    ]
    options = TaskConfig(kernel="local/k", share=("secrets", "alloc", "local"))
    assert spec_of(options, mounts=volumes).mounts == (
        MountSpec(source=TASK_DIR / "secrets", guest_path="/secrets"),
        MountSpec(source=ALLOC_DIR / "alloc", guest_path="/alloc"),
        MountSpec(source=TASK_DIR / "local", guest_path="/local"),
        MountSpec(source=Path("/mnt/data"), guest_path="/srv/data"),
        MountSpec(source=Path("/csi/x"), guest_path="/iso", readonly=True),
    )


def test_two_mounts_at_one_place_are_refused() -> None:
    options = TaskConfig(kernel="local/k", share=("local",))
    complaint = refused(options, mounts=[pb.Mount(task_path="/local", host_path="/mnt/data")])
    assert complaint == "volume_mount.destination = '/local': something else is mounted there"


def test_a_machine_with_mounts_has_a_seed_which_tells_its_guest_of_them() -> None:
    assert spec_of(TaskConfig(kernel="local/k", share=("local",))).seed is not None
    assert spec_of(KERNEL, mounts=[pb.Mount(task_path="/d", host_path="/mnt/d")]).seed is not None


def test_a_tpm_is_asked_for() -> None:
    assert spec_of(TaskConfig(kernel="local/k", tpm=True)).tpm
    assert not spec_of(KERNEL).tpm


# -- seed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        TaskConfig(image="local/a.raw", hostname="h"),
        TaskConfig(image="local/a.raw", ssh_authorized_keys=("ssh-ed25519 A",)),
        TaskConfig(image="local/a.raw", user_data="#!/bin/sh"),
        TaskConfig(image="local/a.raw", network_config="{}"),
    ],
)
def test_each_key_of_the_seed_makes_one(options: TaskConfig) -> None:
    assert spec_of(options).seed is not None


def test_no_key_of_the_seed_makes_none() -> None:
    assert spec_of(TaskConfig(image="local/a.raw"), env={"A": "1"}).seed is None


@pytest.mark.parametrize("text", ["#!/bin/sh\necho ä\n", '{"a": 1}', "#cloud-config\r\n"])
def test_inline_user_data_is_handed_on_byte_for_byte(text: str) -> None:
    seed = spec_of(TaskConfig(kernel="local/k", user_data=text)).seed
    assert seed is not None
    assert (seed.user_data, seed.user_data_file) == (text.encode(), None)


def test_other_user_data_is_the_path_of_a_file() -> None:
    seed = spec_of(TaskConfig(kernel="local/k", user_data="/secrets/user-data")).seed
    assert seed is not None
    assert seed.user_data is None
    assert seed.user_data_file == FileRef(root=TASK_DIR, relative="secrets/user-data")


def test_another_start_of_the_task_is_the_same_instance_under_the_same_name() -> None:
    options = TaskConfig(image="local/a.raw", hostname="h", network_interfaces=(InterfaceConfig(network="u"),))
    first = spec_of(options, a_plugin("u"), id=f"{ALLOC}/vm/00000001")
    second = spec_of(options, a_plugin("u"), id=f"{ALLOC}/vm/00000002")
    assert first.id != second.id
    assert (first.name, first.seed, first.nics) == (second.name, second.seed, second.nics)


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "safe"),
    [
        ("web", "web"),
        ("web-1_a.b", "web-1_a.b"),
        ("my task", "my%20task"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("a~b", "a%7Eb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a..b", "a%2E%2Eb"),
        (".hidden", "%2Ehidden"),
        ("ä", "%C3%A4"),
        ("a\nb", "a%0Ab"),
        (129 * "x", 111 * "x" + "~0ec9eb33e74510bc"),
    ],
)
def test_a_machines_name_is_the_alloc_and_the_escaped_task(task: str, safe: str) -> None:
    assert machine_name(ALLOC, task) == f"{ALLOC}/{safe}"


def test_an_alloc_id_is_escaped_too() -> None:
    assert machine_name("..", "x") == "%2E%2E/x"


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_safe_as_directories_and_differ_when_tasks_do(one: str, other: str) -> None:
    for task in (one, other):
        alloc, _, name = machine_name("a", task).partition("/")
        assert alloc == "a"
        assert re.fullmatch(r"[A-Za-z0-9_%~.-]{1,128}", name)
        assert ".." not in name
        assert not name.startswith(".")
    assert (machine_name("a", one) == machine_name("a", other)) == (one == other)


@given(st.text(), st.text())
def test_a_default_hostname_is_always_one_label(job: str, task: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", default_hostname(job, task))


@pytest.mark.parametrize(
    ("job", "task", "name"),
    [
        ("web", "vm", "web-vm"),
        ("Batch/dispatch-17", "vm_1", "batch-dispatch-17-vm-1"),
        ("", "", "machine"),
        ("ä", "ö", "machine"),
        (70 * "j", "t", 63 * "j"),
    ],
)
def test_a_default_hostname_tells_job_and_task(job: str, task: str, name: str) -> None:
    assert default_hostname(job, task) == name


# -- lints -----------------------------------------------------------------------------------------------------------


def test_ports_and_network_config_of_a_machine_without_a_link_are_linted() -> None:
    task = a_task(resources=resources(pb.PortMapping(label="http", value=1), pb.PortMapping(label="ssh", value=2)))
    options = TaskConfig(kernel="local/k", network_config="{}")
    assert lints(task, options, ()) == [
        "ports http, ssh lead nowhere: the machine has no network_interface",
        "network_config configures nothing: the machine has no network_interface",
    ]
    assert lints(task, options, [NicSpec(network="u", link=UserLink())]) == []
    assert lints(a_task(), KERNEL, ()) == []


def test_complaints_of_the_config_and_of_the_task_come_in_one_list() -> None:
    complaints = Complaints()
    body = msgspec.msgpack.encode({"kernel": "/nowhere/vmlinuz", "vcpus": 999, "hostname": "-", "on_panic": "dance"})
    options = decode_task_config(body, complaints)
    with pytest.raises(SpecError) as caught:
        machine_spec(
            a_task(resources=resources(memory_mb=1)), options, a_plugin(), owner="nomad", complaints=complaints
        )
    lines = str(caught.value).splitlines()
    for key in ("kernel", "vcpus", "hostname", "on_panic", "memory"):
        assert sum(line.startswith(key) for line in lines) == 1, lines


# -- cores -----------------------------------------------------------------------------------------------------------

# Core n is CPU n and n + 4.
SMT = Topology(
    cores=tuple(Core(id=n, cpus=(n, n + 4), node=n // 2) for n in range(4)),
    nodes=(NumaNode(id=0, cpus=frozenset({0, 1, 4, 5})), NumaNode(id=1, cpus=frozenset({2, 3, 6, 7}))),
    online=frozenset(range(8)),
    present=frozenset(range(8)),
)
TWO_TOKENS = {"CHV_CORES_NUMA1_0": "core-2,core-3"}


def cores_task(cpuset: str = "", mhz: int = 0, memory_max_mb: int = 0, device_env: Any = None) -> pb.TaskConfig:
    memory = pb.AllocatedMemoryResources(memory_mb=512, memory_max_mb=memory_max_mb)
    linux = pb.LinuxResources(cpuset_cpus=cpuset, cpu_shares=mhz)
    asked = pb.Resources(allocated_resources=pb.AllocatedTaskResources(memory=memory), linux_resources=linux)
    return a_task(resources=asked, device_env=device_env or {})


def cores_of(task: pb.TaskConfig, smt: Any = "core", **options: Any) -> MachineSpec:
    config = TaskConfig(kernel="local/k", **options)
    return machine_spec(task, config, a_plugin(), owner="nomad", topology=SMT, smt=smt)


@pytest.mark.parametrize(
    ("cpuset", "options", "vcpus"),
    [
        ("", {}, 1),
        ("", {"threads": "expose"}, 2),
        ("1,5", {}, 1),
        ("1,2,5", {}, 2),
        ("1,2", {}, 2),
        ("0,1,4,5", {"threads": "expose"}, 4),
        ("0,1,4,5", {"emulator": "isolate"}, 1),
        ("0,1,4,5", {"vcpus": 1}, 1),
    ],
)
def test_vcpus_follow_from_the_cores(cpuset: str, options: dict[str, Any], vcpus: int) -> None:
    assert cores_of(cores_task(cpuset), **options).vcpus == vcpus


def test_tokens_are_counted_by_node_and_set_the_vcpus() -> None:
    spec = cores_of(cores_task(device_env=TWO_TOKENS))
    assert (spec.cores.tokens, spec.vcpus) == ({1: 2}, 2)


def test_memory_max_and_weight_reach_the_machine() -> None:
    spec = cores_of(cores_task(mhz=700, memory_max_mb=900), hugepages=True)
    assert (spec.cores.cpu_shares, spec.memory_max_mib, spec.hugepages) == (700, 900, True)
    assert cores_of(cores_task(memory_max_mb=-1)).memory_max_mib > 1 << 40


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        (cores_task("1,2"), {"vcpus": 4}, "vcpus = 4: expected at most 2, which is what cores = 2 gives"),
        (cores_task("1,2"), {"placement": "shared"}, "placement = 'shared': contradicts cores = 2 in resources"),
        (
            cores_task("1,2"),
            {"threads": "expose"},
            "threads = 'expose': expected whole cores, but of cores = 2 CPU",
        ),
        (cores_task("1,2"), {"numa": "strict"}, "numa = 'strict': expected one NUMA node"),
        (cores_task("1,5"), {"emulator": "isolate"}, "emulator = 'isolate': expected one core more"),
        (cores_task("1", device_env=TWO_TOKENS), {}, "device: chv/core together with cores = 1"),
        (cores_task(device_env=TWO_TOKENS), {"vcpus": 1}, "vcpus = 1: expected 2, which is what device"),
        (cores_task(), {"threads": "expose", "vcpus": 3}, "vcpus = 3: expected an even number"),
        (cores_task(), {"threads": "expose", "smt": "thread"}, "threads = 'expose': works where cores.smt"),
        (cores_task(), {"placement": "shared", "numa": "strict"}, "numa = 'strict': works with placement"),
    ],
)
def test_contradictions_are_named_with_both_sides(task: pb.TaskConfig, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        cores_of(task, **options)
    assert str(refused.value).startswith(said)


def test_too_few_mhz_are_linted_at_level_driver_only() -> None:
    options = TaskConfig(kernel="local/k", vcpus=2)
    assert lints(cores_task(mhz=500), options, (), level="driver", mhz_floor=2600) == [
        (
            "cpu = 500: expected at least 2 × 2600 = 5200 MHz for 2 whole cores, Nomad may place more here than there"
            " are cores"
        )
    ]
    assert lints(cores_task(mhz=5200), options, (), level="driver", mhz_floor=2600) == []
    assert lints(cores_task(mhz=500), options, (), level="node", mhz_floor=2600) == []


def test_a_device_that_the_operator_gives_to_nobody_is_refused_with_both_lists() -> None:
    options = TaskConfig(kernel="local/vmlinuz", vfio=("0000:65:00.0", "0000:66:00.0"))
    allowing = replace(a_plugin(), vfio_allow=("0000:65:00.0", "0000:67:00.0"))
    assert refused(options, allowing) == (
        "vfio[1] = '0000:66:00.0': vfio = ['0000:65:00.0', '0000:66:00.0'], expected addresses of this node's"
        " vfio_allow: 0000:65:00.0, 0000:67:00.0"
    )
    assert refused(replace(options, vfio=("0000:65:00.0",))).endswith("vfio_allow: none")
    assert spec_of(replace(options, vfio=("0000:65:00.0",)), allowing).vfio == ("0000:65:00.0",)
