"""What the kernel says of links, from bytes, and what it means for an interface."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.net import known, rtnetlink
from vmlib.net.linkstate import LinkState, indexes, interesting, parse, what_is_lost
from vmlib.record import NicRecord

NIC = NicRecord(network="lan", mac="52:54:00:00:00:0a", link="chv00", ifindex=7, addresses=("192.0.2.10/24",))
LINK = LinkState(index=7, name="chv00", up=True, carrier=True, kind="macvtap", parent=2)
PARENT = LinkState(index=2, name="eno1", up=True, carrier=True)
TAP = LinkState(index=7, name="chv00", up=True, carrier=False, kind="tun", master=3)
BRIDGE = LinkState(index=3, name="br0", up=True, carrier=True, kind="bridge")


def lost(*links: LinkState, nic: NicRecord = NIC) -> str:
    return what_is_lost(nic, {one.index: one for one in links})


def body(index: int, flags: int, *attributes: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(attributes)


def test_a_message_about_a_link_is_understood() -> None:
    info = rtnetlink.attribute(1, b"macvtap\0")
    said = body(
        7,
        0x11043,
        rtnetlink.attribute(3, b"chv00\0"),
        rtnetlink.attribute(5, struct.pack("=I", 2)),
        rtnetlink.attribute(18 | 0x8000, info),
    )
    assert parse(said) == LINK
    assert parse(said + rtnetlink.attribute(37, struct.pack("=i", 1))) == replace(LINK, parent=0)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_no_more_than_no_link(data: bytes) -> None:
    parse(data)
    indexes(data)
    list(rtnetlink.messages(data))
    rtnetlink.attributes(data)


def test_notices_name_the_links_that_changed() -> None:
    data = rtnetlink.message(16, 0, body(7, 0)) + rtnetlink.message(17, 0, body(9, 0)) + rtnetlink.message(20, 0, b"x")
    assert indexes(data) == {7, 9}
    assert indexes(data[:-30]) == {7}


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ((LINK, PARENT), ""),
        ((LINK,), ""),  # its parent is in another namespace
        ((TAP, BRIDGE), ""),
        ((PARENT,), "chv00 (lan) is gone"),
        ((replace(LINK, name="eth5"),), "chv00 (lan) is gone"),  # the number was used again
        ((replace(LINK, up=False), PARENT), "chv00 (lan) was set down"),
        ((replace(LINK, carrier=False), replace(PARENT, up=False)), "chv00 (lan): eno1 is down"),
        ((replace(LINK, carrier=False), PARENT), "chv00 (lan): eno1 has no carrier"),
        ((replace(LINK, carrier=False, parent=0),), "chv00 (lan): what it is on has no carrier"),
        ((replace(TAP, master=0), BRIDGE), "chv00 (lan) is a port of no bridge any more"),
        ((TAP, replace(BRIDGE, up=False)), "chv00 (lan): bridge br0 is down"),
    ],
)
def test_a_loss_has_a_reason(links: tuple[LinkState, ...], why: str) -> None:
    found = lost(*links)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_an_interface_without_a_link_cannot_lose_it() -> None:
    assert lost(nic=replace(NIC, link="", ifindex=0)) == ""


def test_a_link_and_what_it_is_on_are_watched() -> None:
    assert interesting((NIC,), {7: LINK, 2: PARENT}) == {7, 2}
    assert interesting((NIC,), {7: TAP, 3: BRIDGE}) == {7, 3}
    assert interesting((NIC,), {}) == {7}
    assert interesting((replace(NIC, link="", ifindex=0),), {7: LINK}) == set()


def test_what_was_learned_outlives_its_plugin(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    one = known.Known(addresses={NIC.mac: ("192.0.2.10", "2001:db8::10")}, told=1, lost={"chv00": "gone"})
    one.save(path)
    assert known.load(path) == one
    assert one.of(NIC) == ("192.0.2.10", "2001:db8::10")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"addresses": [], "told": 0, "lost": {}}', '{"addresses": {"m": ["x"]}, "told": 0, "lost": {}}'],
)
def test_what_makes_no_sense_is_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "links.json"
    path.write_text(text)
    assert known.load(path) == known.Known()
    assert known.load(tmp_path / "missing") == known.Known()
