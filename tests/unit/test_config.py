"""Decoding both blocks: defaults, every complaint at once and in full, and nothing accepted that is not built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.config_network import InterfaceConfig, UserNetwork
from driver.config_plugin import CoresConfig, PluginConfig, decode_plugin_config
from driver.config_task import DiskConfig, TaskConfig, decode_task_config
from driver.decode import Complaints, decode
from driver.schema import PLUGIN, TASK, Block, Key, Members, Value, walk
from vmlib.errors import HostError, SpecError
from vmlib.spec import NfsExport

NOT_BUILT = 'not built yet in chv 0.1 (see "Not there yet" in the README)'
KERNEL: dict[str, Any] = {"kernel": "local/vmlinuz"}
IMAGE: dict[str, Any] = {"image": "local/disk.qcow2"}


@pytest.fixture(autouse=True)
def _no_fake_hypervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHV_ENABLE_FAKE", raising=False)


def task(config: object) -> TaskConfig:
    return decode_task_config(msgspec.msgpack.encode(config))


def plugin(config: object) -> PluginConfig:
    return decode_plugin_config(msgspec.msgpack.encode(config))


def refused_task(config: object) -> str:
    with pytest.raises(SpecError) as refused:
        task(config)
    return str(refused.value)


def refused_plugin(config: object) -> str:
    with pytest.raises(HostError) as refused:
        plugin(config)
    return str(refused.value)


def complaints_of(decoder: Callable[[object], object], config: object) -> list[str]:
    """One by one; none when it is accepted."""
    try:
        decoder(config)
    except (SpecError, HostError) as exc:
        return str(exc).splitlines()
    return []


def nested(path: str, value: object) -> dict[str, object]:
    """`a.b` as the decoder gets it: blocks of every form."""
    head, _, rest = path.partition(".")
    return {head: nested(rest, value)} if rest else {head: value}


# -- what comes over the wire ----------------------------------------------------------------------------------------

TEXT = Key(name="a")
NUMBER = Key(name="a", kind="number", default=None)
FLAG = Key(name="a", kind="bool", default=False)
TEXTS = Key(name="a", kind="strings", default=())
PATHS: Members = (Key(name="path"), Key(name="ro", kind="bool", default=False))


@pytest.mark.parametrize(
    ("member", "sent", "value"),
    [
        (TEXT, "81a161c0", ""),
        (TEXT, "80", ""),
        (TEXT, "81a161a23432", "42"),
        (TEXT, "81a161a471656d75", "qemu"),
        (NUMBER, "81a161c0", None),
        (NUMBER, "81a16104", 4),
        (NUMBER, "81a161cd012c", 300),
        (NUMBER, "81a161ce00011170", 70000),
        (NUMBER, "81a161cf0000010000000000", 1099511627776),
        (NUMBER, "81a161ff", -1),
        (NUMBER, "81a161cb4450000000000000", 1180591620717411303424),
        (NUMBER, "81a161b631313830353931363230373137343131333033343234", 1180591620717411303424),
        (NUMBER, "81a1612a", 42),
        (FLAG, "81a161c3", True),
        (FLAG, "81a161c0", False),
        (TEXTS, "81a161c0", ()),
        (TEXTS, "81a16192a178a179", ("x", "y")),
    ],
)
def test_values_are_read_as_hcl_and_cty_encode_them(member: Key, sent: str, value: Value) -> None:
    complaints = Complaints()
    assert decode(bytes.fromhex(sent), (member,), complaints) == {"a": value}
    assert complaints.lines == []


@pytest.mark.parametrize(
    ("form", "sent", "value"),
    [
        ("one", "81a164c0", {"path": "", "ro": False}),
        ("one", "81a16482a470617468a22f78a2726fc2", {"path": "/x", "ro": False}),
        ("list", "81a16490", []),
        (
            "list",
            "81a1649282a470617468a22f78a2726fc282a470617468a22f79a2726fc3",
            [{"path": "/x", "ro": False}, {"path": "/y", "ro": True}],
        ),
        ("map", "81a16480", {}),
        ("map", "81a16481a26e3182a470617468a22f78a2726fc2", {"n1": {"path": "/x", "ro": False}}),
    ],
)
def test_blocks_are_read_as_hcl_and_cty_encode_them(form: Any, sent: str, value: object) -> None:
    complaints = Complaints()
    assert decode(bytes.fromhex(sent), (Block(name="d", form=form, members=PATHS),), complaints) == {"d": value}
    assert complaints.lines == []


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ("81a161cb3fe0000000000000", "a = 0.5: expected a whole number"),
        ("81a161a3302e31", "a = '0.1': expected a whole number"),
        ("81a161c3", "a = true: expected a whole number"),
        ("81a16190", "a = []: expected a whole number"),
        ("81a161", "config: not msgpack (Input data was truncated)"),
        ("", "config: not msgpack (Input data was truncated)"),
        ("90", "config = []: expected a block"),
        ("82a161c0a162c0", "b: no such key"),
    ],
)
def test_what_nomad_would_not_send_is_refused(sent: str, complaint: str) -> None:
    complaints = Complaints()
    decode(bytes.fromhex(sent), (NUMBER,), complaints)
    assert complaints.lines == [complaint]


@given(st.binary(max_size=64))
def test_any_bytes_are_a_config_or_refused_as_the_job_authors_mistake(data: bytes) -> None:
    with pytest.raises(SpecError):
        decode_task_config(data)  # no bytes this short name an image or a kernel by chance


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([member.name for member in TASK]), values))
def test_values_of_any_shape_are_taken_or_refused_never_a_crash(config: dict[str, object]) -> None:
    assert all(": " in line and len(line) < 1000 for line in complaints_of(task, config))


@given(st.dictionaries(st.sampled_from([member.name for member in PLUGIN]), values))
def test_plugin_values_of_any_shape_are_taken_or_refused_never_a_crash(config: dict[str, object]) -> None:
    assert all(": " in line and len(line) < 1000 for line in complaints_of(plugin, config))


# -- plugin block ----------------------------------------------------------------------------------------------------


def test_an_empty_plugin_block_gives_the_defaults_of_the_design() -> None:
    assert decode_plugin_config(b"\x80") == PluginConfig(
        data_dir=Path("/var/lib/chv"),
        run_dir=Path("/run/chv"),
        hypervisor="auto",
        vm_uids=None,
        vm_user="chv",
        qemu_binary="qemu-system-x86_64",
        qemu_accel="auto",
        ch_binary="cloud-hypervisor",
        ch_firmware=None,
        image_max_size_bytes=2 << 40,
        image_paths=(),
        default_network="",
        networks={},
        image_cache_max_bytes=50 << 30,
        image_cache_max_age_s=30 * 86400.0,
        orphan_grace_s=300.0,
        gc_dry_run=False,
    )


def test_a_full_plugin_block_is_read() -> None:
    config = {
        "data_dir": "/srv//chv/",
        "run_dir": "/run/x",
        "hypervisor": "qemu",
        "vm_uids": "200000-265535",
        "vm_user": "vm",
        "qemu": {"binary": "/usr/bin/qemu", "accel": "tcg"},
        "cloud_hypervisor": {"binary": "/usr/local/bin/ch", "firmware": "/srv/CLOUDHV.fd"},
        "image_max_size": "10GiB",
        "image_paths": ["/srv/images", "/mnt/i"],
        "default_network": "u",
        "network": {"u": {"mode": "user", "parent": None, "filter": False}},
        "gc": {"orphan_grace": "1h30m", "image_cache_max": "0", "image_cache_max_age": "1m30s", "dry_run": True},
    }
    assert plugin(config) == PluginConfig(
        data_dir=Path("/srv/chv"),
        run_dir=Path("/run/x"),
        hypervisor="qemu",
        vm_uids=range(200000, 265536),
        vm_user="vm",
        qemu_binary="/usr/bin/qemu",
        qemu_accel="tcg",
        ch_binary="/usr/local/bin/ch",
        ch_firmware=Path("/srv/CLOUDHV.fd"),
        image_max_size_bytes=10 << 30,
        image_paths=(Path("/srv/images"), Path("/mnt/i")),
        default_network="u",
        networks={"u": UserNetwork(name="u")},
        image_cache_max_bytes=0,
        image_cache_max_age_s=90.0,
        orphan_grace_s=5400.0,
        gc_dry_run=True,
    )


USER_NET = {"mode": "user"}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"data_dir": "var/lib"}, "data_dir = 'var/lib': expected an absolute path without \"..\""),
        ({"data_dir": "/var/../etc"}, "data_dir = '/var/../etc': expected an absolute path without \"..\""),
        ({"run_dir": ""}, "run_dir = '': expected an absolute path without \"..\""),
        (
            {"run_dir": "/" + 67 * "r"},
            f"run_dir = '/{67 * 'r'}': 68 bytes, expected at most 67 (the path of a socket in it has a limit)",
        ),
        (
            {"data_dir": "/a", "run_dir": "/a/"},
            "run_dir = '/a': expected another directory than data_dir",
        ),
        ({"run_dir": "/a\nb"}, r"run_dir = '/a\nb': holds a control character, expected one line of text"),
        ({"data_dir": "/" + 1100 * "x"}, f"data_dir = '/{117 * 'x'}…: 1101 bytes, expected at most 1024"),
        ({"hypervisor": "xen"}, "hypervisor = 'xen': expected auto, cloud-hypervisor or qemu"),
        ({"hypervisor": "fake"}, "hypervisor = 'fake': expected auto, cloud-hypervisor or qemu"),
        (
            {"cloud_hypervisor": {"binary": "bin/ch"}},
            "cloud_hypervisor.binary = 'bin/ch': expected the name of a program or an absolute path",
        ),
        (
            {"cloud_hypervisor": {"firmware": "CLOUDHV.fd"}},
            "cloud_hypervisor.firmware = 'CLOUDHV.fd': expected an absolute path without \"..\"",
        ),
        *(
            ({"vm_uids": uids}, f"vm_uids = {uids!r}: expected a range of uids without 0, such as 200000-265535")
            for uids in ("0-5", "7-3", "1000", "a-b", "1-4294967295", "1-2-3")
        ),
        ({"vm_user": "a b"}, "vm_user = 'a b': expected the name of a user"),
        ({"qemu": {"binary": ""}}, "qemu.binary = '': expected the name of a program or an absolute path"),
        ({"qemu": {"binary": "./q"}}, "qemu.binary = './q': expected the name of a program or an absolute path"),
        ({"qemu": {"accel": "hvf"}}, "qemu.accel = 'hvf': expected auto, kvm or tcg"),
        ({"image_max_size": "10G"}, "image_max_size = '10G': expected GiB (1024³) or GB (1000³) after the number"),
        ({"image_max_size": "0"}, "image_max_size = '0': expected more than nothing"),
        ({"hooks": ["a b"]}, "hooks[0] = 'a b': expected the name of a hook, or NAME:ARGUMENT"),
        ({"hooks": [":/srv"]}, "hooks[0] = ':/srv': expected the name of a hook, or NAME:ARGUMENT"),
        ({"hooks": ["a:1", "a:2"]}, "hooks[1] = 'a:2': the same hook as hooks[0]"),
        ({"image_paths": ["img"]}, "image_paths[0] = 'img': expected an absolute path without \"..\""),
        ({"image_paths": ["/i", "/i/"]}, "image_paths[1] = '/i/': the same as image_paths[0]"),
        ({"image_paths": ["/i"] * 65}, f"image_paths = {str(['/i'] * 65)[:119]}…: 65 entries, expected at most 64"),
        (
            {"default_network": "u"},
            "default_network = 'u': expected \"alloc\" or the name of a network block, of which there are none",
        ),
        (
            {"default_network": "u", "network": {"w": USER_NET, "v": USER_NET}},
            "default_network = 'u': expected \"alloc\" or the name of a network block, which are: v, w",
        ),
        ({"network": {"u": {}}}, "network.u.mode = '': expected user, macvtap or bridge"),
        (
            {"network": {"u": {"mode": "vde", "parent": "eno1"}}},
            "network.u.mode = 'vde': expected user, macvtap or bridge",
        ),
        (
            {"network": {"u": {"mode": "user", "parent": "eno1"}}},
            "network.u.parent = 'eno1': belongs to a network with mode macvtap",
        ),
        (
            {"network": {"u": {"mode": "user", "filter": True}}},
            "network.u.filter = true: belongs to a network with mode macvtap or bridge",
        ),
        (
            {"network": {"alloc": USER_NET}},
            "network.alloc: this name stands for the alloc's own network, expected another",
        ),
        (
            {"network": {"a b": USER_NET}},
            "network['a b']: expected a name of at most 32 letters, digits, - and _",
        ),
        ({"gc": {"orphan_grace": "5"}}, "gc.orphan_grace = '5': expected a duration such as 30s, 5m, 1h30m or 30d"),
        ({"gc": {"dry_run": "yes"}}, "gc.dry_run = 'yes': expected true or false"),
    ],
)
def test_the_operator_is_told_key_value_and_what_was_expected(config: object, complaint: str) -> None:
    assert refused_plugin(config) == complaint


def test_all_complaints_about_the_plugin_block_come_at_once() -> None:
    config = {
        "data_dir": "x",
        "vm_uids": "0-1",
        "cores": {"dedicated": "5-2", "tokens": True},
        "network": {"lan": {"mode": "macvtap"}},
        "nfs": {"vms": {"server": "10.0.0.5"}},
    }
    assert refused_plugin(config).splitlines() == [
        "network.lan.parent: expected the name of an interface of the host's, it is missing",
        "data_dir = 'x': expected an absolute path without \"..\"",
        "vm_uids = '0-1': expected a range of uids without 0, such as 200000-265535",
        "cores.dedicated = '5-2': expected ascending CPU numbers below 1048576, found '5-2'",
        "nfs.vms.export = '': expected an absolute path without \"..\"",
    ]


NFS = {"server": "10.0.0.5", "export": "/srv/vms"}
KNOWN = (
    "ac, acdirmax, acdirmin, acregmax, acregmin, actimeo, cto, lookupcache, max_connect, nconnect, noac, nocto,"
    " noresvport, notrunkdiscovery, port, proto, resvport, retrans, rsize, sec, timeo, trunkdiscovery, vers, wsize,"
    " xprtsec"
)
LOCKS = "expected 4, 4.0, 4.1 or 4.2, whose locks hold between hosts"


def test_an_nfs_block_is_read() -> None:
    block = NFS | {"options": "vers=4.1, nconnect=4,hard,nosuid", "read_only": True}
    assert plugin({"nfs": {"vms": block}}).nfs == {
        "vms": NfsExport(
            name="vms", server="10.0.0.5", export="/srv/vms", options=("vers=4.1", "nconnect=4"), read_only=True
        )
    }


@pytest.mark.parametrize("server", ["nas", "nas.example.org", "10.0.0.5", "2001:db8::5", "fe80::1%eno1"])
def test_a_file_server_has_a_name_or_an_address(server: str) -> None:
    assert plugin({"nfs": {"vms": NFS | {"server": server}}}).nfs["vms"].server == server


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ({"server": ""}, "server = '': expected a host name or an address, such as 10.0.0.5"),
        ({"server": "nas:/srv"}, "server = 'nas:/srv': expected a host name or an address, such as 10.0.0.5"),
        ({"export": "srv"}, "export = 'srv': expected an absolute path without \"..\""),
        ({"export": "/a/../b"}, "export = '/a/../b': expected an absolute path without \"..\""),
        (
            {"options": "soft"},
            "options = 'soft': soft: a disk needs hard: with soft a slow server is a broken disk to the guest",
        ),
        ({"options": "suid"}, "options = 'suid': suid: chv mounts with nosuid"),
        (
            {"options": "sharecache"},
            "options = 'sharecache': sharecache: each machine needs a mount that can be forced without the others",
        ),
        ({"options": "ro"}, "options = 'ro': ro: expected read_only = true instead"),
        (
            {"options": "nolock"},
            "options = 'nolock': nolock: two hosts must not have one disk, which locks prevent",
        ),
        ({"options": "vers=3"}, f"options = 'vers=3': vers=3: {LOCKS}"),
        ({"options": "nfsvers=4,vers=4.1"}, "options = 'nfsvers=4,vers=4.1': vers is there twice"),
        ({"options": "timeo=soon"}, "options = 'timeo=soon': timeo=soon: expected a number"),
        ({"options": "sec=none"}, "options = 'sec=none': sec=none: expected sys, krb5, krb5i or krb5p"),
        (
            {"options": "addr=10.0.0.6"},
            f"options = 'addr=10.0.0.6': addr=10.0.0.6: expected one of {KNOWN}",
        ),
    ],
)
def test_an_nfs_block_that_cannot_be_is_refused_by_key(block: dict[str, object], complaint: str) -> None:
    assert refused_plugin({"nfs": {"vms": NFS | block}}) == f"nfs.vms.{complaint}"


def test_an_export_has_a_name_that_paths_can_hold() -> None:
    assert refused_plugin({"nfs": {"a/b": NFS}}) == (
        "nfs['a/b']: expected a name of at most 32 letters, digits, - and _"
    )


def test_the_cores_block_is_read() -> None:
    block = {"dedicated": "4-7", "housekeeping": "0,1", "smt": "thread", "tokens": True, "partition": "isolated"}
    assert plugin({"cores": block}).cores == CoresConfig(
        dedicated=frozenset({4, 5, 6, 7}),
        housekeeping=frozenset({0, 1}),
        smt="thread",
        tokens=True,
        partition="isolated",
    )
    assert plugin({"cores": {"dedicated": "auto"}}).cores == CoresConfig(dedicated_auto=True)
    assert plugin({}).cores == CoresConfig()


def test_a_cores_block_that_contradicts_itself_is_refused() -> None:
    block = {"dedicated": "4-7", "housekeeping": "0,5"}
    assert refused_plugin({"cores": block}) == (
        "cores.housekeeping = '0,5': expected CPUs outside cores.dedicated, where VMM threads have no place;"
        " 5 is in both"
    )
    assert refused_plugin({"cores": {"tokens": True, "partition": "root"}}).splitlines() == [
        "cores.tokens = true: works with cores.dedicated only, which is missing",
        "cores.partition = 'root': works with cores.dedicated only, which is missing",
    ]


# -- task block ------------------------------------------------------------------------------------------------------


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


# -- not built yet ---------------------------------------------------------------------------------------------------


def unbuilt(members: Members) -> list[tuple[str, object]]:
    """Every key with each value that is not built: named ones, or one of its type."""
    some: dict[str, object] = {"string": "x", "bool": True, "strings": ["x"]}
    found: list[tuple[str, object]] = []
    for path, member in walk(members):
        if isinstance(member, Key):
            values = member.planned if isinstance(member.planned, tuple) else (some[member.kind],)
            found += [(path, value) for value in values]
    return found


@pytest.mark.parametrize(("path", "value"), unbuilt(TASK))
def test_each_task_key_that_is_not_built_is_refused_by_name(path: str, value: object) -> None:
    shown = "true" if value is True else repr(value)
    assert refused_task(IMAGE | {path: value}) == f"{path} = {shown}: {NOT_BUILT}"


def test_the_list_of_what_is_not_built_is_the_one_of_this_version() -> None:
    """Whoever builds a key takes it out here: nothing becomes accepted by accident."""
    assert sorted({path for path, _ in unbuilt(TASK)}) == [
        "wait_for",
    ]
    assert unbuilt(PLUGIN) == []


def test_the_devices_that_jobs_may_take_are_addresses() -> None:
    assert plugin({"vfio_allow": ["0000:65:00.0"]}).vfio_allow == ("0000:65:00.0",)
    assert refused_plugin({"vfio_allow": ["0000:65:00.0", "65:00.0"]}) == (
        "vfio_allow[1] = '65:00.0': expected a PCI address, as 0000:65:00.0"
    )


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
