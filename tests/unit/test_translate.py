"""From a task of Nomad's to a MachineSpec: ports, links, mounts and the seed."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver._pb import driver_pb2 as pb
from driver.config_network import InterfaceConfig
from driver.config_task import TaskConfig, decode_task_config
from driver.decode import Complaints
from driver.links import derived_mac
from driver.translate import lints, machine_spec
from tests.unit.job_tasks import ALLOC, ALLOC_DIR, KERNEL, TASK_DIR, a_plugin, a_task, refused, resources, spec_of
from vmlib.errors import SpecError
from vmlib.spec import (
    CoresSpec,
    DirectBoot,
    FileRef,
    MachineSpec,
    MountSpec,
    NicSpec,
    PortForward,
    RootDisk,
    SeedSpec,
    UserLink,
)

A_NETWORK = 'expected "alloc" or a network of this node\'s plugin block'
LABELS = {"namespace": "default", "job": "web", "group": "", "task": "vm", "alloc": ALLOC, "index": "0"}
WHERE = "expected a path in local/, secrets/ or alloc/ of the task, or beneath one of image_paths"


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
        agent=True,
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
            agent=True,
        ),
        agent=True,
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
        TaskConfig(image="local/a.raw", agent=False, hostname="h"),
        TaskConfig(image="local/a.raw", agent=False, ssh_authorized_keys=("ssh-ed25519 A",)),
        TaskConfig(image="local/a.raw", agent=False, user_data="#!/bin/sh"),
        TaskConfig(image="local/a.raw", agent=False, network_config="{}"),
    ],
)
def test_each_key_of_the_seed_makes_one(options: TaskConfig) -> None:
    spec = spec_of(options)
    assert spec.seed is not None
    assert not spec.seed.agent
    assert not spec.agent


def test_no_key_of_the_seed_makes_none() -> None:
    assert spec_of(TaskConfig(image="local/a.raw", agent=False), env={"A": "1"}).seed is None


@pytest.mark.parametrize(
    ("options", "agent", "seeded"),
    [
        (TaskConfig(image="local/a.raw"), True, True),
        (TaskConfig(image="local/a.raw", kernel="local/k"), True, True),
        (TaskConfig(image="local/a.raw", agent=False), False, False),
        (TaskConfig(image="local/a.raw", guest_os="windows"), False, False),
        (TaskConfig(kernel="local/k"), True, False),  # its initrd may bring an agent
        (TaskConfig(kernel="local/k", hostname="h"), True, True),
        (TaskConfig(kernel="local/k", wait_for="agent"), True, True),
    ],
)
def test_the_agent_is_a_reason_for_a_seed_where_an_image_or_somebody_waits_for_it(
    options: TaskConfig, agent: bool, seeded: bool
) -> None:
    spec = spec_of(options)
    assert (spec.agent, spec.seed is not None and spec.seed.agent) == (agent, seeded)
    assert (spec.seed is not None) == seeded


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


def test_a_device_that_the_operator_gives_to_nobody_is_refused_with_both_lists() -> None:
    options = TaskConfig(kernel="local/vmlinuz", vfio=("0000:65:00.0", "0000:66:00.0"))
    allowing = replace(a_plugin(), vfio_allow=("0000:65:00.0", "0000:67:00.0"))
    assert refused(options, allowing) == (
        "vfio[1] = '0000:66:00.0': vfio = ['0000:65:00.0', '0000:66:00.0'], expected addresses of this node's"
        " vfio_allow: 0000:65:00.0, 0000:67:00.0"
    )
    assert refused(replace(options, vfio=("0000:65:00.0",))).endswith("vfio_allow: none")
    assert spec_of(replace(options, vfio=("0000:65:00.0",)), allowing).vfio == ("0000:65:00.0",)
