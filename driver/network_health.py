"""Whether the operator's networks can be had on this host. Pure, on what `vmlib.net.look` has seen."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from driver.config_network import BridgeNetwork, MacvtapNetwork, Network, UserNetwork
from vmlib.net.look import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """One network of the operator's."""

    name: str
    mode: str
    parent: str = ""  # the interface or the bridge; "" = it needs none
    state: str = ""  # "up" or "down"
    lack: str = ""  # why no machine can be plugged into it
    cure: str = ""
    router: str = ""  # of a user network

    @property
    def complaint(self) -> str:
        """What is not as it should be; empty when all is well."""
        if self.lack:
            return self.lack
        return f"{self.parent} is down" if self.state == "down" else ""


def parents(networks: Iterable[Network]) -> set[str]:
    """The interfaces to look at."""
    return {name for network in networks if (name := parent_of(network))}


def parent_of(network: Network) -> str:
    match network:
        case MacvtapNetwork():
            return network.parent
        case BridgeNetwork():
            return network.bridge
        case UserNetwork():
            return ""


def network_facts(networks: Iterable[Network], seen: Mapping[str, Seen], *, router: str = "") -> Iterator[NetworkFacts]:
    """What each network is like on a host with these interfaces, and with that router for user networks."""
    for network in networks:
        parent = parent_of(network)
        lack, cure = _lack(network, parent, seen)
        found = seen.get(parent)
        state = found.state if found is not None and not lack else ""
        if state == "down":
            cure = f"ip link set {parent} up, or look at its cable"
        yield NetworkFacts(
            name=network.name,
            mode=network.mode,
            parent=parent,
            state=state,
            lack=lack,
            cure=cure,
            router=router if isinstance(network, UserNetwork) else "",
        )


def _lack(network: Network, parent: str, seen: Mapping[str, Seen]) -> tuple[str, str]:
    if not parent:
        return "", ""
    key = "bridge" if isinstance(network, BridgeNetwork) else "parent"
    if parent not in seen:
        make = f"ip link add {parent} type bridge && ip link set {parent} up" if key == "bridge" else "make it"
        return f"this host has no interface {parent!r}", f"{make}, or name another one as {key} in the plugin block"
    if isinstance(network, BridgeNetwork) and seen[parent].kind != "bridge":
        return f"{parent!r} is no bridge", "name a bridge, or use mode macvtap with it as parent"
    return "", ""
