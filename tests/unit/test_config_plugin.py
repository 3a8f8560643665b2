"""Decoding the plugin block: defaults, every complaint at once and in full."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.config_network import UserNetwork
from driver.config_plugin import CoresConfig, PluginConfig, decode_plugin_config
from driver.keys import PLUGIN
from tests.unit.config_blocks import complaints_of, plugin, refused_plugin, values
from vmlib.spec import NfsExport


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


def test_the_devices_that_jobs_may_take_are_addresses() -> None:
    assert plugin({"vfio_allow": ["0000:65:00.0"]}).vfio_allow == ("0000:65:00.0",)
    assert refused_plugin({"vfio_allow": ["0000:65:00.0", "65:00.0"]}) == (
        "vfio_allow[1] = '65:00.0': expected a PCI address, as 0000:65:00.0"
    )


@given(st.dictionaries(st.sampled_from([member.name for member in PLUGIN]), values))
def test_plugin_values_of_any_shape_are_taken_or_refused_never_a_crash(config: dict[str, object]) -> None:
    assert all(": " in line and len(line) < 1000 for line in complaints_of(plugin, config))
