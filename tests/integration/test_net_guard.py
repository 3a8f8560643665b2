"""The filter on real links: frames are written as a guest's VMM would, and seen (or not) by another host."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.frames import arp, dhcp, ethernet, icmpv6, ipv4, ipv6
from tests.integration.networks import Network, network
from vmlib.net.guard import link_local
from vmlib.net.making import Making
from vmlib.net.plug import plug
from vmlib.resources import OpenFile, TapNic
from vmlib.spec import BridgeLink, Link, MacvtapLink, NicSpec

MAC, OTHER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
OWN = ("192.0.2.10/24", "2001:db8::10/64")
LINKS: dict[str, Link] = {
    "macvtap": MacvtapLink(parent="up0", filter=True),
    "bridge": BridgeLink(bridge="br0", filter=True),
}
_VNET_HEADER = bytes(10)
_SECONDS = 5.0


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        yield one


class Guest:
    """The guest's end of a link."""

    def __init__(self, net: Network, link: Link, addresses: tuple[str, ...]) -> None:
        if isinstance(link, BridgeLink):
            net.host.add_bridge("br0")
            net.host.join("up0", "br0")
        self.kept: list[OpenFile] = []
        making = Making(
            machine_id="guard",
            mark="chv dev /nowhere",
            queue_pairs=1,
            vhost=False,
            note=lambda *_: None,
            keep=self.kept.append,
        )
        nic = NicSpec(network="lan", link=link, mac=MAC, addresses=addresses)
        made = net.host.do(lambda: plug(nic, 0, making)).nic
        assert isinstance(made, TapNic)
        self._fd = made.queues[0].fd

    def send(self, frame: bytes) -> None:
        os.write(self._fd, _VNET_HEADER + frame)

    def close(self) -> None:
        for file in self.kept:
            os.close(file.fd)


def arrived(net: Network, guest: Guest, frames: dict[str, bytes]) -> set[str]:
    """Which of the frames reach the other host. An honest one behind them says when all have had their chance."""
    last = arp(MAC, "192.0.2.10", target="192.0.2.99")
    with net.lan.do(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as ears:
        ears.bind(("lan0", 3))
        ears.settimeout(_SECONDS)
        deadline = time.monotonic() + _SECONDS
        for frame in frames.values():
            guest.send(frame)
        guest.send(last)
        heard = [ears.recv(4096)]
        while heard[-1][: len(last)] != last:
            assert time.monotonic() < deadline, "the honest frame did not arrive"
            heard.append(ears.recv(4096))
    return {name for name, frame in frames.items() if any(one[: len(frame)] == frame for one in heard)}


HONEST = {
    "arp": arp(MAC, "192.0.2.10"),
    "ipv4": ipv4(MAC, "192.0.2.10", body=bytes(20)),
    "ipv6": ipv6(MAC, "2001:db8::10", bytes(20), following=17),
    "advertisement": ipv6(MAC, "2001:db8::10", icmpv6(136, "2001:db8::10")),
    "of the link": ipv6(MAC, link_local(MAC), icmpv6(136, link_local(MAC))),
}
SPOOFED_MAC = {
    "another mac": ipv4(OTHER, "192.0.2.10", body=bytes(20)),
    "arp of another mac": arp(OTHER, "192.0.2.10"),
    "arp for another mac": arp(MAC, "192.0.2.10", sender_mac=OTHER),
}
SPOOFED = SPOOFED_MAC | {
    "arp": arp(MAC, "192.0.2.1", answer=True),
    "ipv4": ipv4(MAC, "192.0.2.11", body=bytes(20)),
    "ipv6": ipv6(MAC, "2001:db8::11", bytes(20), following=17),
    "advertisement": ipv6(MAC, "2001:db8::10", icmpv6(136, "2001:db8::1")),
    "router": ipv6(MAC, link_local(MAC), icmpv6(134)),
    "vlan": ethernet(MAC, 0x8100, b"\0\x05" + arp(MAC, "192.0.2.1")[12:]),
    "dhcp": dhcp(MAC, MAC, 1, server=False),
}


@pytest.mark.parametrize("kind", LINKS)
def test_only_what_a_guest_says_of_itself_arrives(net: Network, kind: str) -> None:
    guest = Guest(net, LINKS[kind], OWN)
    try:
        assert arrived(net, guest, {f"honest {k}": v for k, v in HONEST.items()} | SPOOFED) == {
            f"honest {k}" for k in HONEST
        }
    finally:
        guest.close()


@pytest.mark.parametrize("kind", LINKS)
def test_a_guest_without_static_addresses_may_ask_for_one_but_not_be_another(net: Network, kind: str) -> None:
    guest = Guest(net, LINKS[kind], ())
    free = {"asks": dhcp(MAC, MAC, 1, server=False), "has got": ipv4(MAC, "192.0.2.77", body=bytes(20))}
    try:
        assert arrived(net, guest, free | SPOOFED_MAC) == set(free)
    finally:
        guest.close()


@pytest.mark.parametrize("link", [MacvtapLink(parent="up0"), BridgeLink(bridge="br0")], ids=["macvtap", "bridge"])
def test_without_the_filter_a_guest_may_say_what_it_likes(net: Network, link: Link) -> None:
    guest = Guest(net, link, OWN)
    try:
        assert arrived(net, guest, SPOOFED) >= {"arp", "ipv4", "ipv6", "advertisement"}
    finally:
        guest.close()
