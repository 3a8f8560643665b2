"""Links of real machines in network namespaces: who reaches whom, and that nothing of them stays."""

import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host, Running
from tests.integration.networks import Namespace, Network, machines_on, network
from tests.leftovers import open_files
from vmlib.errors import HostError, NoCapacityError, VmError
from vmlib.hypervisor.base import Counters
from vmlib.net.look import Seen, look
from vmlib.net.making import Making
from vmlib.net.names import link_name
from vmlib.net.plug import plug
from vmlib.net.stray import remove_link
from vmlib.resources import OpenFile
from vmlib.spec import BridgeLink, MachineSpec, MacvtapLink, MacvtapMode, NetnsLink, NicSpec, SeedSpec, UserLink

MAC = "52:54:00:00:00:0a"
MAC_2 = "52:54:00:00:00:0b"


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        yield one


@pytest.fixture
def host(request: pytest.FixtureRequest, net: Network, guest: Guest, short_dir: Path) -> Iterator[Host]:
    """Everything of it is called in the namespace of the net's host: by `run`, `destroy` and `net.host.do`."""
    with machines_on(net, short_dir, guest.directory, getattr(request, "param", "fake")) as one:
        yield one


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
    one.until_line("tick 1", timeout_s=120)
    net.host.do(one.machine.destroy)
    assert net.host.ours() == []


def _is_tap(fd: str) -> bool:
    target = os.readlink(fd)
    return target in ("/tap", "/dev/net/tun") or target.startswith("/tap ")


# ---------------------------------------------------------------------------------------------------------------------
# who reaches whom


def fetch(space: Namespace, address: str) -> None:
    """Ask the guest's server from that namespace, until it answers."""

    def ask() -> bytes:
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection((address, 80), timeout=5) as connection:
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    return connection.makefile("rb").read()
            except OSError:
                assert time.monotonic() < deadline, f"{address} does not answer"
                time.sleep(0.1)

    assert b"hello from chv-guest" in space.do(ask)


def what_it_gets_is_counted_as_received(net: Network, one: Running, address: str) -> None:
    def counted() -> Counters:
        (found,) = net.host.do(one.machine.usage).nics
        assert found is not None
        return found

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(100):
                sock.sendto(bytes(1000), (address, 9))

    before = counted()
    assert min(before.read_bytes, before.write_bytes, before.read_ops, before.write_ops) > 0
    net.lan.do(send)
    one.until(lambda: counted().read_bytes - before.read_bytes >= 100_000, "all datagrams to be counted")
    assert counted().read_ops - before.read_ops >= 100
    assert counted().write_bytes - before.write_bytes < 100_000  # it refuses some of them


PINGS = "http=80 ping=192.0.2.1 ping=2001:db8::1"


@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_two_guests_and_a_third_host_reach_each_other_by_static_addresses(net: Network, host: Host) -> None:
    own = ("ip=eth0:192.0.2.10/24 ip=eth0:2001:db8::10/64", "ip=eth0:192.0.2.11/24 ip=eth0:2001:db8::11/64")
    one = run(net, host, host.spec(f"{own[0]} {PINGS} ping=192.0.2.11 ping=2001:db8::11", nics=(macvtap(),)))
    two = run(
        net, host, host.spec(f"{own[1]} {PINGS} ping=192.0.2.10 ping=2001:db8::10", task="db", nics=(macvtap(MAC_2),))
    )
    for answered in ("192.0.2.1", "2001:db8::1", "192.0.2.11", "2001:db8::11"):
        one.until_line(f"ping {answered} ok", timeout_s=120)
    for answered in ("192.0.2.1", "2001:db8::1", "192.0.2.10", "2001:db8::10"):
        two.until_line(f"ping {answered} ok", timeout_s=120)
    for address in ("192.0.2.10", "192.0.2.11", "2001:db8::10", "2001:db8::11"):
        fetch(net.lan, address)
    for running in (one, two):
        assert os.stat(f"/proc/{running.vmm}").st_uid == running.machine.record.uid >= 210_000
    what_it_gets_is_counted_as_received(net, one, "192.0.2.10")


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
            running.until_line(f"ping {answered} ok", timeout_s=120)
        addresses = [line.split()[2] for line in running.out.lines if line.startswith(("address eth0 ", "ipv6 eth0 "))]
        assert addresses[0].startswith("192.0.2.1")
        assert addresses[1].startswith("2001:db8:")
        for address in addresses:
            fetch(net.lan, address)


@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_a_guest_on_a_bridge_is_a_host_among_others(net: Network, host: Host) -> None:
    net.host.add_bridge("br0", "192.0.2.2/24")
    net.host.join("up0", "br0")
    nic = NicSpec(network="br", link=BridgeLink(bridge="br0"), mac=MAC)
    words = "ip=eth0:192.0.2.10/24 ip=eth0:2001:db8::10/64"
    one = run(net, host, host.spec(f"{words} {PINGS} ping=192.0.2.2", nics=(nic,)))
    for answered in ("192.0.2.1", "2001:db8::1", "192.0.2.2"):
        one.until_line(f"ping {answered} ok", timeout_s=120)
    for address in ("192.0.2.10", "2001:db8::10"):
        fetch(net.lan, address)
    fetch(net.host, "192.0.2.10")
    what_it_gets_is_counted_as_received(net, one, "192.0.2.10")
    (name,) = net.host.ours()
    assert net.host.link(name).get_attr("IFLA_ADDRESS") == "fe" + MAC[2:]
    assert net.host.link(name).get_attr("IFLA_IFALIAS") == f"chv dev {one.machine.run.root}"
    one.machine.kill()
    one.end()
    one.until(lambda: net.host.ours() == [], "the end of the tap, which nobody has taken back", 10)


@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_a_guest_takes_over_the_interface_of_its_alloc(net: Network, host: Host) -> None:
    with contextlib.closing(Namespace()) as alloc:
        net.host.add_bridge("nomad", "172.26.64.1/20")
        net.host.add_veth("veth1", alloc, "eth0")
        net.host.join("veth1", "nomad")
        net.host.bring_up("veth1")
        eth0 = alloc.bring_up("eth0", "172.26.64.2/20", "2001:db8:1::2/64")
        alloc.ask(lambda ipr: ipr.route("add", dst="0.0.0.0/0", gateway="172.26.64.1"))
        alloc.ask(lambda ipr: ipr.route("add", dst="::/0", gateway="2001:db8:1::1"))
        alloc.ask(lambda ipr: ipr.link("set", index=eth0, mtu=1400))
        mac = alloc.link("eth0").get_attr("IFLA_ADDRESS")
        nic = NicSpec(network="alloc", link=NetnsLink(netns=alloc.path))
        words = "ip=eth0:172.26.64.2/20 http=80 ping=172.26.64.1"
        words += " get=/sys/class/net/eth0/address get=/sys/class/net/eth0/mtu"
        seed = SeedSpec(instance_id="i", hostname="chv-guest")
        one = run(net, host, host.spec(words, nics=(nic,), seed=seed))
        (record,) = one.machine.record.nics
        assert record.mac == mac
        assert record.addresses == ("172.26.64.2/20", "2001:db8:1::2/64")
        assert mac.encode() in one.machine.paths.seed.read_bytes()
        one.until_line("ping 172.26.64.1 ok", timeout_s=120)
        one.until_line(f"got /sys/class/net/eth0/address {mac}")
        one.until_line("got /sys/class/net/eth0/mtu 1400")
        fetch(net.host, "172.26.64.2")
        told = refused(net, host, nic)
        assert isinstance(told, NoCapacityError)
        assert str(told) == (
            f"eth0 of network namespace {alloc.path}: another guest has taken it over, or it is no Ethernet interface"
        )
        assert alloc.names() == ["eth0", "lo"]
        net.host.do(one.machine.destroy)
        assert net.host.ours() == []
        with contextlib.closing(alloc.do(lambda: socket.create_server(("172.26.64.2", 81)))):
            # The interface is the namespace's own again.
            net.host.do(lambda: socket.create_connection(("172.26.64.2", 81), timeout=5).close())


@pytest.mark.needs("dnsmasq")
@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_eight_interfaces_of_all_kinds_are_in_the_order_of_the_job(net: Network, host: Host, short_dir: Path) -> None:
    net.serve_addresses(short_dir)
    net.host.add_bridge("br0")
    with contextlib.closing(Namespace()) as alloc:
        net.host.add_veth("veth1", alloc, "eth0")
        nics = (
            *(macvtap(f"52:54:00:00:01:{index:02x}") for index in range(5)),
            NicSpec(network="br", link=BridgeLink(bridge="br0"), mac="52:54:00:00:01:05"),
            NicSpec(network="alloc", link=NetnsLink(netns=alloc.path)),
            NicSpec(network="nat", link=UserLink(), mac="52:54:00:00:01:07"),
        )
        words = " ".join(f"get=/sys/class/net/eth{index}/address" for index in range(8))
        one = run(net, host, host.spec(words, nics=nics, vcpus=2))
        macs = [nic.mac for nic in one.machine.record.nics]
        assert macs == [nic.mac or alloc.link("eth0").get_attr("IFLA_ADDRESS") for nic in nics]
        for index, mac in enumerate(macs):
            one.until_line(f"got /sys/class/net/eth{index}/address {mac}", timeout_s=120)
        assert net.host.ours() == sorted(nic.link for nic in one.machine.record.nics[:7])
        assert one.machine.record.nics[7].link == ""
        net.host.do(one.machine.destroy)


def test_an_alloc_that_goes_first_takes_its_link_along(net: Network, host: Host) -> None:
    alloc = Namespace()
    net.host.add_veth("veth1", alloc, "eth0")
    one = run(net, host, host.spec("tick", nics=(NicSpec(network="alloc", link=NetnsLink(netns=alloc.path)),)))
    assert len(net.host.ours()) == 1
    alloc.close()
    one.until(lambda: net.host.ours() == [], "the end of the link")
    assert one.machine.running()
    net.host.do(one.machine.destroy)


def test_a_parent_that_goes_takes_the_link_along_and_nothing_else(net: Network, host: Host) -> None:
    one = run(net, host, host.spec("tick", nics=(macvtap(),)))
    index = net.host.index("up0")
    net.host.ask(lambda ipr: ipr.link("del", index=index))
    assert net.host.ours() == []
    one.until_line("tick 5")
    record = net.host.do(lambda: one.machine.stop(10))
    assert record is not None
    assert record.exit_code == 0
    net.host.do(one.machine.destroy)
    assert not one.machine.paths.journal.exists()


# ---------------------------------------------------------------------------------------------------------------------
# what does not go


def refused(net: Network, host: Host, *nics: NicSpec) -> VmError:
    with pytest.raises(VmError) as caught:
        run(net, host, host.spec(task="cache", nics=nics))
    return caught.value


def test_a_start_that_is_refused_says_why_and_leaves_nothing(net: Network, host: Host) -> None:
    net.host.add_bridge("br0")
    net.host.add_veth("up1", net.lan, "lan1")
    net.host.join("up1", "br0")
    taken = run(net, host, host.spec("tick", task="db", nics=(macvtap(),)))
    (there,) = net.host.ours()
    own = net.host.link("up0").get_attr("IFLA_ADDRESS")
    for nic, kind, words in (
        (macvtap(parent="up9"), HostError, "network.lan.parent = 'up9': no such interface, expected one of this host"),
        (
            macvtap(parent="up1"),
            HostError,
            "network.lan.parent = 'up1': is part of a bridge or bond, expected an interface of its own",
        ),
        (
            macvtap(parent="lo"),
            HostError,
            "network.lan.parent = 'lo': the kernel puts no macvtap on it, expected an Ethernet interface",
        ),
        (
            macvtap(),
            NoCapacityError,
            f"mac = '{MAC}': taken on up0, expected one that neither up0 nor a link on it has",
        ),
        (
            macvtap(own),
            NoCapacityError,
            f"mac = '{own}': taken on up0, expected one that neither up0 nor a link on it has",
        ),
        (
            macvtap(MAC_2, mode="passthru"),
            NoCapacityError,
            f"network.lan.parent = 'up0': passthru wants it alone, but {there} is on it",
        ),
        (
            NicSpec(network="br", link=BridgeLink(bridge="br9"), mac=MAC),
            HostError,
            "network.br.bridge = 'br9': no such interface, expected a bridge of this host",
        ),
        (
            NicSpec(network="br", link=BridgeLink(bridge="up0"), mac=MAC),
            HostError,
            "network.br.bridge = 'up0': is veth, expected a bridge of the kernel's",
        ),
        (
            NicSpec(network="alloc", link=NetnsLink(netns=Path("/nowhere/netns"))),
            HostError,
            "network namespace /nowhere/netns: no such file or directory",
        ),
    ):
        # The first of its interfaces is fine, and gone again as well.
        first = () if "passthru" in words else (macvtap("52:54:00:00:00:0c"),)
        told = refused(net, host, *first, nic)
        assert (type(told), str(told)) == (kind, words)
        assert net.host.ours() == [there]
    net.host.do(taken.machine.destroy)


def test_a_parent_by_its_other_name_is_as_good(net: Network, host: Host) -> None:
    index = net.host.index("up0")
    net.host.ask(lambda ipr: ipr.link("property_add", index=index, altname="enp3s0"))
    seen = net.host.do(lambda: look(["enp3s0", "up9"]))
    assert seen == {"enp3s0": Seen(name="enp3s0", state="up", kind="veth")}
    run(net, host, host.spec("tick", nics=(macvtap(parent="enp3s0"),)))


def test_passthru_keeps_others_away(net: Network, host: Host) -> None:
    own = net.host.link("up0").get_attr("IFLA_ADDRESS")
    one = run(net, host, host.spec("tick", task="db", nics=(macvtap(mode="passthru"),)))
    (there,) = net.host.ours()
    assert net.host.link(there).get_attr("IFLA_ADDRESS") == MAC
    told = refused(net, host, macvtap(MAC_2))
    assert isinstance(told, NoCapacityError)
    assert str(told) == f"network.lan.parent = 'up0': {there} has it alone, by passthru"
    net.host.do(one.machine.destroy)
    assert net.host.link("up0").get_attr("IFLA_ADDRESS") == own


def test_a_strangers_link_of_that_name_is_left_alone(net: Network, host: Host) -> None:
    spec = host.spec(nics=(macvtap(),))
    name = link_name(spec.id, 0)
    net.host.add_veth(name, net.lan, "other")
    told = None
    try:
        run(net, host, spec)
    except HostError as exc:
        told = exc
    assert str(told) == f"link {name} is there and not ours, expected that name to be free"
    assert name in net.host.names()
    index = net.host.index(name)
    net.host.ask(lambda ipr: ipr.link("del", index=index))


def test_a_parent_without_carrier_is_no_reason_to_fail(net: Network, host: Host) -> None:
    lan0 = net.lan.index("lan0")
    net.lan.ask(lambda ipr: ipr.link("set", index=lan0, state="down"))
    one = run(net, host, host.spec("tick", nics=(macvtap(),)))
    (name,) = net.host.ours()
    assert [(notice.kind, notice.text) for notice in one.machine.notices if notice.kind == "link lost"] == [
        ("link lost", f"link lost: up0 has no carrier, {name} on it comes up when that does")
    ]
    assert net.host.link(name).get_attr("IFLA_OPERSTATE") == "LOWERLAYERDOWN"
    net.lan.bring_up("lan0")
    one.until(lambda: net.host.link(name).get_attr("IFLA_OPERSTATE") == "UP", "the link's carrier", 10)


# ---------------------------------------------------------------------------------------------------------------------
# many, and mixed up


def test_a_hundred_links_in_a_row_leave_nothing(net: Network, host: Host) -> None:
    before = open_files()

    def all_of_them() -> None:
        for number in range(100):
            mark = f"chv dev {host.layout.runs}/{number}"
            files: list[OpenFile] = []
            making = Making(
                machine_id=str(number),
                mark=mark,
                queue_pairs=2,
                vhost=False,
                note=lambda *_: None,
                keep=files.append,
            )
            made = plug(macvtap(), 0, making)
            assert len(files) == 2
            for file in files:
                os.close(file.fd)
            remove_link(made.link, mac=MAC, mark=mark)

    net.host.do(all_of_them)
    assert net.host.ours() == []
    assert open_files() == before


@pytest.mark.parametrize(("mode", "directly"), [("bridge", True), ("private", False), ("vepa", False)])
def test_the_mode_says_whether_guests_on_one_parent_hear_each_other(
    net: Network, mode: MacvtapMode, *, directly: bool
) -> None:
    files: list[OpenFile] = []
    for index, mac in enumerate((MAC, MAC_2)):
        making = Making(
            machine_id="pair",
            mark="chv dev /x",
            queue_pairs=1,
            vhost=False,
            note=lambda *_: None,
            keep=files.append,
        )
        net.host.do(functools.partial(plug, macvtap(mac, mode=mode), index, making))
    frame = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) + b"\x88\xb5" + b"chv" * 20
    with net.lan.do(packet_socket) as lan:
        os.write(files[0].fd, bytes(10) + frame)
        assert heard(lan, 2.0) == frame  # whoever is beyond the parent always hears it
    assert (_other_guest_hears(files[1].fd, frame)) is directly
    for index, (file, mac) in enumerate(zip(files, (MAC, MAC_2), strict=True)):
        os.close(file.fd)
        net.host.do(functools.partial(remove_link, link_name("pair", index), mac=mac, mark="chv dev /x"))
    assert net.host.ours() == []


def _other_guest_hears(fd: int, frame: bytes) -> bool:
    """Whether it is among what waits there: a veth's own words may be, too."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            if frame in os.read(fd, 2048):
                return True
    return False


def test_equal_indexes_in_two_namespaces_cross_no_descriptors(net: Network, host: Host) -> None:
    """Each has a macvtap of the same index and the same name; /sys and /dev know only one namespace, and not these."""
    with network() as other:
        spaces = (net.host, other.host)
        macs = (MAC, MAC_2)
        opened: list[tuple[int, OpenFile]] = []
        for space, mac in zip(spaces, macs, strict=True):
            files: list[OpenFile] = []
            making = Making(
                machine_id="same",
                mark="chv dev /x",
                queue_pairs=1,
                vhost=False,
                note=lambda *_: None,
                keep=files.append,
            )
            made = space.do(functools.partial(plug, macvtap(mac), 0, making))
            opened.append((made.ifindex, files[0]))
        assert opened[0][0] == opened[1][0]
        for space, mac, (_, file) in zip(spaces, macs, opened, strict=True):
            # What is written to it comes out of the very parent whose guest wrote it, and of no other.
            lan = (net if space is net.host else other).lan
            stranger = (other if space is net.host else net).lan
            sniffers = [one.do(packet_socket) for one in (lan, stranger)]
            frame = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + b"chv" * 20
            os.write(file.fd, bytes(10) + frame)
            assert heard(sniffers[0], 2.0) == frame
            assert heard(sniffers[1], 0.2) is None
            for sniffer in sniffers:
                sniffer.close()
        for space, mac, (_, file) in zip(spaces, macs, opened, strict=True):
            os.close(file.fd)
            space.do(functools.partial(remove_link, link_name("same", 0), mac=mac, mark="chv dev /x"))
        assert net.host.ours() == other.host.ours() == []


def packet_socket() -> socket.socket:
    """Hears the frames of the local experiments' protocol."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    one.bind(("lan0", 0x88B5))
    return one


def heard(sniffer: socket.socket, timeout_s: float) -> bytes | None:
    sniffer.settimeout(timeout_s)
    try:
        return sniffer.recv(2048)
    except TimeoutError:
        return None
