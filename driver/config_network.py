"""The network part of both blocks: the operator's networks and a job's interfaces. Looks at nothing of the host."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Any, Literal

from driver.decode import Complaints, path_of_label
from vmlib.spec import MacvtapMode
from vmlib.units import parse_size

_MIN_RATE_BYTES = 64 << 10  # below it a single request of a guest's takes longer than it waits for
ALLOC = "alloc"  # as the name of a network: the alloc's own network namespace

_NETWORK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")  # as the kernel has it
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_MAX_INTERFACES = 8  # of a machine: places on its bus
_MAX_ADDRESSES = 16  # of an interface: the kernel takes no longer program for what a guest may send
_MODES_OF_KEY = {
    "parent": ("macvtap",),
    "macvtap_mode": ("macvtap",),
    "filter": ("macvtap", "bridge"),
    "host_shim": ("macvtap",),
    "bridge": ("bridge",),
}
_WITH_PREFIX = "expected an address with the length of its prefix, such as 192.168.1.20/24 or 2001:db8::20/64"

IpInterface = IPv4Interface | IPv6Interface
IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNetwork:
    """A network of the operator's on which a process of ours is the router."""

    name: str
    mode: Literal["user"] = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class MacvtapNetwork:
    """Machines beside the host on an interface of its own."""

    name: str
    parent: str
    macvtap_mode: MacvtapMode = "bridge"
    filter: bool = False
    host_shim: str = ""  # the host's own address among the guests, with the length of its prefix; "" = none
    mode: Literal["macvtap"] = "macvtap"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeNetwork:
    """Machines on a bridge that the operator has made."""

    name: str
    bridge: str
    filter: bool = False
    mode: Literal["bridge"] = "bridge"


Network = UserNetwork | MacvtapNetwork | BridgeNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceConfig:
    """One network_interface block."""

    network: str
    mac: str = ""  # lower case; "" = derived from the alloc, or that of the interface that the guest takes over
    addresses: tuple[str, ...] = ()  # with the length of the prefix
    gateways: tuple[str, ...] = ()  # at most one of each family
    dns: tuple[str, ...] = ()
    rate_bytes: int = 0  # a second


def rate_bytes(complaints: Complaints, key: str, text: str) -> int:
    """Bytes a second, of an interface or a disk; 0 for no limit."""
    if not text:
        return 0
    try:
        size = parse_size(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return 0
    if size < _MIN_RATE_BYTES:
        complaints.add(key, "expected at least 64KiB, a second", value=text)
    return size


# -- plugin block ----------------------------------------------------------------------------------------------------


def networks(complaints: Complaints, blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Network]:
    """The operator's networks by name. One with a complaint is there all the same, so that its name is known."""
    found = {name: _network(complaints, name, block) for name, block in blocks.items()}
    _check_passthru(complaints, found)
    return found


def check_default_network(complaints: Complaints, name: str, known_networks: Mapping[str, Network]) -> None:
    if name and name != ALLOC and name not in known_networks and not complaints.any_about("network"):
        complaints.add(
            "default_network", f'expected "alloc" or the name of a network block, {known(known_networks)}', value=name
        )


def known(names: Mapping[str, object]) -> str:
    """`which are: a, b`, for a name that is none of them."""
    fit_to_show = sorted(name for name in names if _NETWORK_NAME.fullmatch(name))
    return f"which are: {', '.join(fit_to_show)}" if fit_to_show else "of which there are none"


def _network(complaints: Complaints, name: str, block: Mapping[str, Any]) -> Network:
    path, mode = path_of_label("network", name), block["mode"]
    if name == ALLOC:
        complaints.add(path, "this name stands for the alloc's own network, expected another")
    elif not _NETWORK_NAME.fullmatch(name):
        complaints.add(path, "expected a name of at most 32 letters, digits, - and _")
    if complaints.any_about(f"{path}.mode"):
        return UserNetwork(name=name)
    for key, modes in _MODES_OF_KEY.items():
        if block[key] and mode not in modes:
            complaints.add(f"{path}.{key}", f"belongs to a network with mode {' or '.join(modes)}", value=block[key])
    match mode:
        case "macvtap":
            return MacvtapNetwork(
                name=name,
                parent=_host_interface(complaints, f"{path}.parent", block["parent"]),
                macvtap_mode=block["macvtap_mode"] or "bridge",
                filter=block["filter"],
                host_shim=_host_shim(complaints, path, block),
            )
        case "bridge":
            bridge = _host_interface(complaints, f"{path}.bridge", block["bridge"])
            return BridgeNetwork(name=name, bridge=bridge, filter=block["filter"])
        case _:
            return UserNetwork(name=name)


def _host_interface(complaints: Complaints, key: str, text: str) -> str:
    """Whether there is one is a matter of the node, and not looked at here."""
    if complaints.any_about(key):
        return text
    if not text:
        complaints.add(key, "expected the name of an interface of the host's, it is missing")
    elif not _INTERFACE.fullmatch(text) or len(text.encode()) > 15 or text in (".", ".."):
        complaints.add(key, "expected the name of an interface, at most 15 bytes without blank, / and :", value=text)
    return text


def _host_shim(complaints: Complaints, path: str, block: Mapping[str, Any]) -> str:
    text, key = block["host_shim"], f"{path}.host_shim"
    if not text or complaints.any_about(key):
        return ""
    address, fault = _parsed(text)
    if fault:
        complaints.add(key, fault, value=text)
    elif block["macvtap_mode"] not in ("", "bridge"):
        complaints.add(key, "works with macvtap_mode = bridge only, others keep host and guests apart", value=text)
    return str(address) if address is not None else ""


def _check_passthru(complaints: Complaints, found: Mapping[str, Network]) -> None:
    """A parent that one machine has whole cannot be anybody else's."""
    first: dict[str, MacvtapNetwork] = {}
    for name, network in found.items():
        if not isinstance(network, MacvtapNetwork) or not network.parent:
            continue
        other = first.setdefault(network.parent, network)
        if other is not network and "passthru" in (other.macvtap_mode, network.macvtap_mode):
            complaints.add(
                f"{path_of_label('network', name)}.parent",
                f"the same as {path_of_label('network', other.name)}.parent, which does not go with passthru",
                value=network.parent,
            )


# -- task block ------------------------------------------------------------------------------------------------------


def interfaces(complaints: Complaints, blocks: Sequence[Mapping[str, Any]]) -> tuple[InterfaceConfig, ...]:
    """A job's interfaces. What depends on the network's mode is for `driver.links`, which knows this node's."""
    macs: dict[str, int] = {}
    addresses: dict[IpAddress, str] = {}
    made = []
    if len(blocks) > _MAX_INTERFACES:
        complaints.add("network_interface", f"expected at most {_MAX_INTERFACES}, there are {len(blocks)}")
    for index, block in enumerate(blocks):
        path = f"network_interface[{index}]"
        if not block["network"] and not complaints.any_about(f"{path}.network"):
            complaints.add(f"{path}.network", 'expected "alloc" or a network of the plugin block, it is missing')
        if block["network"] == ALLOC:
            _check_alloc(complaints, path, block, any(one["network"] == ALLOC for one in blocks[:index]))
        mac = _mac(complaints, f"{path}.mac", block["mac"], macs, index)
        own = tuple(_addresses(complaints, f"{path}.address", block["address"], addresses))
        made.append(
            InterfaceConfig(
                network=block["network"],
                mac=mac,
                addresses=tuple(map(str, own)),
                gateways=tuple(_gateways(complaints, path, block["gateway"], own)),
                dns=tuple(_dns(complaints, f"{path}.dns", block["dns"])),
                rate_bytes=rate_bytes(complaints, f"{path}.rate_limit", block["rate_limit"]),
            )
        )
    return tuple(made)


def _check_alloc(complaints: Complaints, path: str, block: Mapping[str, Any], again: bool) -> None:
    for key in ("mac", "address", "gateway"):
        if block[key]:
            complaints.add(
                f"{path}.{key}",
                'not with network = "alloc", where the guest takes over what Nomad gave the alloc',
                value=block[key],
            )
    if again:
        complaints.add(f"{path}.network", "the alloc has one network, which another interface has already", value=ALLOC)


def _mac(complaints: Complaints, key: str, text: str, seen: dict[str, int], index: int) -> str:
    mac = text.lower()
    if not mac or complaints.any_about(key):
        return ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        complaints.add(key, "expected a unicast address such as 52:54:00:12:34:56", value=text)
    elif mac in seen:
        complaints.add(key, f"the same as network_interface[{seen[mac]}].mac", value=text)
    seen.setdefault(mac, index)
    return mac


def _addresses(
    complaints: Complaints, key: str, texts: Sequence[str], seen: dict[IpAddress, str]
) -> Iterator[IpInterface]:
    """`seen` has what the machine's other interfaces have, by where that was said."""
    if complaints.any_about(key):
        return
    if len(texts) > _MAX_ADDRESSES:
        complaints.add(key, f"expected at most {_MAX_ADDRESSES}, there are {len(texts)}")
    for number, text in enumerate(texts):
        where = f"{key}[{number}]"
        address, fault = _parsed(text)
        if address is None:
            complaints.add(where, fault, value=text)
            continue
        if fault:
            complaints.add(where, fault, value=text)
        elif address.ip in seen:
            complaints.add(where, f"the same as {seen[address.ip]}", value=text)
        seen.setdefault(address.ip, where)
        yield address


def _gateways(complaints: Complaints, path: str, text: str, own: Sequence[IpInterface]) -> Iterator[str]:
    key = f"{path}.gateway"
    words = text.replace(",", " ").split()
    if not text or complaints.any_about(key):
        return
    if not own:
        if not complaints.any_about(f"{path}.address", *(f"{path}.address[{number}]" for number in range(64))):
            complaints.add(key, "works with address only, which is missing", value=text)
        return
    families: set[int] = set()
    for word in words or [text]:
        fault = _gateway_fault(word, own, families)
        if fault:
            complaints.add(key, fault, value=word)
            continue
        yield str(ip_address(word))


def _gateway_fault(word: str, own: Sequence[IpInterface], families: set[int]) -> str:
    try:
        gateway = ip_address(word)
    except ValueError:
        return "expected an IP address, or one of each family with a comma between them"
    if gateway.version in families:
        return f"a second gateway for IPv{gateway.version}, expected one of each family"
    families.add(gateway.version)
    same = [address for address in own if address.version == gateway.version]
    if not same:
        return f"expected an IPv{gateway.version} address beside it, there is none in address"
    if any(address.ip == gateway for address in same):
        return "the guest's own address, expected the router's"
    if isinstance(gateway, IPv6Address) and gateway.is_link_local and gateway.scope_id is None:
        return ""
    around = next((address.network for address in same if gateway in address.network), None)
    if around is None:
        return f"expected an address in {' or '.join(str(address.network) for address in same)}"
    if gateway.version == 6:
        return ""  # the first address of a subnet is whichever router there is
    return _in_network_fault(gateway, around.prefixlen, around.network_address, around.broadcast_address)


def _dns(complaints: Complaints, key: str, texts: Sequence[str]) -> Iterator[str]:
    if complaints.any_about(key):
        return
    seen: dict[IpAddress, int] = {}
    for number, text in enumerate(texts):
        try:
            server = ip_address(text)
        except ValueError:
            complaints.add(f"{key}[{number}]", "expected the IP address of a name server", value=text)
            continue
        if server in seen:
            complaints.add(f"{key}[{number}]", f"the same as {key}[{seen[server]}]", value=text)
        seen.setdefault(server, number)
        yield str(server)


def _parsed(text: str) -> tuple[IpInterface | None, str]:
    """An address with its prefix, and what is wrong with it."""
    address, slash, length = text.partition("/")
    try:
        parsed = ip_interface(text)
    except ValueError:
        return None, _WITH_PREFIX
    # The library takes 255.255.255.0 for a length, too, and %eth0 after an address.
    if not slash or not length.isdecimal() or "%" in address:
        return None, _WITH_PREFIX
    ip = parsed.ip
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip == IPv4Address("255.255.255.255"):
        return parsed, "expected an address that a machine can have"
    network = parsed.network
    return parsed, _in_network_fault(ip, network.prefixlen, network.network_address, network.broadcast_address)


def _in_network_fault(ip: IpAddress, length: int, first: IpAddress, last: IpAddress) -> str:
    """In a network of two addresses or one, each is a machine's."""
    if length >= ip.max_prefixlen - 1:
        return ""
    if ip == first:
        return f"the address of the network {first}/{length} itself, expected that of a machine"
    if ip == last and ip.version == 4:
        return f"the broadcast address of {first}/{length}, expected that of a machine"
    return ""
