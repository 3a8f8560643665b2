"""Decoding the task block: defaults, every complaint at once and in full, and nothing accepted that is not built."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.config_network import InterfaceConfig
from driver.config_task import DiskConfig, TaskConfig, decode_task_config
from driver.keys import TASK
from tests.unit.config_blocks import IMAGE, KERNEL, complaints_of, plugin, refused_task, task, values
from vmlib.errors import SpecError


def test_a_task_with_an_image_alone_has_the_defaults_of_the_design() -> None:
    assert task(IMAGE) == TaskConfig(image="local/disk.qcow2", image_format="qcow2")
    assert task(KERNEL) == TaskConfig(kernel="local/vmlinuz")


def test_a_full_task_is_read() -> None:
    config = {
        "image": "/srv/i.img",
        "image_format": "raw",
        "root_mode": "copy",
        "root_size": "20GiB",
        "kernel": "local/k",
        "initrd": "local/i",
        "cmdline": "console=ttyS0 quiet",
        "vcpus": 4.0,
        "placement": "shared",
        "hostname": "web-1.example.org",
        "ssh_authorized_keys": ["ssh-ed25519 AAAA me"],
        "user_data": "#!/bin/sh\necho\n",
        "network_config": "version: 2\n",
        "network_interface": [{"network": "u", "mac": "52:54:00:AB:CD:EF"}, {"network": "u", "mac": None}],
        "on_reboot": "exit",
        "on_panic": "restart",
        "agent": False,
        "hypervisor": "qemu",
        "disk": [],
        "share": ["secrets", "local"],
        "tpm": True,
    }
    assert task(config) == TaskConfig(
        image="/srv/i.img",
        image_format="raw",
        root_mode="copy",
        root_size_bytes=20 << 30,
        kernel="local/k",
        initrd="local/i",
        cmdline="console=ttyS0 quiet",
        vcpus=4,
        placement="shared",
        hostname="web-1.example.org",
        ssh_authorized_keys=("ssh-ed25519 AAAA me",),
        user_data="#!/bin/sh\necho\n",
        network_config="version: 2\n",
        network_interfaces=(
            InterfaceConfig(network="u", mac="52:54:00:ab:cd:ef"),
            InterfaceConfig(network="u"),
        ),
        on_reboot="exit",
        on_panic="restart",
        agent=False,
        share=("secrets", "local"),
        tpm=True,
        hypervisor="qemu",
    )


RFC1123 = "expected letters, digits and inner -, at most 63 between two dots (RFC 1123)"
VCPUS = "expected 1 to 255 (more need interrupt remapping, which machines do not have)"
MAC = "expected a unicast address such as 52:54:00:12:34:56"


def nic(**keys: object) -> dict[str, object]:
    return {"network": "u", **keys}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "image: expected image (boots from the disk) or kernel (boots it directly), both are missing"),
        (IMAGE | {"initrd": "local/i"}, "initrd = 'local/i': works with kernel only, which is missing"),
        (IMAGE | {"cmdline": "quiet"}, "cmdline = 'quiet': works with kernel only, which is missing"),
        (KERNEL | {"root_size": "1GiB"}, "root_size = '1GiB': works with image only, which is missing"),
        (KERNEL | {"root_mode": "copy"}, "root_mode = 'copy': works with image only, which is missing"),
        (KERNEL | {"image_format": "raw"}, "image_format = 'raw': works with image only, which is missing"),
        (
            KERNEL | {"firmware": "bios"},
            "firmware = 'bios': a kernel is booted without firmware, expected one of the two",
        ),
        (
            KERNEL | {"guest_os": "windows"},
            "kernel = 'local/vmlinuz': only Linux is booted without firmware; guest_os = \"windows\" boots from image",
        ),
        (
            IMAGE | {"guest_os": "windows", "firmware": "bios"},
            "firmware = 'bios': expected uefi or a path with guest_os = \"windows\"",
        ),
        (
            KERNEL | {"firmware": "local/x.fd"},
            "firmware = 'local/x.fd': a kernel is booted without firmware, expected one of the two",
        ),
        *(
            (IMAGE | {"firmware": word}, f"firmware = {word!r}: expected bios, uefi or a path with a / in it")
            for word in ("UEFI", "efi", "x.fd")
        ),
        (
            {"image": "local/noble.img"},
            "image_format: expected raw or qcow2, because the name 'noble.img' does not say",
        ),
        (IMAGE | {"image_format": "vmdk"}, "image_format = 'vmdk': expected \"\", raw or qcow2"),
        (IMAGE | {"root_mode": "link"}, "root_mode = 'link': expected overlay, copy or direct"),
        (
            IMAGE | {"image": "a.raw.xz", "root_mode": "direct"},
            "root_mode = 'direct': expected overlay or copy, because a .xz file cannot be written to",
        ),
        (IMAGE | {"root_size": "big"}, "root_size = 'big': expected a size such as 10GiB"),
        (IMAGE | {"root_size": "0"}, "root_size = '0': expected more than nothing"),
        (KERNEL | {"vcpus": 0}, f"vcpus = 0: {VCPUS}"),
        (KERNEL | {"vcpus": 256}, f"vcpus = 256: {VCPUS}"),
        (KERNEL | {"vcpus": 1.5}, "vcpus = 1.5: expected a whole number"),
        (KERNEL | {"placement": "any"}, "placement = 'any': expected exclusive or shared"),
        (KERNEL | {"on_reboot": "stop"}, "on_reboot = 'stop': expected restart or exit"),
        (KERNEL | {"on_panic": "stop"}, "on_panic = 'stop': expected exit or restart"),
        (KERNEL | {"numa": "any"}, "numa = 'any': expected prefer, strict or spread"),
        (KERNEL | {"hypervisor": "fake"}, "hypervisor = 'fake': expected \"\", cloud-hypervisor or qemu"),
        (KERNEL | {"hostname": "-a"}, f"hostname = '-a': {RFC1123}"),
        (KERNEL | {"hostname": "a..b"}, f"hostname = 'a..b': {RFC1123}"),
        (KERNEL | {"hostname": "a_b"}, f"hostname = 'a_b': {RFC1123}"),
        (KERNEL | {"hostname": 64 * "a"}, f"hostname = '{64 * 'a'}': {RFC1123}"),
        (KERNEL | {"cmdline": "a\0b"}, r"cmdline = 'a\x00b': holds a control character, expected one line of text"),
        (KERNEL | {"cmdline": 2048 * "a"}, f"cmdline = '{118 * 'a'}…: 2048 bytes, expected at most 2047"),
        (
            KERNEL | {"ssh_authorized_keys": ["ssh-ed25519 AAAA", "hunter2"]},
            "ssh_authorized_keys[1] = (7 bytes): expected a line such as: ssh-ed25519 AAAA… name",
        ),
        (
            KERNEL | {"ssh_authorized_keys": ["ssh-rsa A\nssh-rsa B"]},
            "ssh_authorized_keys = (not shown): entry 0: holds a control character, expected one line of text",
        ),
        (
            KERNEL | {"user_data": "#" + (1 << 20) * "x"},
            "user_data = (1048577 bytes): 1048577 bytes, expected at most 1048576",
        ),
        *(
            (
                KERNEL | {"user_data": text},
                f"user_data = ({len(text)} bytes): expected the path of a file, or text that starts with # or {{",
            )
            for text in ("\n#cloud-config\n", "Content-Type: text/plain\n\nx", 1025 * "x")
        ),
        (
            KERNEL | {"network_interface": [{"mac": None}]},
            'network_interface[0].network: expected "alloc" or a network of the plugin block, it is missing',
        ),
        *(
            (KERNEL | {"network_interface": [nic(mac=mac)]}, f"network_interface[0].mac = {mac!r}: {MAC}")
            for mac in ("53:54:00:12:34:56", "52-54-00-12-34-56", "52:54:00:12:34", "00:00:00:00:00:00", "x")
        ),
        (
            KERNEL | {"network_interface": [nic(mac="52:54:00:00:00:0a"), nic(mac="52:54:00:00:00:0A")]},
            "network_interface[1].mac = '52:54:00:00:00:0A': the same as network_interface[0].mac",
        ),
        (
            KERNEL | {"network_interface": [nic()] * 17},
            "network_interface: 17 blocks, expected at most 16",
        ),
        (KERNEL | {"colour": 1}, "colour: no such key"),
    ],
)
def test_the_jobs_author_is_told_key_value_and_what_was_expected(config: object, complaint: str) -> None:
    assert refused_task(config) == complaint


def test_all_complaints_about_a_task_come_at_once() -> None:
    config = {
        "image": "local/x.img",
        "guest_os": "macos",
        "balloon": True,
        "vfio": ["0000:3b:00.0", "3b:00.0", "0000:3b:00.0"],
        "numa": "any",
        "vcpus": 300,
        "hostname": "a_b",
        "disk": [{"name": "a"}, {"name": "B", "size": "1GiB", "rate_limit": "1KiB"}],
        "network_interface": [nic(gateway="192.168.1.1", mac="x", rate_limit="x")],
        "share": ["local", "tmp", "local"],
    }
    assert refused_task(config).splitlines() == [
        "guest_os = 'macos': expected linux or windows",
        "numa = 'any': expected prefer, strict or spread",
        f"hostname = 'a_b': {RFC1123}",
        "image_format: expected raw or qcow2, because the name 'x.img' does not say",
        f"vcpus = 300: {VCPUS}",
        "disk[0]: expected size (a new disk) or source (a file's content), both are missing",
        "disk[1].name = 'B': expected a lower case letter, then at most 15 of a-z 0-9 _ -",
        "disk[1].rate_limit = '1KiB': expected at least 64KiB, a second",
        f"network_interface[0].mac = 'x': {MAC}",
        "network_interface[0].gateway = '192.168.1.1': works with address only, which is missing",
        "network_interface[0].rate_limit = 'x': expected a size such as 10GiB",
        "share[1] = 'tmp': expected local, secrets or alloc",
        "share[2] = 'local': the same as share[0]",
        "vfio[1] = '3b:00.0': expected a PCI address, as 0000:65:00.0",
        "vfio[2] = '0000:3b:00.0': the same as vfio[0]",
        "balloon = true: does not go with vfio, because a device of the host's keeps all memory in its place",
    ]


def test_no_secret_is_in_a_complaint() -> None:
    secret = "hunter2 " * 3
    refusals = [
        refused_task(KERNEL | {"user_data": secret + "\n", "network_config": [secret]}),
        refused_task(KERNEL | {"ssh_authorized_keys": [secret + "\n"], "user_data": {"k": secret}}),
        refused_task(KERNEL | {"ssh_authorized_keys": "hunter2"}),
    ]
    assert [line for text in refusals for line in text.splitlines() if "hunter2" in line] == []


@given(st.binary(max_size=64))
def test_any_bytes_are_a_config_or_refused_as_the_job_authors_mistake(data: bytes) -> None:
    with pytest.raises(SpecError):
        decode_task_config(data)  # no bytes this short name an image or a kernel by chance


@given(st.dictionaries(st.sampled_from([member.name for member in TASK]), values))
def test_values_of_any_shape_are_taken_or_refused_never_a_crash(config: dict[str, object]) -> None:
    assert all(": " in line and len(line) < 1000 for line in complaints_of(task, config))


def test_the_fake_hypervisor_works_only_where_it_was_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHV_ENABLE_FAKE", "1")
    assert task(KERNEL | {"hypervisor": "fake"}).hypervisor == "fake"
    assert plugin({"hypervisor": "fake"}).hypervisor == "fake"


# -- disks -----------------------------------------------------------------------------------------------------------


def test_disks_are_what_their_blocks_say() -> None:
    blocks = [
        {"name": "data", "size": "10GiB", "persistent": True, "rate_limit": "100MiB"},
        {"name": "iso", "source": "local/x.raw", "readonly": True, "serial": "ISO-1"},
        {"name": "copy", "source": "local/x.img", "format": "qcow2", "size": "1GiB"},
    ]
    assert task(IMAGE | {"disk": blocks}).disks == (
        DiskConfig(
            name="data", format="raw", size_bytes=10 << 30, persistent=True, serial="data", rate_bytes=100 << 20
        ),
        DiskConfig(name="iso", format="raw", source="local/x.raw", readonly=True, serial="ISO-1"),
        DiskConfig(name="copy", format="qcow2", source="local/x.img", size_bytes=1 << 30, serial="copy"),
    )


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ({"size": "1GiB"}, "disk[0].name = '': expected a lower case letter, then at most 15 of a-z 0-9 _ -"),
        ({"name": "d,x", "size": "1GiB"}, "disk[0].name = 'd,x': expected a lower case letter, then at most 15 of"),
        ({"name": "d", "size": "10G"}, "disk[0].size = '10G': expected GiB (1024³) or GB (1000³) after the number"),
        ({"name": "d", "size": "0"}, "disk[0].size = '0': expected more than nothing"),
        ({"name": "d", "source": "local/x.iso"}, "disk[0].format: expected raw or qcow2, because the name 'x.iso'"),
        ({"name": "d", "source": "x.raw", "size": "1MiB", "readonly": True}, "disk[0].size = '1MiB': does not go with"),
        (
            {"name": "d", "source": "x.raw", "size": "1MiB", "persistent": True},
            "disk[0].source = 'x.raw': a persistent",
        ),
        ({"name": "d", "size": "1MiB", "serial": "a,b"}, "disk[0].serial = 'a,b': expected at most 20 letters, digits"),
        ({"name": "d", "size": "1MiB", "format": "vmdk"}, "disk[0].format = 'vmdk': expected"),
    ],
)
def test_a_disk_block_that_cannot_be_is_refused_by_key(block: dict[str, Any], complaint: str) -> None:
    assert refused_task(IMAGE | {"disk": [block]}).startswith(complaint)


def test_a_disks_name_is_there_once() -> None:
    disk = {"name": "d", "size": "1MiB"}
    assert refused_task(IMAGE | {"disk": [disk, disk]}) == "disk[1].name = 'd': the same as disk[0].name"
