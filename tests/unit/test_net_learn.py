"""Which address a frame shows to be the guest's, and that no guest can make us keep more than a few."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.frames import arp, dhcp, ethernet, icmpv6, ipv4, ipv6, udp
from tests.unit.test_net_guard import run
from vmlib.net.learn import MAX_ADDRESSES, Seen, address_in, filter_program, in_order

MAC, OTHER, SERVER = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:01"

CASES = {
    "arp": (arp(MAC, "192.0.2.10"), "192.0.2.10"),
    "arp answer": (arp(MAC, "192.0.2.10", answer=True), "192.0.2.10"),
    "arp probe": (arp(MAC, "0.0.0.0", target="192.0.2.10"), ""),
    "arp of another": (arp(OTHER, "192.0.2.11"), ""),
    "arp for another": (arp(MAC, "192.0.2.11", sender_mac=OTHER), ""),
    "arp for a group": (arp(MAC, "224.0.0.1"), ""),
    "dhcp ack": (dhcp(SERVER, MAC, 5, yours="192.0.2.10"), "192.0.2.10"),
    "dhcp offer": (dhcp(SERVER, MAC, 2, yours="192.0.2.10"), ""),
    "dhcp ack for another": (dhcp(SERVER, OTHER, 5, yours="192.0.2.11"), ""),
    "dhcp of the guest": (dhcp(MAC, MAC, 1, server=False), ""),
    "solicitation": (ipv6(MAC, "2001:db8::10", icmpv6(135, "2001:db8::1")), "2001:db8::10"),
    "is mine free": (ipv6(MAC, "::", icmpv6(135, "2001:db8::10")), ""),
    "advertisement": (ipv6(MAC, "fe80::1", icmpv6(136, "2001:db8::10")), "2001:db8::10"),
    "of the link": (ipv6(MAC, "fe80::1", icmpv6(135, "fe80::2")), "fe80::1"),
    "advertisement of another": (ipv6(OTHER, "2001:db8::11", icmpv6(136, "2001:db8::11")), ""),
    "ping": (ipv6(MAC, "2001:db8::10", icmpv6(128)), ""),
    "ipv4": (ipv4(MAC, "192.0.2.10"), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_an_address_is_the_guests_when_the_guest_or_its_server_says_so(name: str) -> None:
    frame, address = CASES[name]
    assert address_in(frame, MAC) == address


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_gives_us_every_frame_that_says_something(name: str) -> None:
    frame, address = CASES[name]
    if address:
        assert run(filter_program(MAC), frame) > 0


@pytest.mark.parametrize(
    "frame",
    [
        ipv4(MAC, "192.0.2.10"),
        udp(MAC, "192.0.2.10", (40000, 443), bytes(1200)),
        udp(MAC, "192.0.2.10", (68, 67), bytes(300)),
        ipv6(MAC, "2001:db8::10", bytes(100), following=6),
        ipv6(MAC, "2001:db8::10", icmpv6(128)),
        arp(OTHER, "192.0.2.11"),
        ipv6(OTHER, "2001:db8::11", icmpv6(136, "2001:db8::11")),
        ethernet(MAC, 0x88CC, bytes(40)),
    ],
)
def test_ordinary_traffic_and_that_of_others_wakes_nobody(frame: bytes) -> None:
    assert run(filter_program(MAC), frame) == 0


@given(frame=st.binary(max_size=400))
def test_any_bytes_are_no_more_than_no_address(frame: bytes) -> None:
    address = address_in(frame, MAC)
    if address:
        assert ip_address(address).compressed == address


@given(name=st.sampled_from(sorted(CASES)), cut=st.integers(0, 400), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_broken_frame_breaks_nothing(name: str, cut: int, at: int, byte: int) -> None:
    frame = bytearray(CASES[name][0][:cut])
    if at < len(frame):
        frame[at] = byte
    address_in(bytes(frame), MAC)


def test_a_flood_of_addresses_is_forgotten() -> None:
    seen = Seen()
    for number in range(5000):
        assert seen.add(f"10.0.{number // 250}.{number % 250 + 1}")
    assert len(seen.addresses()) == MAX_ADDRESSES
    assert seen.addresses()[0] == "10.0.19.250"


def test_an_address_that_is_used_outlives_those_that_are_not() -> None:
    seen = Seen()
    seen.add("192.0.2.10")
    for number in range(100):
        seen.add(f"2001:db8::{number:x}")
        assert not seen.add("192.0.2.10")
    assert seen.addresses()[0] == "192.0.2.10"


def test_addresses_of_the_link_come_last() -> None:
    assert in_order(["fe80::1", "2001:db8::9", "169.254.1.1", "192.0.2.10"]) == (
        "192.0.2.10",
        "2001:db8::9",
        "169.254.1.1",
        "fe80::1",
    )
