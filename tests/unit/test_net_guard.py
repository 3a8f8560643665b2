"""What a guest behind a filter may send, by running the classifier as the kernel would."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.frames import arp, dhcp, ethernet, icmpv6, ipv4, ipv6
from vmlib.net.bpf import Program, mac_bytes
from vmlib.net.guard import link_local, program

MAC, OTHER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
OWN = ("192.0.2.10/24", "2001:db8::10/64")
OWN_LL, OTHER_LL = link_local(MAC), link_local(OTHER)
PASS, DROP = 0, 2


def run(code: bytes, frame: bytes) -> int:
    """A classic BPF machine; a load beyond the end gives 0, as in the kernel."""
    instructions = list(struct.iter_unpack("=HBBI", code))
    at = a = x = 0
    while True:
        op, yes, no, k = instructions[at]
        at += 1
        match op:
            case 0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50:
                if k == 0xFFFFF030:
                    a = 0
                    continue
                size = {0: 4, 8: 2, 16: 1}[op & 0x18]
                start = k + (x if op & 0x40 else 0)
                if start + size > len(frame):
                    return 0
                a = int.from_bytes(frame[start : start + size], "big")
            case 0xB1:
                if k >= len(frame):
                    return 0
                x = 4 * (frame[k] & 15)
            case 0x54:
                a &= k
            case 0x05:
                at += k
            case 0x15:
                at += yes if a == k else no
            case 0x45:
                at += yes if a & k else no
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"no such instruction: {op:#x}")


HONEST = {
    "arp": arp(MAC, "192.0.2.10"),
    "arp probe": arp(MAC, "0.0.0.0", target="192.0.2.10"),
    "ipv4": ipv4(MAC, "192.0.2.10"),
    "ipv6": ipv6(MAC, "2001:db8::10", b"", following=17),
    "ipv6 of the link": ipv6(MAC, OWN_LL, b"", following=6),
    "ping": ipv6(MAC, "2001:db8::10", icmpv6(128)),
    "advertisement": ipv6(MAC, "2001:db8::10", icmpv6(136, "2001:db8::10")),
    "advertisement of the link": ipv6(MAC, OWN_LL, icmpv6(136, OWN_LL)),
    "solicitation": ipv6(MAC, "2001:db8::10", icmpv6(135, "2001:db8::1")),
    "is mine free": ipv6(MAC, "::", icmpv6(135, "2001:db8::10")),
    "who routes": ipv6(MAC, "::", icmpv6(133)),
    "group report": ipv6(MAC, "::", b"\x3a\0\x05\x02\0\0\x01\0" + icmpv6(143), following=0),
    "large ping, first piece": ipv6(MAC, "2001:db8::10", b"\x3a\0\0\x01\0\0\0\1" + icmpv6(128), following=44),
    "large ping, second piece": ipv6(MAC, "2001:db8::10", b"\x3a\0\x05\xa8\0\0\0\1\x88", following=44),
}
SPOOFED = {
    "another mac": arp(OTHER, "192.0.2.10"),
    "arp for another address": arp(MAC, "192.0.2.1"),
    "arp for another mac": arp(MAC, "192.0.2.10", sender_mac=OTHER),
    "ipv4": ipv4(MAC, "192.0.2.11"),
    "dhcp, with static addresses": dhcp(MAC, MAC, 1, server=False),
    "ipv6": ipv6(MAC, "2001:db8::11", b"", following=17),
    "ipv6 of another's link": ipv6(MAC, OTHER_LL, b"", following=17),
    "advertisement for another": ipv6(MAC, "2001:db8::10", icmpv6(136, "2001:db8::1")),
    "advertisement behind options": ipv6(
        MAC, "2001:db8::10", b"\x3a\0\x01\x04\0\0\0\0" + icmpv6(136, "2001:db8::1"), following=60
    ),
    "advertisement behind hop by hop": ipv6(
        MAC, "2001:db8::10", b"\x3a\0\x01\x04\0\0\0\0" + icmpv6(136, "2001:db8::1"), following=0
    ),
    "advertisement in pieces": ipv6(
        MAC, "2001:db8::10", b"\x3a\0\0\x01\0\0\0\1" + icmpv6(136, "2001:db8::1"), following=44
    ),
    "is another's free": ipv6(MAC, "::", icmpv6(135, "2001:db8::1")),
    "i am the router": ipv6(MAC, OWN_LL, icmpv6(134)),
    "redirect": ipv6(MAC, OWN_LL, icmpv6(137)),
    "anything from nobody": ipv6(MAC, "::", b"", following=17),
    "in a vlan": ethernet(MAC, 0x8100, b"\0\x05" + arp(MAC, "192.0.2.1")[12:]),
    "rarp": ethernet(MAC, 0x8035, bytes(28)),
}


@pytest.mark.parametrize("name", HONEST)
def test_lets_through_what_a_guest_says_of_itself(name: str) -> None:
    assert run(program(MAC, OWN), HONEST[name]) == PASS


@pytest.mark.parametrize("name", SPOOFED)
def test_drops_what_a_guest_says_of_others(name: str) -> None:
    assert run(program(MAC, OWN), SPOOFED[name]) == DROP


def test_without_static_addresses_only_macs_count() -> None:
    code = program(MAC, ())
    for frame in (dhcp(MAC, MAC, 1, server=False), arp(MAC, "192.0.2.77"), ipv4(MAC, "192.0.2.77"), SPOOFED["ipv6"]):
        assert run(code, frame) == PASS
    for frame in (arp(OTHER, "192.0.2.77"), arp(MAC, "192.0.2.77", sender_mac=OTHER), ipv4(OTHER, "192.0.2.77")):
        assert run(code, frame) == DROP


def test_a_family_without_static_address_is_closed() -> None:
    only_v4 = program(MAC, OWN[:1])
    assert run(only_v4, HONEST["ipv6"]) == DROP
    assert run(only_v4, HONEST["advertisement of the link"]) == PASS
    assert run(program(MAC, OWN[1:]), HONEST["ipv4"]) == DROP


@given(frame=st.binary(min_size=14, max_size=120))
def test_any_frame_is_judged_and_none_of_another_mac_passes(frame: bytes) -> None:
    for addresses in ((), OWN):
        verdict = run(program(MAC, addresses), frame)
        assert verdict in (PASS, DROP)
        if frame[6:12] != mac_bytes(MAC):
            assert verdict == DROP


def test_sixteen_addresses_of_each_family_fit() -> None:
    many = tuple(f"192.0.2.{n}/24" for n in range(16)) + tuple(f"2001:db8::{n}/64" for n in range(16))
    code = program(MAC, many)
    assert run(code, ipv4(MAC, "192.0.2.15")) == PASS
    assert run(code, ipv6(MAC, "::", icmpv6(135, "2001:db8::15"))) == PASS
    assert run(code, ipv4(MAC, "192.0.2.16")) == DROP


def test_the_link_address_follows_from_the_mac() -> None:
    assert link_local("52:54:00:12:34:56") == "fe80::5054:ff:fe12:3456"


def test_a_place_is_found_only_ahead() -> None:
    code = Program()
    code.place("behind")
    code.go("behind")
    with pytest.raises(AssertionError, match="behind"):
        code.assemble()
