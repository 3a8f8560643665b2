"""Links of real machines in network namespaces: who reaches whom, and that nothing of them stays."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host, Running, host_for
from tests.integration.networks import Namespace, Network, network
from vmlib.spec import MachineSpec, MacvtapLink, MacvtapMode, NicSpec

MAC = "52:54:00:00:00:0a"
MAC_2 = "52:54:00:00:00:0b"


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        yield one


@pytest.fixture
def host(request: pytest.FixtureRequest, net: Network, guest: Guest, short_dir: Path) -> Iterator[Host]:
    """Everything of it is called in the namespace of the net's host: by `run`, `destroy` and `net.host.do`."""
    with host_for(short_dir, guest.directory, getattr(request, "param", "fake")) as one:
        yield one
        net.host.do(lambda: remove_all(one))
    assert net.host.ours() == []


def remove_all(host: Host) -> None:
    for mark in host.machines.marks():
        host.machines.remove(mark.name)


def macvtap(mac: str = MAC, *, parent: str = "up0", mode: MacvtapMode = "bridge") -> NicSpec:
    return NicSpec(network="lan", link=MacvtapLink(parent=parent, mode=mode), mac=mac)


def run(net: Network, host: Host, spec: MachineSpec) -> Running:
    return net.host.do(lambda: host.run(spec))


def tap_descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if "tap" in target or "net/tun" in target:
            found.append(target)
    return found


@pytest.mark.parametrize("host", ["fake", "qemu"], indirect=True)
@pytest.mark.parametrize("vcpus", [1, 4])
def test_the_link_is_there_while_the_machine_is(net: Network, host: Host, vcpus: int) -> None:
    one = run(net, host, host.spec("tick", vcpus=vcpus, nics=(macvtap(),)))
    (name,) = net.host.ours()
    (record,) = one.machine.record.nics
    assert (record.link, record.mac, record.network) == (name, MAC, "lan")
    assert record.ifindex == net.host.index(name)
    link = net.host.link(name)
    assert net.host.ask(lambda ipr: list(ipr.get_addr(index=record.ifindex))) == []
    assert link.get_attr("IFLA_IFALIAS") == f"chv dev {one.machine.run.root}"
    assert link["flags"] & 0x201 == 0x201
    held = [fd for fd in os.listdir(f"/proc/{one.vmm}/fd") if _is_tap(f"/proc/{one.vmm}/fd/{fd}")]
    assert len(held) == vcpus
    assert tap_descriptors() == []
    one.until_line("tick 1")
    net.host.do(one.machine.destroy)
    assert net.host.ours() == []
    assert list(Path("/dev").glob("tap*")) == []


def _is_tap(fd: str) -> bool:
    target = os.readlink(fd)
    return target in ("/tap", "/dev/net/tun") or target.startswith("/tap ")


# ---------------------------------------------------------------------------------------------------------------------
# who reaches whom


def fetch(space: Namespace, address: str) -> None:
    """Ask the guest's server from that namespace, until it answers."""

    def ask() -> bytes:
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection((address, 80), timeout=5) as connection:
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return connection.makefile("rb").read()
            except OSError:
                assert time.monotonic() < deadline, f"{address} does not answer"
                time.sleep(0.1)

    assert b"hello from chv-guest" in space.do(ask)


PINGS = "http=80 ping=192.0.2.1 ping=2001:db8::1"


@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_two_guests_and_a_third_host_reach_each_other_by_static_addresses(net: Network, host: Host) -> None:
    own = ("ip=eth0:192.0.2.10/24 ip=eth0:2001:db8::10/64", "ip=eth0:192.0.2.11/24 ip=eth0:2001:db8::11/64")
    one = run(net, host, host.spec(f"{own[0]} {PINGS} ping=192.0.2.11 ping=2001:db8::11", nics=(macvtap(),)))
    two = run(
        net, host, host.spec(f"{own[1]} {PINGS} ping=192.0.2.10 ping=2001:db8::10", task="db", nics=(macvtap(MAC_2),))
    )
    for answered in ("192.0.2.1", "2001:db8::1", "192.0.2.11", "2001:db8::11"):
        one.until_line(f"ping {answered} ok")
    for answered in ("192.0.2.1", "2001:db8::1", "192.0.2.10", "2001:db8::10"):
        two.until_line(f"ping {answered} ok")
    for address in ("192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11"):
        fetch(net.lan, address)
    for running in (one, two):
        assert os.stat(f"/proc/{running.vmm}").st_uid == running.machine.record.uid >= 210_000


@pytest.mark.needs("dnsmasq")
@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_two_guests_get_addresses_from_the_network(net: Network, host: Host, short_dir: Path) -> None:
    net.serve_addresses(short_dir)
    machines = [
        run(net, host, host.spec(f"ipv6=eth0 {PINGS}", task=task, nics=(macvtap(mac),)))
        for task, mac in (("web", MAC), ("db", MAC_2))
    ]
    for running in machines:
        for answered in ("192.0.2.1", "2001:db8::1"):
            running.until_line(f"ping {answered} ok")
        addresses = [line.split()[2] for line in running.out.lines if line.startswith(("address eth0 ", "ipv6 eth0 "))]
        assert addresses[0].startswith("192.0.2.1")
        assert addresses[1].startswith("2001:db8:")
        for address in addresses:
            fetch(net.lan, address)
