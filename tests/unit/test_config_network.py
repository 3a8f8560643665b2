"""The network part of both blocks: what is read, and each complaint in its own words."""

from ipaddress import ip_interface

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.config_network import BridgeNetwork, InterfaceConfig, MacvtapNetwork, UserNetwork, interfaces
from driver.config_plugin import decode_plugin_config
from driver.config_task import decode_task_config
from driver.decode import Complaints
from vmlib.errors import HostError, SpecError


def plugin(network: dict[str, object], **more: object) -> object:
    return decode_plugin_config(msgspec.msgpack.encode({"network": network} | more)).networks


def refused_plugin(network: dict[str, object], **more: object) -> str:
    with pytest.raises(HostError) as refused:
        plugin(network, **more)
    return str(refused.value)


def task(*nics: dict[str, object]) -> tuple[InterfaceConfig, ...]:
    config = {"kernel": "local/k", "network_interface": list(nics)}
    return decode_task_config(msgspec.msgpack.encode(config)).network_interfaces


def refused_task(*nics: dict[str, object]) -> str:
    with pytest.raises(SpecError) as refused:
        task(*nics)
    return str(refused.value)


# -- plugin block ----------------------------------------------------------------------------------------------------


def test_networks_of_every_mode_are_read() -> None:
    blocks: dict[str, object] = {
        "lan": {"mode": "macvtap", "parent": "eno1", "filter": True, "host_shim": "192.168.1.5/24"},
        "quiet": {"mode": "macvtap", "parent": "eno1.20", "macvtap_mode": "private"},
        "dmz": {"mode": "bridge", "bridge": "br0", "filter": True},
        "nat": {"mode": "user"},
    }
    assert plugin(blocks, default_network="alloc") == {
        "lan": MacvtapNetwork(name="lan", parent="eno1", filter=True, host_shim="192.168.1.5/24"),
        "quiet": MacvtapNetwork(name="quiet", parent="eno1.20", macvtap_mode="private"),
        "dmz": BridgeNetwork(name="dmz", bridge="br0", filter=True),
        "nat": UserNetwork(name="nat"),
    }


LAN = {"mode": "macvtap", "parent": "eno1"}
A_NAME = "expected the name of an interface"
MISSING = "expected the name of an interface of the host's, it is missing"
WITH_PREFIX = "expected an address with the length of its prefix, such as 192.168.1.20/24 or 2001:db8::20/64"


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ({"mode": "macvtap"}, f"network.n.parent: {MISSING}"),
        ({"mode": "bridge"}, f"network.n.bridge: {MISSING}"),
        *(
            (
                {"mode": "bridge", "bridge": name},
                f"network.n.bridge = {name!r}: {A_NAME}, at most 15 bytes without blank, / and :",
            )
            for name in ("a b", "a/b", "a:b", "..", "sixteen-letters.", "ääääääää")
        ),
        (
            {"mode": "bridge", "bridge": "b", "parent": "eno1"},
            "network.n.parent = 'eno1': belongs to a network with mode macvtap",
        ),
        (
            {"mode": "bridge", "bridge": "b", "macvtap_mode": "vepa"},
            "network.n.macvtap_mode = 'vepa': belongs to a network with mode macvtap",
        ),
        (
            {"mode": "bridge", "bridge": "b", "host_shim": "10.0.0.1/24"},
            "network.n.host_shim = '10.0.0.1/24': belongs to a network with mode macvtap",
        ),
        (LAN | {"bridge": "b"}, "network.n.bridge = 'b': belongs to a network with mode bridge"),
        (
            {"mode": "user", "bridge": "b"},
            "network.n.bridge = 'b': belongs to a network with mode bridge",
        ),
        (
            LAN | {"macvtap_mode": "open"},
            "network.n.macvtap_mode = 'open': expected \"\", bridge, private, vepa or passthru",
        ),
        (LAN | {"host_shim": "10.0.0.1"}, f"network.n.host_shim = '10.0.0.1': {WITH_PREFIX}"),
        (
            LAN | {"host_shim": "10.0.0.0/24"},
            (
                "network.n.host_shim = '10.0.0.0/24': the address of the network 10.0.0.0/24 itself, expected that of a"
                " machine"
            ),
        ),
        (
            LAN | {"host_shim": "10.0.0.1/24", "macvtap_mode": "private"},
            (
                "network.n.host_shim = '10.0.0.1/24': works with macvtap_mode = bridge only, others keep host and"
                " guests apart"
            ),
        ),
    ],
)
def test_the_operator_is_told_what_a_network_lacks(block: dict[str, object], complaint: str) -> None:
    assert refused_plugin({"n": block}) == complaint


def test_a_parent_that_one_machine_has_whole_is_no_other_networks() -> None:
    assert refused_plugin({"a": LAN, "b": LAN | {"macvtap_mode": "passthru"}}) == (
        "network.b.parent = 'eno1': the same as network.a.parent, which does not go with passthru"
    )
    assert plugin({"a": LAN, "b": LAN | {"macvtap_mode": "private"}})


# -- task block ------------------------------------------------------------------------------------------------------


def test_an_interface_is_read_with_its_addresses() -> None:
    made = task(
        {
            "network": "lan",
            "address": ["192.0.2.20/24", "2001:DB8:0::20/64"],
            "gateway": "192.0.2.1, 2001:db8::1",
            "dns": ["192.0.2.53", "2001:db8::53"],
        },
        {"network": "alloc", "dns": ["192.0.2.53"]},
        {"network": "p2p", "address": ["198.51.100.0/31"], "gateway": "198.51.100.1"},
    )
    assert made == (
        InterfaceConfig(
            network="lan",
            addresses=("192.0.2.20/24", "2001:db8::20/64"),
            gateways=("192.0.2.1", "2001:db8::1"),
            dns=("192.0.2.53", "2001:db8::53"),
        ),
        InterfaceConfig(network="alloc", dns=("192.0.2.53",)),
        InterfaceConfig(network="p2p", addresses=("198.51.100.0/31",), gateways=("198.51.100.1",)),
    )


@pytest.mark.parametrize("text", ["192.0.2.1 2001:db8::1", "192.0.2.1,2001:db8::1", " 2001:db8::1 ,\t192.0.2.1"])
def test_gateways_have_a_comma_or_a_blank_between_them(text: str) -> None:
    if "\t" in text:
        text = text.replace("\t", " ")
    (made,) = task({"network": "lan", "address": ["192.0.2.20/24", "2001:db8::20/64"], "gateway": text})
    assert set(made.gateways) == {"192.0.2.1", "2001:db8::1"}


def test_a_gateway_of_the_link_itself_belongs_to_no_subnet() -> None:
    (made,) = task({"network": "lan", "address": ["2001:db8::20/64"], "gateway": "fe80::1"})
    assert made.gateways == ("fe80::1",)


NIC = "network_interface[0]"
A_GATEWAY = "expected an IP address, or one of each family with a comma between them"
NOT_ALLOC = 'not with network = "alloc", where the guest takes over what Nomad gave the alloc'


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        *(
            ({"address": [text]}, f"{NIC}.address[0] = {text!r}: {WITH_PREFIX}")
            for text in (
                "192.0.2.20",
                "2001:db8::20",
                "192.0.2.20/33",
                "192.0.2.20/255.255.255.0",
                "192.0.2.020/24",
                "fe80::1%eth0/64",
                "dhcp",
                "",
            )
        ),
        (
            {"address": ["192.0.2.0/24"]},
            (
                f"{NIC}.address[0] = '192.0.2.0/24': the address of the network 192.0.2.0/24 itself, expected that of a"
                " machine"
            ),
        ),
        (
            {"address": ["192.0.2.255/24"]},
            f"{NIC}.address[0] = '192.0.2.255/24': the broadcast address of 192.0.2.0/24, expected that of a machine",
        ),
        (
            {"address": ["2001:db8::/64"]},
            (
                f"{NIC}.address[0] = '2001:db8::/64': the address of the network 2001:db8::/64 itself, expected that of"
                " a machine"
            ),
        ),
        *(
            ({"address": [text]}, f"{NIC}.address[0] = {text!r}: expected an address that a machine can have")
            for text in ("127.0.0.1/8", "224.0.0.1/24", "ff02::1/64", "0.0.0.0/0", "::/0", "::1/128")
        ),
        (
            {"address": ["192.0.2.20/24", "192.0.2.20/25"]},
            f"{NIC}.address[1] = '192.0.2.20/25': the same as {NIC}.address[0]",
        ),
        ({"gateway": "192.0.2.1"}, f"{NIC}.gateway = '192.0.2.1': works with address only, which is missing"),
        (
            {"address": ["192.0.2.20/24"], "gateway": "198.51.100.1"},
            f"{NIC}.gateway = '198.51.100.1': expected an address in 192.0.2.0/24",
        ),
        (
            {"address": ["192.0.2.20/24", "10.0.0.1/8"], "gateway": "198.51.100.1"},
            f"{NIC}.gateway = '198.51.100.1': expected an address in 192.0.2.0/24 or 10.0.0.0/8",
        ),
        (
            {"address": ["192.0.2.20/24"], "gateway": "192.0.2.20"},
            f"{NIC}.gateway = '192.0.2.20': the guest's own address, expected the router's",
        ),
        (
            {"address": ["192.0.2.20/24"], "gateway": "192.0.2.255"},
            f"{NIC}.gateway = '192.0.2.255': the broadcast address of 192.0.2.0/24, expected that of a machine",
        ),
        (
            {"address": ["192.0.2.20/24"], "gateway": "192.0.2.1, 192.0.2.2"},
            f"{NIC}.gateway = '192.0.2.2': a second gateway for IPv4, expected one of each family",
        ),
        (
            {"address": ["192.0.2.20/24"], "gateway": "2001:db8::1"},
            f"{NIC}.gateway = '2001:db8::1': expected an IPv6 address beside it, there is none in address",
        ),
        *(
            ({"address": ["192.0.2.20/24"], "gateway": text}, f"{NIC}.gateway = {text!r}: {A_GATEWAY}")
            for text in ("192.0.2.1/24", "router", " ")
        ),
        (
            {"dns": ["dns.example.org"]},
            f"{NIC}.dns[0] = 'dns.example.org': expected the IP address of a name server",
        ),
        ({"dns": ["192.0.2.1", "192.0.2.1"]}, f"{NIC}.dns[1] = '192.0.2.1': the same as {NIC}.dns[0]"),
    ],
)
def test_the_jobs_author_is_told_what_is_wrong_with_an_address(keys: dict[str, object], complaint: str) -> None:
    assert refused_task({"network": "lan", **keys}) == complaint


def test_one_machine_has_no_address_twice() -> None:
    one: dict[str, object] = {"network": "lan", "address": ["2001:db8::20/64"]}
    two: dict[str, object] = {"network": "dmz", "address": ["2001:db8:0::20/48"]}
    assert refused_task(one, two) == (
        "network_interface[1].address[0] = '2001:db8:0::20/48': the same as network_interface[0].address[0]"
    )


def test_what_the_namespace_has_is_not_for_the_job_to_say() -> None:
    keys = {"mac": "52:54:00:00:00:01", "address": ["192.0.2.20/24"], "gateway": "192.0.2.1"}
    assert refused_task({"network": "alloc", **keys}).splitlines() == [
        f"{NIC}.mac = '52:54:00:00:00:01': {NOT_ALLOC}",
        f"{NIC}.address = ['192.0.2.20/24']: {NOT_ALLOC}",
        f"{NIC}.gateway = '192.0.2.1': {NOT_ALLOC}",
    ]
    assert refused_task({"network": "alloc"}, {"network": "alloc"}) == (
        "network_interface[1].network = 'alloc': the alloc has one network, which another interface has already"
    )


def test_more_than_a_machine_can_have_is_refused_before_anything_is_made() -> None:
    lan: dict[str, object] = {"network": "lan"}
    assert len(task(*[lan] * 8)) == 8
    assert refused_task(*[lan] * 9) == "network_interface: expected at most 8, there are 9"
    addresses = [f"192.0.2.{number}/24" for number in range(1, 18)]
    assert task(lan | {"address": addresses[:16]})
    assert refused_task(lan | {"address": addresses}) == f"{NIC}.address: expected at most 16, there are 17"


def test_all_complaints_about_interfaces_come_at_once() -> None:
    lines = refused_task(
        {"address": ["192.0.2.20"], "gateway": "192.0.2.1", "dns": ["x"], "rate_limit": "1KiB"},
        {"network": "lan", "mac": "x", "gateway": "192.0.2.1"},
    ).splitlines()
    assert [line.partition(":")[0].partition(" ")[0] for line in lines] == [
        "network_interface[0].network",
        "network_interface[0].address[0]",
        "network_interface[0].dns[0]",
        "network_interface[0].rate_limit",
        "network_interface[1].mac",
        "network_interface[1].gateway",
    ]


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_what_is_accepted_can_be_a_machines_and_its_routers(address: object, length: int, gateway: object) -> None:
    complaints = Complaints()
    text = f"{address}/{length}"
    block = {"network": "lan", "mac": "", "address": (text,), "gateway": str(gateway), "dns": (), "rate_limit": ""}
    (made,) = interfaces(complaints, [block])
    if not complaints.lines:
        own = ip_interface(made.addresses[0])
        assert made.gateways == (str(gateway),)
        assert gateway in own.network
        assert gateway != own.ip
        if length < 31:
            assert not {own.ip, gateway} & {own.network.network_address, own.network.broadcast_address}
