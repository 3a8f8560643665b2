"""The files of the seed disk, compared whole."""

import email
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.disk.seed import MAX_FILE_BYTES, cloud_config, load_user_data, seed_files, share_mounts, with_user_data
from vmlib.disk.volume import prepare_mounts
from vmlib.errors import SpecError
from vmlib.guest.delivery import boothook
from vmlib.resources import ShareAttachment
from vmlib.spec import FileRef, MacvtapLink, MountSpec, NetnsLink, NicSpec, SeedSpec, UserLink

KEYS = ("ssh-ed25519 AAAA one@example", "ssh-ed25519 BBBB two@example")


def test_a_bare_seed_has_metadata_and_an_empty_user_data() -> None:
    assert seed_files(SeedSpec(instance_id="i-1", hostname="web-1")) == {
        "meta-data": b'{\n "instance-id": "i-1",\n "local-hostname": "web-1"\n}\n',
        "user-data": b"",
    }


def test_keys_are_metadata_so_that_user_data_cannot_replace_them() -> None:
    files = seed_files(SeedSpec(instance_id="i-1", hostname="h", ssh_authorized_keys=KEYS, user_data=b"#!/bin/sh\n"))
    assert json.loads(files["meta-data"])["public-keys"] == list(KEYS)
    assert files["user-data"] == b"#!/bin/sh\n"
    assert "vendor-data" not in files


LAN = MacvtapLink(parent="eno1")
NICS = {
    "dhcp": [
        NicSpec(network="a", link=UserLink(), mac="52:54:00:AB:CD:EF"),
        NicSpec(network="b", link=LAN, mac="52:54:00:12:34:56", dns=("192.0.2.53",)),
    ],
    "static": [
        NicSpec(
            network="lan",
            link=LAN,
            mac="52:54:00:12:34:56",
            addresses=("192.0.2.20/24", "2001:db8::20/64"),
            gateways=("192.0.2.1", "fe80::1"),
            dns=("192.0.2.53", "2001:db8::53"),
            search=("example.org",),
        ),
        NicSpec(network="lan", link=LAN, mac="52:54:00:12:34:57", addresses=("198.51.100.7/31",)),
    ],
    "alloc-with-a-network-for-each-address": [
        NicSpec(
            network="alloc",
            link=NetnsLink(netns=Path("/run/netns/x")),
            mac="02:00:00:00:00:01",
            addresses=("10.0.0.7/32",),
            gateways=("169.254.1.1", "2001:db8:1::1"),
        )
    ],
}


@pytest.mark.parametrize("name", NICS)
def test_each_interface_is_told_its_addresses_or_to_ask_for_them(name: str, golden: Callable[[str, str], None]) -> None:
    files = seed_files(SeedSpec(instance_id="i", hostname="h"), NICS[name])
    golden(f"seed/{name}.json", files["network-config"].decode())


@pytest.mark.parametrize("name", NICS)
def test_macs_are_quoted_and_default_routes_written_as_networks(name: str) -> None:
    """Every cloud-init reads them so: YAML 1.1 has a number for a bare MAC, and old versions no `default`."""
    config = json.loads(seed_files(SeedSpec(instance_id="i", hostname="h"), NICS[name])["network-config"])
    for nic, (key, told) in zip(NICS[name], config["ethernets"].items(), strict=True):
        assert told["match"] == {"macaddress": nic.mac.lower()}
        assert told["set-name"] == key
        assert [route["to"] for route in told.get("routes", ())] == ["0.0.0.0/0", "::/0"][: len(nic.gateways)]


@pytest.mark.parametrize("given_config", [b"version: 1\nconfig: []\n", b"", b"\xff\x00 anything"])
def test_a_given_network_config_is_kept_byte_for_byte(given_config: bytes) -> None:
    nics = [NicSpec(network="a", link=UserLink(), mac="52:54:00:12:34:56")]
    files = seed_files(SeedSpec(instance_id="i", hostname="h", network_config=given_config), nics)
    assert files["network-config"] == given_config


def test_cloud_init_does_not_take_a_share_for_a_block_device(tmp_path: Path) -> None:
    """Its own rule (cc_mounts.py): a first field that matches this is left as it is."""
    (share,) = prepare_mounts([MountSpec(source=tmp_path, guest_path="/srv/data")])
    assert isinstance(share, ShareAttachment)
    ((name, *_),) = share_mounts([share])
    assert re.match(r"^.+:.*", name)


def test_shares_are_lines_of_fstab_in_vendor_data() -> None:
    shares = [
        ShareAttachment(name="fs0", tag="chv:local", guest_path="/local", source=Path("/a")),
        ShareAttachment(name="fs1", tag="chv:srv-data", guest_path="/srv/data", source=Path("/b"), readonly=True),
    ]
    assert cloud_config(shares) == {
        "mounts": [
            ["chv:local", "/local", "virtiofs", "rw,nofail", "0", "0"],
            ["chv:srv-data", "/srv/data", "virtiofs", "ro,nofail", "0", "0"],
        ]
    }


@given(data=st.binary(max_size=2000))
def test_user_data_is_kept_byte_for_byte(data: bytes) -> None:
    assert seed_files(SeedSpec(instance_id="i", hostname="h", user_data=data))["user-data"] == data


@given(comment=st.text())
def test_metadata_is_json_without_what_yaml_takes_for_a_line_break(comment: str) -> None:
    text = seed_files(SeedSpec(instance_id="i", hostname="h", ssh_authorized_keys=(comment,)))["meta-data"].decode()
    assert json.loads(text)["public-keys"] == [comment]
    assert not re.search("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", text)
    assert not re.search(r"\\ud[89a-f]", text)


CONFIG = {"mounts": [["loc\u00e4l", "/local", "virtiofs", "nofail"]], "bootcmd": [["echo", "\U0001f600"]]}


def test_vendor_data_is_a_mime_part_of_cloud_config_with_a_json_body() -> None:
    files = seed_files(SeedSpec(instance_id="i", hostname="h", user_data=b"#!/bin/sh\n"), vendor_config=CONFIG)
    message = email.message_from_bytes(files["vendor-data"])
    assert not message.defects
    assert message.get_content_type() == "multipart/mixed"
    _, part = message.walk()
    assert part.get_content_type() == "text/cloud-config"
    body = part.get_payload(decode=True)
    assert isinstance(body, bytes)
    head, _, rest = body.partition(b"\n")
    assert head == b"#cloud-config"
    assert json.loads(rest) == CONFIG
    assert files["user-data"] == b"#!/bin/sh\n"


@pytest.mark.parametrize("kind", ["linux", "windows"])
def test_there_is_no_vendor_data_where_nothing_is_wanted_or_nobody_reads_it(kind: Literal["linux", "windows"]) -> None:
    spec = SeedSpec(instance_id="i", hostname="h", ssh_authorized_keys=KEYS)
    nics = [NicSpec(network="a", link=UserLink(), mac="52:54:00:12:34:56")]
    nothing = seed_files(spec, nics)
    assert sorted(nothing) == ["meta-data", "network-config", "user-data"]
    assert seed_files(spec, nics, vendor_config={}, guest_os=kind) == nothing
    assert seed_files(spec, nics, vendor_config=CONFIG, guest_os="windows") == nothing


def test_the_agent_is_a_boothook_beside_our_cloud_config_and_leaves_user_data_alone() -> None:
    spec = SeedSpec(instance_id="i", hostname="h", user_data=b"#!/bin/sh\n", agent=True)
    files = seed_files(spec, vendor_config=CONFIG)
    assert files["user-data"] == b"#!/bin/sh\n"
    message = email.message_from_bytes(files["vendor-data"])
    assert not message.defects
    parts = list(message.walk())[1:]
    assert [part.get_content_type() for part in parts] == ["text/cloud-boothook", "text/cloud-config"]
    assert parts[0].get_payload(decode=True) == boothook()
    alone = email.message_from_bytes(seed_files(spec)["vendor-data"])
    assert [part.get_content_type() for part in alone.walk()] == ["multipart/mixed", "text/cloud-boothook"]
    assert seed_files(spec, guest_os="windows") == seed_files(replace(spec, agent=False))


def test_a_seed_shows_no_secrets_when_it_is_printed() -> None:
    secret = "hunter2"
    spec = SeedSpec(
        instance_id="i",
        hostname="h",
        ssh_authorized_keys=(secret,),
        user_data=secret.encode(),
        network_config=secret.encode(),
        environment={"A": secret},
    )
    assert secret not in f"{spec} {spec!r}"


def test_environment_file_is_sorted_and_quoted() -> None:
    environment = {"B": "it's $5 `now`", "A": 'say "hi" \\', "EMPTY": "", "no-name": "x", "x\nrm -rf": "y"}
    assert seed_files(SeedSpec(instance_id="i", hostname="h", environment=environment))["nomad.env"].decode() == (
        'A="say \\"hi\\" \\\\"\n'
        'B="it\'s \\$5 \\`now\\`"\n'
        'EMPTY=""\n'
        '# not a name that sh can hold: "no-name"\n'
        '# not a name that sh can hold: "x\\nrm -rf"\n'
    )


def test_a_nul_in_the_environment_is_refused_without_showing_the_value() -> None:
    with pytest.raises(SpecError, match=r"env: 'TOKEN' holds a NUL byte") as caught:
        seed_files(SeedSpec(instance_id="i", hostname="h", environment={"TOKEN": "se\0cret"}))
    assert "cret" not in str(caught.value)


TOO_MUCH = MAX_FILE_BYTES + 1


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (SeedSpec(instance_id="i", hostname="h", user_data=b"x" * TOO_MUCH), "user_data: 1048577 bytes"),
        (SeedSpec(instance_id="i", hostname="h", network_config=b"x" * TOO_MUCH), "network_config: 1048577 bytes"),
        (SeedSpec(instance_id="i", hostname="h", ssh_authorized_keys=("x" * TOO_MUCH,)), "ssh_authorized_keys: "),
        (SeedSpec(instance_id="i", hostname="h", environment={"A": "x" * TOO_MUCH}), "env: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_above_the_cap_is_refused_by_its_key(spec: SeedSpec, key: str) -> None:
    with pytest.raises(SpecError) as caught:
        seed_files(spec)
    assert str(caught.value).startswith(key)


def test_user_data_of_exactly_the_cap_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "fits").write_bytes(b"x" * MAX_FILE_BYTES)
    (tmp_path / "large").write_bytes(b"x" * TOO_MUCH)
    assert len(load_user_data(FileRef(root=tmp_path, relative="fits"))) == MAX_FILE_BYTES
    with pytest.raises(SpecError, match=r"user_data = '.*/large': 1048577 bytes, expected at most 1048576"):
        load_user_data(FileRef(root=tmp_path, relative="large"))


def test_user_data_of_a_file_reaches_the_seed_byte_for_byte(tmp_path: Path) -> None:
    text = b"#!/bin/sh\r\necho '\xff ${x}'\n"
    (tmp_path / "user-data").write_bytes(text)
    spec = SeedSpec(
        instance_id="i", hostname="h", user_data_file=FileRef(root=tmp_path, relative="user-data"), user_data=None
    )
    assert seed_files(with_user_data(spec))["user-data"] == text


def test_user_data_that_is_given_inline_stays_as_it_is() -> None:
    spec = SeedSpec(instance_id="i", hostname="h", user_data=b"#cloud-config\n")
    assert with_user_data(spec) is spec
