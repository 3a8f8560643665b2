"""User-mode links: what is forwarded, what is refused, and how a port that is taken is told."""

from dataclasses import replace
from pathlib import Path

import pytest

from vmlib.errors import SpecError
from vmlib.net.making import Making
from vmlib.net.plug import plug
from vmlib.net.user import explain_forward_failure
from vmlib.resources import Forward, StreamNic, UserNic
from vmlib.spec import NicSpec, PortForward, UserLink

MAC = "52:54:00:12:34:56"
# User-mode links make nothing of the host's.
UNUSED = Making(machine_id="", mark="", queue_pairs=1, vhost=False, note=lambda *_: None, keep=lambda _: None)


def forward(label: str = "http", host_ip: str = "", host_port: int = 8080, guest_port: int = 80) -> PortForward:
    return PortForward(label=label, host_ip=host_ip, host_port=host_port, guest_port=guest_port)


def nic(*forwards: PortForward, mac: str = MAC) -> NicSpec:
    return NicSpec(network="nat", link=UserLink(forwards=forwards), mac=mac)


def test_every_port_is_forwarded_for_tcp_and_udp() -> None:
    wanted = nic(forward(host_ip="127.0.0.1"), forward("dns", host_port=5353, guest_port=53), mac="52:54:00:AB:cd:ef")
    assert plug(wanted, 1, UNUSED).nic == UserNic(
        name="net1",
        mac="52:54:00:ab:cd:ef",
        forwards=(
            Forward(protocol="tcp", host_ip="127.0.0.1", host_port=8080, guest_port=80),
            Forward(protocol="udp", host_ip="127.0.0.1", host_port=8080, guest_port=80),
            Forward(protocol="tcp", host_ip="", host_port=5353, guest_port=53),
            Forward(protocol="udp", host_ip="", host_port=5353, guest_port=53),
        ),
    )


def test_with_passt_a_helper_is_the_router(tmp_path: Path) -> None:
    wanted = NicSpec(network="nat", link=UserLink(forwards=(forward(),), netns=tmp_path), mac=MAC)
    by_passt, by_qemu = plug(wanted, 0, replace(UNUSED, passt=True)).nic, plug(wanted, 0, UNUSED).nic
    assert isinstance(by_passt, StreamNic)
    assert isinstance(by_qemu, UserNic)
    assert by_passt.network == "nat"
    for one in (by_passt, by_qemu):
        assert (one.name, one.mac, one.netns, len(one.forwards)) == ("net0", MAC, str(tmp_path), 2)


def test_one_host_port_on_two_addresses_and_one_guest_port_twice_are_fine() -> None:
    both = nic(forward("a", "10.0.0.1"), forward("b", "10.0.0.2"))
    made = plug(both, 0, UNUSED).nic
    assert isinstance(made, UserNic)
    assert len(made.forwards) == 4


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (nic(forward(guest_port=0)), "port 'http': guest port 0, expected 1 to 65535"),
        (nic(forward(guest_port=65536)), "port 'http': guest port 65536, expected 1 to 65535"),
        (nic(forward(host_port=0)), "port 'http': host port 0, expected 1 to 65535"),
        (nic(forward(host_port=-1)), "port 'http': host port -1, expected 1 to 65535"),
        (
            nic(forward(host_ip="::1")),
            "port 'http': host address '::1', expected an IPv4 address: user-mode links forward no other",
        ),
        (
            nic(forward(host_ip="1,restrict=off")),
            "port 'http': host address '1,restrict=off', expected an IPv4 address: user-mode links forward no other",
        ),
        (
            nic(forward("a", "10.0.0.1"), forward("b", "10.0.0.1", guest_port=81)),
            "port 'b': host port 10.0.0.1:8080 is taken by port 'a' of this task",
        ),
        (
            nic(forward("a"), forward("b", "10.0.0.1")),
            "port 'b': host port 10.0.0.1:8080 is taken by port 'a' of this task",
        ),
        (nic(forward("a", "10.0.0.1"), forward("b")), "port 'b': host port 8080 is taken by port 'a' of this task"),
        (nic(mac="52:54:00:12:34"), "mac = '52:54:00:12:34': expected a unicast address like 52:54:00:12:34:56"),
        (nic(mac="53:54:00:12:34:56"), "mac = '53:54:00:12:34:56': expected a unicast address like 52:54:00:12:34:56"),
    ],
)
def test_what_can_never_be_forwarded_is_refused(wanted: NicSpec, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        plug(wanted, 0, UNUSED)
    assert str(caught.value) == complaint


def test_a_port_that_is_taken_is_told_by_its_label() -> None:
    stderr = (
        "qemu-system-x86_64: -netdev user,id=n0,hostfwd=tcp::8080-:80:"
        " Could not set up host forwarding rule 'tcp::8080-:80'\n"
    )
    assert explain_forward_failure(stderr, nic(forward()).link) == (
        "port 'http': tcp port 8080 of the host is not to be had:"
        " another process listens on it, or the address is not this host's"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Failed to bind any port for '-t 8080:80', exiting", "port 'http': tcp port 8080 of the host is not"),
        (
            "Failed to bind any port for '-u 10.0.0.1/81:80', exiting",
            "port 'a': udp port 10.0.0.1:81 of the host is not",
        ),
        # of a later version
        (
            "Failed to bind port 8080 (Address already in use) for option '-t 8080:80'",
            "port 'http': tcp port 8080 of the host is not",
        ),
        ("Failed to bind any port for '-t 8081:80', exiting", None),
        ("External interface not usable", None),
    ],
)
def test_a_port_that_passt_cannot_have_is_told_by_its_label(words: str, told: str | None) -> None:
    link = nic(forward(), forward("a", "10.0.0.1", 81)).link
    said = explain_forward_failure(f"passt of network nat ended with status 1: {words}", link)
    assert (said or "").startswith(told or "")
    assert (said is None) == (told is None)


def test_a_port_of_a_network_namespace_is_told_as_such() -> None:
    link = UserLink(forwards=(forward(),), netns=Path("/run/netns/a"))
    assert explain_forward_failure("Failed to bind any port for '-t 8080:80', exiting", link) == (
        "port 'http': tcp port 8080 of the group's network is not to be had: another process listens on it, or the"
        " address is not one of its"
    )


def test_qemu_has_no_privilege_for_low_ports_and_passt_is_the_cure() -> None:
    told = explain_forward_failure(
        "Could not set up host forwarding rule 'tcp::443-:80'", nic(forward(host_port=443)).link
    )
    assert (told or "").endswith("is not this host's, or QEMU may not have it: for a port below 1024 install passt")


def test_the_right_one_of_several_ports_is_told() -> None:
    several = nic(forward("a", "10.0.0.1"), forward("b", "10.0.0.2"), forward("c", "10.0.0.2", 8081))
    told = explain_forward_failure("Could not set up host forwarding rule 'udp:10.0.0.2:8080-:80'", several.link)
    assert told is not None
    assert told.startswith("port 'b': udp port 10.0.0.2:8080 of the host")


@pytest.mark.parametrize(
    "stderr",
    [
        "",
        "qemu-system-x86_64: no such machine",
        "Could not set up host forwarding rule 'tcp::9999-:80'",  # of another interface
        "Could not set up host forwarding rule 'tcp::99999999999999999999-:80'",
    ],
)
def test_other_words_are_not_explained(stderr: str) -> None:
    assert explain_forward_failure(stderr, nic(forward()).link) is None
