"""The host's own place among its guests, in namespaces: host and guest reach each other by it, and only by it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.networks import Namespace, Network, network
from vmlib.net import guard, netlink
from vmlib.net.shim import Mine, Shim, ensure, examine

SHIM = Shim(network="lan", parent="up0", address="192.0.2.9/24")
MINE = Mine(owner="dev", run_dir=Path("/tmp/chv-test"))
GUEST = "192.0.2.10"


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        yield one


@pytest.fixture
def guest(net: Network) -> Iterator[Namespace]:
    """A stand-in: a macvlan on the same parent, in a namespace of its own."""
    inside = Namespace()

    def make(ipr: Any) -> None:
        (up,) = ipr.link_lookup(ifname="up0")
        ipr.link("add", ifname="g0", kind="macvlan", link=up, macvlan_mode="bridge", net_ns_fd=inside.fd)

    net.host.ask(make)
    inside.bring_up("g0", f"{GUEST}/24")
    yield inside
    inside.close()


def reach(source: Namespace, target: Namespace, address: str) -> bool:
    """Whether a connection comes about."""
    with target.do(socket.socket) as server, source.do(socket.socket) as client:
        server.bind((address, 0))
        server.listen()
        client.settimeout(3)
        with contextlib.suppress(OSError):
            client.connect(server.getsockname())
            return True
    return False


def keep(net: Network, *wanted: Shim, mine: Mine = MINE) -> list[str]:
    return net.host.do(lambda: ensure(wanted, mine))


def test_host_and_guest_reach_each_other(net: Network, guest: Namespace) -> None:
    net.host.bring_up("up0", "198.51.100.5/24")
    assert keep(net, SHIM) == []
    assert reach(net.host, guest, GUEST)
    assert reach(guest, net.host, "192.0.2.9")
    assert reach(net.lan, net.host, "192.0.2.9")


def test_without_it_they_do_not(net: Network, guest: Namespace) -> None:
    net.host.bring_up("up0", "192.0.2.9/24")
    assert not reach(guest, net.host, "192.0.2.9")
    assert reach(net.lan, net.host, "192.0.2.9")


def test_with_a_longer_prefix_the_parent_may_have_an_address_there(net: Network, guest: Namespace) -> None:
    net.host.bring_up("up0", "192.0.2.200/24")
    (fault,) = keep(net, SHIM)
    assert "up0 itself has 192.0.2.200/24" in fault
    assert not reach(net.host, guest, GUEST)
    assert keep(net, Shim(network="lan", parent="up0", address="192.0.2.9/28")) == []
    assert reach(net.host, guest, GUEST)
    assert reach(net.host, net.lan, "192.0.2.1")


def test_it_is_made_once_and_again_when_its_parent_is_back(net: Network) -> None:
    assert keep(net, SHIM) == []
    index = net.host.index(SHIM.name)
    for owner in ("dev", "nomad"):
        assert keep(net, SHIM, mine=Mine(owner=owner, run_dir=MINE.run_dir)) == []
    assert net.host.index(SHIM.name) == index
    assert net.host.do(lambda: examine((SHIM,), MINE)) == []

    def delete() -> None:
        with netlink.connect() as kernel:
            kernel.delete(net.host.index("up0"))

    net.host.do(delete)
    (fault,) = keep(net, SHIM)
    assert "there is no interface up0" in fault
    net.host.add_veth("up0", net.lan, "lan0")
    net.host.bring_up("up0")
    assert net.host.do(lambda: examine((SHIM,), MINE)) == [f"{SHIM}: not made yet"]
    assert keep(net, SHIM) == []
    assert net.host.names().count(SHIM.name) == 1


def test_its_parent_may_go_by_another_name(net: Network) -> None:
    index = net.host.index("up0")
    net.host.ask(lambda ipr: ipr.link("property_add", index=index, altname="enp3s0"))
    shim = Shim(network="lan", parent="enp3s0", address=SHIM.address)
    for _ in range(2):
        assert keep(net, shim) == []
    assert net.host.link(shim.name).get_attr("IFLA_LINK") == index
    keep(net)
    assert shim.name not in net.host.names()


def test_it_goes_when_nobody_wants_it_any_more(net: Network) -> None:
    keep(net, SHIM)
    keep(net, mine=Mine(owner="nomad", run_dir=MINE.run_dir))
    assert SHIM.name in net.host.names()
    keep(net)
    assert SHIM.name not in net.host.names()


def test_this_kernel_can_guard_and_asking_leaves_nothing() -> None:
    before = os.listdir("/sys/class/net")
    assert guard.lack() == ""
    assert os.listdir("/sys/class/net") == before
