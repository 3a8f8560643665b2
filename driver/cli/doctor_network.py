"""What `chv doctor` says of networks with a parent or a bridge. Pure, on what `vmlib.net.look` has seen."""

from collections.abc import Iterator, Mapping
from typing import Literal

from driver.config_network import BridgeNetwork, MacvtapNetwork
from driver.network_health import network_facts, parent_of
from vmlib.net.look import Seen

Line = tuple[str, Literal["ok", "warning", "problem"], str, str]


def link_lines(networks: Mapping[str, MacvtapNetwork | BridgeNetwork], seen: Mapping[str, Seen]) -> Iterator[Line]:
    """Check, verdict, text and cure of each."""
    for facts in network_facts(networks.values(), seen):
        network, check = networks[facts.name], f"network {facts.name}"
        what = f"{network.mode} on {parent_of(network)}"
        if facts.complaint:
            yield check, "problem" if facts.lack else "warning", f"{what}: {facts.complaint}", facts.cure
            continue
        if isinstance(network, MacvtapNetwork) and seen[network.parent].wireless:
            found = f"{what}: it is wireless, and an access point takes frames from the host's own MAC alone"
            yield check, "warning", found, "name a wired parent, or use mode user"
            continue
        if not isinstance(network, MacvtapNetwork):
            yield check, "ok", what, ""
            continue
        what += f", mode {network.macvtap_mode}"
        if network.host_shim:
            yield check, "ok", f"{what}; this host is {network.host_shim} to its guests", ""
        else:
            cure = "" if network.macvtap_mode != "bridge" else "host_shim gives this host an address that they reach"
            yield check, "ok", f"{what}; this host and its guests do not reach each other", cure
