"""The links of a task's machine: a job's interfaces in vmlib's words, and what Nomad is told of them. Pure."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from driver._pb import driver_pb2 as pb
from driver.config_network import ALLOC, BridgeNetwork, InterfaceConfig, MacvtapNetwork, Network, UserNetwork, known
from driver.config_plugin import PluginConfig
from driver.config_task import TaskConfig
from driver.decode import Complaints
from vmlib.record import NicRecord
from vmlib.spec import BridgeLink, Link, MachineSpec, MacvtapLink, NetnsLink, NicSpec, PortForward, UserLink

# What Nomad's Connect leaves where a task can see it.
_CONNECT_PORT = "connect-proxy-"
_CONNECT_ENV = "NOMAD_UPSTREAM_"
# Labels that Docker's pause container leaves on the namespace: its own id is no name that a job has asked for.
_PAUSE_CONTAINER, _PAUSE_HOSTNAME = "docker_sandbox_container_id", "docker_sandbox_hostname"


def nic_specs(
    complaints: Complaints,
    task: pb.TaskConfig,
    options: TaskConfig,
    plugin: PluginConfig,
    *,
    in_namespace: Sequence[str] = (),
    host_dns: Sequence[str] = (),
) -> tuple[NicSpec, ...]:
    """The machine's interfaces. `in_namespace` says who else uses the network namespace of the group by now, `host_dns`
    which name servers this host has.
    """
    interfaces = options.network_interfaces or _default(task, plugin)
    made: list[NicSpec] = []
    for index, interface in enumerate(interfaces):
        path = f"network_interface[{index}]"
        if interface.network == ALLOC:
            _check_alloc(complaints, path, task, in_namespace)
            link: Link | None = NetnsLink(netns=Path(task.network_isolation_spec.path))
        else:
            link = _operators(complaints, path, interface, task, plugin)
        if link is None:
            continue
        if isinstance(link, UserLink) and not any(isinstance(one.link, UserLink) for one in made):
            link = UserLink(forwards=_forwards(task), netns=link.netns)
        made.append(
            NicSpec(
                network=interface.network,
                link=link,
                mac=_mac(task, interface, index),
                addresses=interface.addresses,
                gateways=interface.gateways,
                dns=interface.dns,
                rate_bytes=interface.rate_bytes,
            )
        )
    _check_together(complaints, made)
    _check_ports(complaints, task, made)
    return _with_dns(complaints, task, made, host_dns)


def _mac(task: pb.TaskConfig, interface: InterfaceConfig, index: int) -> str:
    if interface.network == ALLOC:
        return ""
    return interface.mac or derived_mac(task.alloc_id, task.name, index)


def lints(task: pb.TaskConfig, nics: Sequence[NicSpec]) -> Iterator[str]:
    """What of the group's network block does not reach the guest."""
    labels = ", ".join(port.label for port in task.resources.ports)
    if labels and not nics:
        yield f"ports {labels} lead nowhere: the machine has no network_interface"
    elif labels and not _serves_ports(nics) and not any(nic.addresses for nic in nics):
        yield (
            f"ports {labels} lead nowhere: host ports reach a guest on the network alloc or on one of mode user, and"
            " services one whose address is in the job"
        )
    if nics and task.dns.options:
        yield f"dns options {', '.join(task.dns.options)} are not carried to the guest"


def derived_mac(alloc_id: str, task_name: str, index: int) -> str:
    """The address of interface number `index` of a task: 46 bits of a hash, locally administered, unicast."""
    digest = hashlib.sha256("\0".join((alloc_id, task_name, str(index))).encode()).digest()
    first = digest[0] & 0xFC | 0x02
    return ":".join(f"{byte:02x}" for byte in (first, *digest[1:6]))


def group_hostname(task: pb.TaskConfig) -> str:
    """What the group's network block says; empty when it says nothing."""
    isolation = task.network_isolation_spec
    if _PAUSE_CONTAINER in isolation.labels and _PAUSE_HOSTNAME not in isolation.labels:
        return ""
    return isolation.hostsConfig.hostname


def need_seed(nics: Sequence[NicSpec]) -> bool:
    """Whether a guest that asks for an address by DHCP would miss something that only its seed can tell."""
    return any(nic.addresses or nic.dns or nic.search or isinstance(nic.link, NetnsLink) for nic in nics)


def shared(spec: MachineSpec) -> bool:
    """Whether a machine is on anything that another one could have a part of."""
    return any(not isinstance(nic.link, UserLink) for nic in spec.nics)


def taken(spec: MachineSpec, others: Iterable[tuple[str, Sequence[NicRecord | NicSpec]]]) -> str:
    """Why a machine cannot have its links beside those of others on this node, by name; empty when it can."""
    alloc = spec.name.partition("/")[0]
    for name, nics in others:
        if name == spec.name:
            continue
        for nic, held in itertools.product(spec.nics, nics):
            if held.network != nic.network or isinstance(nic.link, UserLink):
                continue
            if isinstance(nic.link, NetnsLink):
                if name.partition("/")[0] == alloc:
                    return f"network alloc: machine {name} of this alloc has it already"
            elif held.mac == nic.mac:
                return f"mac = {nic.mac!r}: machine {name} has it on network {nic.network!r} of this node"
    return ""


def network_override(
    task: pb.TaskConfig, nics: Sequence[NicSpec], records: Sequence[NicRecord]
) -> pb.NetworkOverride | None:
    """What StartTask tells Nomad of the guest's address; None when it is not known, or would mislead.

    Nomad registers a service of address_mode "driver" at this address and at the port's `to`, whatever the port map
    says of a label of the group's. So a router of ours is worth telling only where it listens on just that port.
    """
    address, served = _own_address(task, nics, records), _serves_ports(nics)
    port_map = {port.label: _guest_port(port) for port in task.resources.ports}
    if address:
        # Without anybody who serves the host's ports, the guest's address is the only one that works.
        return pb.NetworkOverride(addr=address, port_map=port_map, auto_advertise=not served)
    if not served:
        return None
    if task.network_isolation_spec.path:
        address = task.network_isolation_spec.hostsConfig.address
    elif all(port.to == port.value for port in task.resources.ports):
        address = next((port.host_ip for port in task.resources.ports), "")
    return pb.NetworkOverride(addr=address, port_map=port_map) if address else None


# -- which link ------------------------------------------------------------------------------------------------------


def _default(task: pb.TaskConfig, plugin: PluginConfig) -> tuple[InterfaceConfig, ...]:
    network = plugin.default_network or (ALLOC if task.network_isolation_spec.path else "")
    return (InterfaceConfig(network=network),) if network else ()


def _check_alloc(complaints: Complaints, path: str, task: pb.TaskConfig, in_namespace: Sequence[str]) -> None:
    key = f"{path}.network"
    if not task.network_isolation_spec.path:
        complaints.add(
            key,
            'the group has no network namespace, expected network { mode = "bridge" } (or a CNI network) in the group',
            value=ALLOC,
        )
        return
    others = list(in_namespace)
    if any(port.label.startswith(_CONNECT_PORT) for port in task.resources.ports) or any(
        name.startswith(_CONNECT_ENV) for name in task.env
    ):
        others.append("Connect's proxy")
    if others:
        complaints.add(
            key,
            f"the guest would take the network from {', '.join(others)} in this group, expected a network of mode user",
            value=ALLOC,
        )


def _operators(
    complaints: Complaints, path: str, interface: InterfaceConfig, task: pb.TaskConfig, plugin: PluginConfig
) -> Link | None:
    network: Network | None = plugin.networks.get(interface.network)
    match network:
        case None:
            complaints.add(
                f"{path}.network",
                f'expected "alloc" or a network of this node\'s plugin block, {known(plugin.networks)}',
                value=interface.network,
            )
            return None
        case MacvtapNetwork():
            return MacvtapLink(parent=network.parent, mode=network.macvtap_mode, filter=network.filter)
        case BridgeNetwork():
            return BridgeLink(bridge=network.bridge, filter=network.filter)
        case UserNetwork():
            for key, value in (("address", interface.addresses), ("gateway", interface.gateways)):
                if value:
                    complaints.add(
                        f"{path}.{key}",
                        f"not on {network.name!r}, a network of mode user, whose router gives the guest its address",
                        value=", ".join(value),
                    )
            netns = task.network_isolation_spec.path
            return UserLink(netns=Path(netns) if netns else None)


def _check_together(complaints: Complaints, nics: Sequence[NicSpec]) -> None:
    user = next((nic.network for nic in nics if isinstance(nic.link, UserLink)), None)
    if user is not None and any(isinstance(nic.link, NetnsLink) for nic in nics):
        complaints.add(
            "network_interface",
            f'"alloc" does not go with {user!r}: its router needs the network that the guest would take over',
        )
    macs: dict[str, int] = {}
    for index, nic in enumerate(nics):
        if nic.mac and nic.mac in macs and not complaints.any_about(f"network_interface[{index}].mac"):
            complaints.add(
                f"network_interface[{index}].mac", f"network_interface[{macs[nic.mac]}] has it", value=nic.mac
            )
        macs.setdefault(nic.mac, index)


# -- ports -----------------------------------------------------------------------------------------------------------


def _guest_port(port: pb.PortMapping) -> int:
    """Without `to` (0, or -1 as Nomad has it) a port has the same number in the guest."""
    return port.to if port.to > 0 else port.value


def _forwards(task: pb.TaskConfig) -> tuple[PortForward, ...]:
    """All ports of the group. In a namespace Nomad itself leads the host's port to the alloc's address."""
    ports = task.resources.ports
    if not task.network_isolation_spec.path:
        return tuple(
            PortForward(label=port.label, host_ip=port.host_ip, host_port=port.value, guest_port=_guest_port(port))
            for port in ports
        )
    first: dict[int, pb.PortMapping] = {}  # several host ports may lead to one of the alloc's
    for port in ports:
        first.setdefault(_guest_port(port), port)
    return tuple(
        PortForward(label=port.label, host_ip="", host_port=number, guest_port=number) for number, port in first.items()
    )


def _serves_ports(nics: Sequence[NicSpec]) -> bool:
    """Whether the host's ports lead to the guest."""
    return any(isinstance(nic.link, UserLink | NetnsLink) for nic in nics)


def _check_ports(complaints: Complaints, task: pb.TaskConfig, nics: Sequence[NicSpec]) -> None:
    """Services of a guest that has its own address are registered at the port's `to`, which Nomad has as 0."""
    if _serves_ports(nics) or not (own := [nic.network for nic in nics if nic.addresses]):
        return
    for port in task.resources.ports:
        if port.to <= 0:
            complaints.add(
                f"port {port.label!r}",
                f"expected `to`, the guest's port: on {own[0]!r} the guest has an address of its own, and Nomad"
                " registers services there",
            )


# -- addresses -------------------------------------------------------------------------------------------------------


def _with_dns(
    complaints: Complaints, task: pb.TaskConfig, nics: list[NicSpec], host_dns: Sequence[str]
) -> tuple[NicSpec, ...]:
    """The group's dns block is for the whole guest: its first interface has it, unless the task names servers."""
    servers = []
    for number, text in enumerate(task.dns.servers):
        try:
            servers.append(str(ip_address(text)))
        except ValueError:
            complaints.add(f"dns.servers[{number}]", "expected the IP address of a name server", value=text)
    if not servers and any(isinstance(nic.link, NetnsLink) for nic in nics):
        servers = list(host_dns)  # nobody answers DHCP there, so nobody else would name any
    if nics:
        named = any(nic.dns for nic in nics)
        nics[0] = replace(nics[0], dns=nics[0].dns if named else tuple(servers), search=tuple(task.dns.searches))
    return tuple(nics)


def _own_address(task: pb.TaskConfig, nics: Sequence[NicSpec], records: Sequence[NicRecord]) -> str:
    """The first address that is the guest's own, not its router's."""
    for index, nic in enumerate(nics):
        if isinstance(nic.link, UserLink):
            continue
        found = nic.addresses or (records[index].addresses if index < len(records) else ())
        if not found and isinstance(nic.link, NetnsLink):
            found = (task.network_isolation_spec.hostsConfig.address,)
        if found and found[0]:
            return found[0].partition("/")[0]
    return ""
