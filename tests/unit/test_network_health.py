"""What node and doctor say of the operator's networks."""

from driver.cli.doctor_network import link_lines
from driver.config_network import BridgeNetwork, MacvtapNetwork, UserNetwork
from driver.fingerprint import NodeFacts, fingerprint
from driver.network_health import network_facts, parents
from vmlib.net.look import Seen

LINKED: dict[str, MacvtapNetwork | BridgeNetwork] = {
    "lan": MacvtapNetwork(name="lan", parent="eno1"),
    "shim": MacvtapNetwork(name="shim", parent="eno1", host_shim="192.0.2.5/24"),
    "apart": MacvtapNetwork(name="apart", parent="eno1", macvtap_mode="private"),
    "gone": MacvtapNetwork(name="gone", parent="eno9"),
    "dmz": BridgeNetwork(name="dmz", bridge="br0"),
    "bad": BridgeNetwork(name="bad", bridge="eno1"),
}
SEEN = {
    "eno1": Seen(name="eno1", state="up"),
    "br0": Seen(name="br0", state="down", kind="bridge"),
}


def test_only_networks_that_can_be_had_are_attributes_and_the_others_are_health_text() -> None:
    networks = [*LINKED.values(), UserNetwork(name="nat")]
    assert parents(networks) == {"eno1", "eno9", "br0"}
    found = fingerprint(NodeFacts(networks=tuple(network_facts(networks, SEEN)), warnings=("w",)))
    assert found.health == "healthy"
    assert found.text == (
        "w; network gone: this host has no interface 'eno9'; network dmz: br0 is down; network bad: 'eno1' is no bridge"
    )
    prefix = "driver.chv.network."
    assert {key.removeprefix(prefix): v for key, v in found.attributes.items() if key.startswith(prefix)} == {
        "lan": "macvtap",
        "lan.parent": "eno1",
        "lan.state": "up",
        "shim": "macvtap",
        "shim.parent": "eno1",
        "shim.state": "up",
        "apart": "macvtap",
        "apart.parent": "eno1",
        "apart.state": "up",
        "dmz": "bridge",
        "dmz.parent": "br0",
        "dmz.state": "down",
        "nat": "user",
    }


def test_doctor_has_a_verdict_and_a_cure_for_each() -> None:
    apart = "this host and its guests do not reach each other"
    assert list(link_lines(LINKED, SEEN)) == [
        (
            "network lan",
            "ok",
            f"macvtap on eno1, mode bridge; {apart}",
            "host_shim gives this host an address that they reach",
        ),
        ("network shim", "ok", "macvtap on eno1, mode bridge; this host is 192.0.2.5/24 to its guests", ""),
        ("network apart", "ok", f"macvtap on eno1, mode private; {apart}", ""),
        (
            "network gone",
            "problem",
            "macvtap on eno9: this host has no interface 'eno9'",
            "make it, or name another one as parent in the plugin block",
        ),
        ("network dmz", "warning", "bridge on br0: br0 is down", "ip link set br0 up, or look at its cable"),
        (
            "network bad",
            "problem",
            "bridge on eno1: 'eno1' is no bridge",
            "name a bridge, or use mode macvtap with it as parent",
        ),
    ]


def test_doctor_warns_of_a_wireless_parent() -> None:
    lan = {"lan": MacvtapNetwork(name="lan", parent="wlan0")}
    (line,) = link_lines(lan, {"wlan0": Seen(name="wlan0", state="up", wireless=True)})
    assert line[:2] == ("network lan", "warning")
    assert "from the host's own MAC alone" in line[2]
    assert line[3] == "name a wired parent, or use mode user"
