"""What links are called, whose they are, and why the kernel refuses one, in words for whoever can change it."""

import errno
import os
from pathlib import Path

import pytest

from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.net.making import Making
from vmlib.net.names import MAX_NAME_BYTES, link_mark, link_name, port_mac, read_mark
from vmlib.net.netlink import Interface
from vmlib.net.plug import plug
from vmlib.net.refusals import bridge_missing, macvtap_refused, missing, no_bridge
from vmlib.spec import BridgeLink, MacvtapLink, NetnsLink, NicSpec

MAC = "52:54:00:12:34:56"
OTHER = Interface(index=7, name="chv01", mac="52:54:00:00:00:01", mtu=1500, up=True, carrier=True, kind="macvtap")
ALONE = Interface(
    index=8, name="chv02", mac="52:54:00:00:00:02", mtu=1500, up=True, carrier=True, kind="macvtap", mode="passthru"
)


def test_names_fit_and_differ_by_start_and_index() -> None:
    names = {link_name(f"alloc/task/{start}", index) for start in range(50) for index in range(20)}
    assert len(names) == 1000
    assert {len(name) for name in names} == {MAX_NAME_BYTES}


def test_a_name_is_the_same_for_whoever_computes_it_later() -> None:
    assert link_name("alloc/task/0a1b2c3d", 3) == "chv675d04e2a303"


def test_a_mark_says_whose_the_link_is() -> None:
    run_dir = Path("/run/chv of mine/m/0123456789ab")
    assert read_mark(link_mark("nomad", run_dir)) == ("nomad", run_dir)


@pytest.mark.parametrize("alias", ["", "chv", "uplink", "chv nomad", "chvx nomad /run/chv/m/1", "to chv rack 7"])
def test_a_strangers_alias_is_no_mark(alias: str) -> None:
    assert read_mark(alias) is None


@pytest.mark.parametrize(("guest", "port"), [(MAC, "fe:54:00:12:34:56"), ("fe:54:00:12:34:56", "fa:54:00:12:34:56")])
def test_the_hosts_end_of_a_tap_has_another_mac_than_the_guests(guest: str, port: str) -> None:
    assert port_mac(guest) == port
    assert int(port[:2], 16) & 3 == 2  # unicast, locally administered


@pytest.mark.parametrize(
    ("code", "mode", "others", "kind", "words"),
    [
        (
            errno.EADDRINUSE, "bridge", [OTHER], NoCapacityError,
            f"mac = '{MAC}': taken on eno1, expected one that neither eno1 nor a link on it has",
        ),
        (
            errno.EADDRNOTAVAIL, "bridge", [], SpecError,
            f"mac = '{MAC}': expected a unicast address like 52:54:00:12:34:56",
        ),
        (
            errno.EINVAL, "passthru", [OTHER], NoCapacityError,
            "network.lan.parent = 'eno1': passthru wants it alone, but chv01 is on it",
        ),
        (
            errno.EINVAL, "bridge", [ALONE], NoCapacityError,
            "network.lan.parent = 'eno1': chv02 has it alone, by passthru",
        ),
        (
            errno.EINVAL, "bridge", [OTHER], HostError,
            "network.lan.parent = 'eno1': the kernel puts no macvtap on it, expected an Ethernet interface",
        ),
        (
            errno.EBUSY, "bridge", [], HostError,
            "network.lan.parent = 'eno1': is part of a bridge or bond, expected an interface of its own",
        ),
        (
            errno.ENODEV, "bridge", [], HostError,
            "network.lan.parent = 'eno1': no such interface, expected one of this host",
        ),
        (errno.EEXIST, "bridge", [], HostError, "link chv03 is there and not ours, expected that name to be free"),
        (errno.EOPNOTSUPP, "bridge", [], HostError, "network.lan.parent = 'eno1': this kernel has no macvtap"),
        (errno.ENOMEM, "bridge", [], NoCapacityError, "network.lan.parent = 'eno1': cannot allocate memory"),
        (errno.EPERM, "bridge", [], HostError, "network.lan.parent = 'eno1': operation not permitted"),
    ],
)  # fmt: skip
def test_what_the_kernel_refuses_is_told_by_key_value_and_expectation(
    code: int, mode: str, others: list[Interface], kind: type[VmError], words: str
) -> None:
    told = macvtap_refused(
        OSError(code, os.strerror(code)),
        what="network.lan.parent = 'eno1'",
        parent="eno1",
        mode=mode,
        mac=MAC,
        name="chv03",
        others=others,
    )
    assert type(told) is kind
    assert str(told) == words


def test_what_is_not_there_or_something_else_is_the_operators() -> None:
    assert str(missing("network.lan.parent = 'eno9'")) == (
        "network.lan.parent = 'eno9': no such interface, expected one of this host"
    )
    assert str(bridge_missing("network.br.bridge", "br9")) == (
        "network.br.bridge = 'br9': no such interface, expected a bridge of this host"
    )
    assert str(no_bridge("network.br.bridge", OTHER)) == (
        "network.br.bridge = 'chv01': is macvtap, expected a bridge of the kernel's"
    )


@pytest.mark.parametrize(
    ("mac", "link"),
    [
        *(
            (mac, link)
            for mac in ("52:54:00:12:34", "53:54:00:12:34:56", "52-54-00-12-34-56", "52:54:00:12:34:5g")
            for link in (MacvtapLink(parent="eno1"), BridgeLink(bridge="br0"), NetnsLink(netns=Path("/run/netns/x")))
        ),
        ("", MacvtapLink(parent="eno1")),
        ("", BridgeLink(bridge="br0")),
    ],
)
def test_a_mac_that_no_guest_can_have_makes_nothing(mac: str, link: MacvtapLink | BridgeLink | NetnsLink) -> None:
    made: list[object] = []
    making = Making(
        machine_id="x",
        mark="",
        queue_pairs=1,
        vhost=False,
        note=lambda *words: made.append(words),
        keep=made.append,
    )
    with pytest.raises(SpecError, match="expected a unicast address") as caught:
        plug(NicSpec(network="lan", link=link, mac=mac), 0, making)
    assert str(caught.value) == f"mac = {mac!r}: expected a unicast address like 52:54:00:12:34:56"
    assert made == []
