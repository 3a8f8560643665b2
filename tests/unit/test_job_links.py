"""From a job's interfaces to links, and what Nomad is told of the guest's address."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from driver._pb import driver_pb2 as pb
from driver.config_network import BridgeNetwork, InterfaceConfig, MacvtapNetwork, Network, UserNetwork
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import TaskConfig
from driver.decode import Complaints
from driver.links import derived_mac, group_hostname, lints, network_override, nic_specs, shared, taken
from driver.translate import machine_spec
from vmlib.record import NicRecord
from vmlib.spec import (
    BridgeLink,
    Link,
    MachineSpec,
    MacvtapLink,
    NetnsLink,
    NicSpec,
    PortForward,
    UserLink,
)

ALLOC = "0f5c2d0e-1111-2222-3333-444455556666"
NETNS = Path("/var/run/netns/x")
NETWORKS: tuple[Network, ...] = (
    MacvtapNetwork(name="lan", parent="eno1", macvtap_mode="private", filter=True),
    BridgeNetwork(name="dmz", bridge="br0"),
    UserNetwork(name="nat"),
)
HTTP = pb.PortMapping(label="http", value=20001, to=80, host_ip="192.0.2.9")
SSH = pb.PortMapping(label="ssh", value=20002, to=0, host_ip="192.0.2.9")


def a_plugin(default_network: str = "") -> PluginConfig:
    return replace(
        decode_plugin_config(b"\x80"),
        networks={network.name: network for network in NETWORKS},
        default_network=default_network,
    )


def a_task(*ports: pb.PortMapping, netns: str = "", **fields: Any) -> pb.TaskConfig:
    memory = pb.AllocatedMemoryResources(memory_mb=512)
    known: dict[str, Any] = {
        "id": f"{ALLOC}/vm/0a1b2c3d",
        "name": "vm",
        "alloc_id": ALLOC,
        "job_name": "web",
        "alloc_dir": f"/allocs/{ALLOC}",
        "resources": pb.Resources(ports=ports, allocated_resources=pb.AllocatedTaskResources(memory=memory)),
        "network_isolation_spec": pb.NetworkIsolationSpec(path=netns),
    }
    return pb.TaskConfig(**known | fields)


def on(*networks: str | InterfaceConfig) -> TaskConfig:
    nics = tuple(InterfaceConfig(network=one) if isinstance(one, str) else one for one in networks)
    return TaskConfig(kernel="local/k", network_interfaces=nics)


def nics_of(task: pb.TaskConfig, options: TaskConfig, plugin: PluginConfig | None = None) -> tuple[NicSpec, ...]:
    complaints = Complaints()
    made = nic_specs(complaints, task, options, plugin or a_plugin())
    assert complaints.lines == []
    return made


def refused(
    task: pb.TaskConfig, options: TaskConfig, plugin: PluginConfig | None = None, in_namespace: tuple[str, ...] = ()
) -> list[str]:
    complaints = Complaints()
    nic_specs(complaints, task, options, plugin or a_plugin(), in_namespace=in_namespace)
    return complaints.lines


STATIC = InterfaceConfig(
    network="lan",
    mac="52:54:00:00:00:01",
    addresses=("192.0.2.20/24", "2001:db8::20/64"),
    gateways=("192.0.2.1",),
    dns=("192.0.2.53",),
)


# -- which link ------------------------------------------------------------------------------------------------------


def test_interfaces_of_mixed_kinds_each_get_their_link() -> None:
    assert nics_of(a_task(), on(STATIC, "dmz", "nat")) == (
        NicSpec(
            network="lan",
            link=MacvtapLink(parent="eno1", mode="private", filter=True),
            mac="52:54:00:00:00:01",
            addresses=("192.0.2.20/24", "2001:db8::20/64"),
            gateways=("192.0.2.1",),
            dns=("192.0.2.53",),
        ),
        NicSpec(network="dmz", link=BridgeLink(bridge="br0"), mac=derived_mac(ALLOC, "vm", 1)),
        NicSpec(network="nat", link=UserLink(), mac=derived_mac(ALLOC, "vm", 2)),
    )


@pytest.mark.parametrize(
    ("default_network", "netns", "link"),
    [
        ("", "", None),
        ("", str(NETNS), NetnsLink(netns=NETNS)),
        ("alloc", str(NETNS), NetnsLink(netns=NETNS)),
        ("nat", "", UserLink()),
        ("nat", str(NETNS), UserLink(netns=NETNS)),
        ("dmz", str(NETNS), BridgeLink(bridge="br0")),
    ],
)
def test_a_machine_that_names_no_network_gets_the_default_else_its_groups_namespace_else_none(
    default_network: str, netns: str, link: Link | None
) -> None:
    made = nics_of(a_task(netns=netns), on(), a_plugin(default_network))
    assert [nic.link for nic in made] == ([] if link is None else [link])


def test_the_guest_takes_over_the_mac_of_its_alloc() -> None:
    assert nics_of(a_task(HTTP, netns=str(NETNS)), on("alloc")) == (
        NicSpec(network="alloc", link=NetnsLink(netns=NETNS), mac=""),
    )


NO_NAMESPACE = (
    "network_interface[0].network = 'alloc': the group has no network namespace, expected network { mode = \"bridge\" }"
    " (or a CNI network) in the group"
)


@pytest.mark.parametrize(("options", "default_network"), [(on("alloc"), ""), (on(), "alloc")])
def test_without_a_namespace_alloc_is_refused_with_what_makes_one(options: TaskConfig, default_network: str) -> None:
    assert refused(a_task(), options, a_plugin(default_network)) == [NO_NAMESPACE]


@pytest.mark.parametrize(
    ("task", "in_namespace", "who"),
    [
        (a_task(netns="/n"), ("nginx (pid 12)", "sleep (pid 13)"), "nginx (pid 12), sleep (pid 13)"),
        (a_task(pb.PortMapping(label="connect-proxy-web", value=1), netns="/n"), (), "Connect's proxy"),
        (a_task(netns="/n", env={"NOMAD_UPSTREAM_ADDR_db": "127.0.0.1:5432"}), (), "Connect's proxy"),
    ],
)
def test_alloc_is_refused_where_others_need_the_namespace(
    task: pb.TaskConfig, in_namespace: tuple[str, ...], who: str
) -> None:
    assert refused(task, on("alloc"), in_namespace=in_namespace) == [
        (
            f"network_interface[0].network = 'alloc': the guest would take the network from {who} in this group,"
            " expected a network of mode user"
        )
    ]
    assert refused(task, on("nat"), in_namespace=in_namespace) == []
    assert refused(task, on("lan"), in_namespace=in_namespace) == []


def test_a_router_does_not_go_beside_the_guest_that_takes_its_network() -> None:
    assert refused(a_task(netns="/n"), on("alloc", "nat")) == [
        (
            "network_interface: \"alloc\" does not go with 'nat': its router needs the network that the guest would"
            " take over"
        )
    ]
    assert refused(a_task(netns="/n"), on("alloc", "lan")) == []


def test_a_user_networks_router_gives_the_address() -> None:
    nic = InterfaceConfig(network="nat", addresses=("192.0.2.20/24",), gateways=("192.0.2.1",), dns=("192.0.2.53",))
    why = "not on 'nat', a network of mode user, whose router gives the guest its address"
    assert refused(a_task(), on(nic)) == [
        f"network_interface[0].address = '192.0.2.20/24': {why}",
        f"network_interface[0].gateway = '192.0.2.1': {why}",
    ]


def test_a_mac_that_was_given_and_one_that_was_derived_do_not_meet_in_one_machine() -> None:
    given = InterfaceConfig(network="lan", mac=derived_mac(ALLOC, "vm", 0))
    assert refused(a_task(), on("dmz", given)) == [
        f"network_interface[1].mac = {derived_mac(ALLOC, 'vm', 0)!r}: network_interface[0] has it"
    ]


# -- ports -----------------------------------------------------------------------------------------------------------


def test_forwards_are_on_the_first_router_only() -> None:
    first, second, third = nics_of(a_task(HTTP, SSH), on("lan", "nat", "nat"))
    assert isinstance(first.link, MacvtapLink)
    assert second.link == UserLink(
        forwards=(
            PortForward(label="http", host_ip="192.0.2.9", host_port=20001, guest_port=80),
            PortForward(label="ssh", host_ip="192.0.2.9", host_port=20002, guest_port=20002),
        )
    )
    assert third.link == UserLink()


def test_in_a_namespace_the_router_listens_where_nomad_sends_the_port() -> None:
    again = pb.PortMapping(label="web", value=20003, to=80, host_ip="192.0.2.9")
    (nic,) = nics_of(a_task(HTTP, SSH, again, netns=str(NETNS)), on("nat"))
    assert nic.link == UserLink(
        forwards=(
            PortForward(label="http", host_ip="", host_port=80, guest_port=80),
            PortForward(label="ssh", host_ip="", host_port=20002, guest_port=20002),
        ),
        netns=NETNS,
    )


def test_a_port_without_an_end_is_refused_where_services_would_have_port_0() -> None:
    assert refused(a_task(HTTP, SSH), on(STATIC)) == [
        (
            "port 'ssh': expected `to`, the guest's port: on 'lan' the guest has an address of its own, and Nomad"
            " registers services there"
        )
    ]
    assert refused(a_task(HTTP, SSH), on(STATIC, "nat")) == []
    assert refused(a_task(HTTP, SSH, netns="/n"), on("alloc", STATIC)) == []
    assert refused(a_task(HTTP), on(STATIC)) == []


NOWHERE = (
    "ports http, ssh lead nowhere: host ports reach a guest on the network alloc or on one of mode user, and services"
    " one whose address is in the job"
)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (on(), ["ports http, ssh lead nowhere: the machine has no network_interface"]),
        (on("lan", "dmz"), [NOWHERE]),
        (on("lan", "nat"), []),
    ],
)
def test_ports_that_lead_nowhere_are_linted(options: TaskConfig, found: list[str]) -> None:
    task = a_task(HTTP, SSH)
    assert list(lints(task, nics_of(task, options))) == found


# -- the group's dns and hostname ------------------------------------------------------------------------------------

DNS = pb.DNSConfig(servers=["192.0.2.53", "2001:DB8::53"], searches=["example.org"], options=["ndots:2"])


def test_the_groups_dns_goes_to_the_first_interface_unless_the_task_has_servers() -> None:
    first, second = nics_of(a_task(dns=DNS), on("nat", "lan"))
    assert (first.dns, first.search) == (("192.0.2.53", "2001:db8::53"), ("example.org",))
    assert (second.dns, second.search) == ((), ())
    first, second = nics_of(a_task(dns=DNS), on("nat", STATIC))
    assert (first.dns, first.search, second.dns) == ((), ("example.org",), ("192.0.2.53",))


@pytest.mark.parametrize(
    ("dns", "nic", "servers"),
    [
        (None, InterfaceConfig(network="alloc"), ("192.0.2.99",)),
        (DNS, InterfaceConfig(network="alloc"), ("192.0.2.53", "2001:db8::53")),
        (None, InterfaceConfig(network="alloc", dns=("192.0.2.54",)), ("192.0.2.54",)),
        (None, InterfaceConfig(network="nat"), ()),
        (None, InterfaceConfig(network="lan"), ()),
    ],
)
def test_a_guest_in_its_allocs_place_has_the_hosts_name_servers_when_nobody_names_any(
    dns: pb.DNSConfig | None, nic: InterfaceConfig, servers: tuple[str, ...]
) -> None:
    task = a_task(netns="/n", dns=dns)
    (made,) = nic_specs(Complaints(), task, on(nic), a_plugin(), host_dns=("192.0.2.99",))
    assert made.dns == servers


def test_a_name_server_by_name_and_options_that_go_nowhere_are_told() -> None:
    assert refused(a_task(dns=pb.DNSConfig(servers=["dns.example.org"])), on("nat")) == [
        "dns.servers[0] = 'dns.example.org': expected the IP address of a name server"
    ]
    task = a_task(dns=DNS)
    assert list(lints(task, nics_of(task, on("nat")))) == ["dns options ndots:2 are not carried to the guest"]


def isolated(hostname: str = "", **labels: str) -> pb.NetworkIsolationSpec:
    return pb.NetworkIsolationSpec(
        path=str(NETNS), labels=labels, hostsConfig=pb.HostsConfig(hostname=hostname, address="10.0.0.7")
    )


@pytest.mark.parametrize(
    ("isolation", "name"),
    [
        (isolated("web-7", docker_sandbox_hostname="web-7", docker_sandbox_container_id="0123456789abcdef"), "web-7"),
        (isolated("0123456789ab", docker_sandbox_container_id="0123456789abcdef"), ""),
        (isolated("web-7"), "web-7"),
        (isolated(), ""),
    ],
)
def test_the_groups_hostname_is_what_a_job_has_asked_for(isolation: pb.NetworkIsolationSpec, name: str) -> None:
    task = a_task(network_isolation_spec=isolation)
    assert group_hostname(task) == name
    seeds = [
        machine_spec(task, replace(on("alloc"), hostname=own), a_plugin(), owner="nomad").seed for own in ("", "own")
    ]
    assert [seed and seed.hostname for seed in seeds] == [name or "web-vm", "own"]
    # On a network that needs no seed by itself, that name is a reason for one.
    seed = machine_spec(task, on("nat"), a_plugin(), owner="nomad").seed
    assert (seed.hostname if seed is not None else "") == name


@pytest.mark.parametrize(
    ("options", "dns", "seeded"),
    [
        (on("lan", "dmz", "nat"), None, False),
        (on(), DNS, False),
        (on("nat"), DNS, True),
        (on(STATIC), None, True),
        (on(InterfaceConfig(network="lan", dns=("192.0.2.53",))), None, True),
    ],
)
def test_a_guest_that_needs_to_be_told_of_its_address_has_a_seed(
    options: TaskConfig, dns: pb.DNSConfig | None, seeded: bool
) -> None:
    spec = machine_spec(a_task(dns=dns), options, a_plugin(), owner="nomad")
    assert (spec.seed is not None) == seeded


# -- what Nomad is told ----------------------------------------------------------------------------------------------


def told(task: pb.TaskConfig, options: TaskConfig, *records: NicRecord) -> tuple[str, dict[str, int], bool] | None:
    override = network_override(task, nics_of(task, options), records)
    return None if override is None else (override.addr, dict(override.port_map), override.auto_advertise)


SAME = pb.PortMapping(label="api", value=8080, to=8080, host_ip="192.0.2.9")
TAKEN_OVER = NicRecord(network="alloc", mac="02:00:00:00:00:01", addresses=("172.26.64.2/20",))


@pytest.mark.parametrize(
    ("task", "options", "records", "answer"),
    [
        # The guest's own address is all there is: services use it by themselves.
        (a_task(HTTP), on(STATIC), (), ("192.0.2.20", {"http": 80}, True)),
        (a_task(), on("lan", replace(STATIC, network="dmz")), (), ("192.0.2.20", {}, True)),
        # The host's ports work as well: a service has to ask.
        (a_task(HTTP, SSH), on(STATIC, "nat"), (), ("192.0.2.20", {"http": 80, "ssh": 20002}, False)),
        (a_task(HTTP, netns="/n"), on("alloc"), (TAKEN_OVER,), ("172.26.64.2", {"http": 80}, False)),
        (a_task(HTTP, network_isolation_spec=isolated()), on("alloc"), (), ("10.0.0.7", {"http": 80}, False)),
        (a_task(HTTP, netns="/n"), on("alloc"), (), None),
        # A router of ours, at the port that Nomad will say.
        (a_task(SAME), on("nat"), (), ("192.0.2.9", {"api": 8080}, False)),
        (a_task(HTTP, network_isolation_spec=isolated()), on("nat"), (), ("10.0.0.7", {"http": 80}, False)),
        # Nomad would say port 80 of the host.
        (a_task(HTTP, SAME), on("nat"), (), None),
        (a_task(SSH), on("nat"), (), None),
        (a_task(), on("nat"), (), None),
        # Nobody knows the address yet.
        (a_task(HTTP), on("lan"), (), None),
        (a_task(), on(), (), None),
    ],
)
def test_nomad_is_told_an_address_that_leads_to_the_guest_or_none(
    task: pb.TaskConfig,
    options: TaskConfig,
    records: tuple[NicRecord, ...],
    answer: tuple[str, dict[str, int], bool] | None,
) -> None:
    assert told(task, options, *records) == answer


# -- beside other machines -------------------------------------------------------------------------------------------


def a_machine(name: str, *nics: NicSpec) -> MachineSpec:
    return MachineSpec(id=f"{name}/1", name=name, owner="nomad", vcpus=1, memory_mib=64, nics=nics)


MAC = "52:54:00:00:00:01"
ON_LAN = NicSpec(network="lan", link=MacvtapLink(parent="eno1"), mac=MAC)
ON_ALLOC = NicSpec(network="alloc", link=NetnsLink(netns=NETNS))


@pytest.mark.parametrize(
    ("nic", "other", "held", "why"),
    [
        (ON_LAN, "b/vm", NicRecord(network="lan", mac=MAC), f"mac = {MAC!r}: machine b/vm has it on network 'lan' of"),
        (ON_LAN, "b/vm", ON_LAN, f"mac = {MAC!r}: machine b/vm has it on network 'lan' of this node"),
        (ON_LAN, "b/vm", NicRecord(network="dmz", mac=MAC), ""),
        (ON_LAN, "b/vm", NicRecord(network="lan", mac="52:54:00:00:00:02"), ""),
        (ON_LAN, "a/vm", NicRecord(network="lan", mac=MAC), ""),
        (replace(ON_LAN, network="nat", link=UserLink()), "b/vm", NicRecord(network="nat", mac=MAC), ""),
        (ON_ALLOC, "a/other", TAKEN_OVER, "network alloc: machine a/other of this alloc has it already"),
        (ON_ALLOC, "b/vm", TAKEN_OVER, ""),
    ],
)
def test_no_machine_gets_what_another_of_this_node_holds(
    nic: NicSpec, other: str, held: NicRecord | NicSpec, why: str
) -> None:
    found = taken(a_machine("a/vm", nic), [("c/vm", ()), (other, [held])])
    assert found.startswith(why) if why else found == ""


def test_only_who_is_on_a_network_with_others_is_held_against_them() -> None:
    nat = replace(ON_LAN, network="nat", link=UserLink())
    assert [shared(a_machine("a/vm", *nics)) for nics in ((), (nat,), (nat, ON_LAN), (ON_ALLOC,))] == [
        False,
        False,
        True,
        True,
    ]
