"""User networks with real guests, by either router, in network namespaces that stand for a host and its neighbour."""

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.http import get, serving
from tests.integration.machines import Host
from tests.integration.networks import Namespace, Network, network
from vmlib import probe, process
from vmlib.errors import HostError, NoCapacityError
from vmlib.keeper.plan import HelperPlan
from vmlib.keeper.spawn import listen, spawn_helper
from vmlib.paths import RunPaths
from vmlib.spec import NicSpec, PortForward, UserLink

pytestmark = pytest.mark.needs("qemu", "root")

HOST, PEER = "192.0.2.2", "192.0.2.1"  # addresses of the two


@pytest.fixture(params=[pytest.param("passt", marks=pytest.mark.needs("passt")), "qemu"])
def router(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "qemu":
        find_program = probe.find_program
        monkeypatch.setattr(probe, "find_program", lambda name: None if name == "passt" else find_program(name))
    return str(request.param)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        one.host.bring_up("up0", f"{HOST}/24")
        yield one


@pytest.fixture
def lan(net: Network) -> Namespace:
    """The namespace in which the router runs."""
    return net.host


def nic(lan: Namespace | None, *forwards: PortForward) -> NicSpec:
    link = UserLink(forwards=forwards, netns=None if lan is None else lan.path)
    return NicSpec(network="nat", link=link, mac="52:54:00:12:34:56")


def forward(host_port: int = 8080, guest_port: int = 80, *, host_ip: str = "", label: str = "http") -> PortForward:
    return PortForward(label=label, host_ip=host_ip, host_port=host_port, guest_port=guest_port)


def test_a_guest_reaches_out_and_what_it_reaches_of_the_host_depends_on_the_router(
    qemu: Host, router: str, net: Network
) -> None:
    with (
        serving(net.lan, PEER, 80, "peer"),
        serving(net.host, "127.0.0.1", 4646, "loopback"),
        serving(net.host, HOST, 4647, "address"),
    ):
        words = (
            f"fetch=http://{PEER}/ fetch=http://{HOST}:4647/ fetch=http://10.0.2.2:4646/ fetch=http://127.0.0.1:4646/"
        )
        one = qemu.start(words, nics=(nic(net.host),))
        one.until_line("address eth0 10.0.2.15")
        one.until_line(f"fetched http://{PEER}/ peer")
        # As from a process of the host: whoever listens on an address of its own is reached.
        one.until_line(f"fetched http://{HOST}:4647/ address")
        loopback = "fetched http://10.0.2.2:4646/"
        one.until_line(f"not {loopback}" if router == "passt" else f"{loopback} loopback")
        one.until_line("not fetched http://127.0.0.1:4646/")
    one.machine.destroy()


def test_ports_lead_into_the_guest_from_where_they_were_asked_for(qemu: Host, router: str, lan: Namespace) -> None:
    forwards = (
        forward(8080, host_ip=HOST),
        forward(80 if router == "passt" else 8082, host_ip="127.0.0.1", label="low"),
        forward(5353, 9, host_ip="127.0.0.1", label="udp"),
        forward(8081, label="everywhere"),
    )
    one = qemu.start("http=80 udp", nics=(nic(lan, *forwards),))
    one.until_line("http on port 80")
    for address, port in ((HOST, 8080), ("127.0.0.1", forwards[1].host_port), (HOST, 8081), ("127.0.0.1", 8081)):
        assert get(lan, address, port) == "hello from chv-guest\n"
    with pytest.raises(OSError, match="refused"):
        get(lan, "127.0.0.1", 8080)
    with lan.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.sendto(b"x", ("127.0.0.1", 5353))
    one.until_line("udp 1")
    with pytest.raises(OSError, match="refused"):  # the host's own namespace has nothing of it
        socket.create_connection(("127.0.0.1", 8081), timeout=5)
    one.machine.destroy()
    with pytest.raises(OSError, match="refused"):
        get(lan, HOST, 8080)


def test_another_task_of_the_namespace_keeps_its_network(qemu: Host, router: str, net: Network) -> None:
    before = net.host.names()
    with serving(net.host, HOST, 9090, "sidecar"), serving(net.lan, PEER, 80, "peer"):
        one = qemu.start(f"fetch=http://{HOST}:9090/ http=80", nics=(nic(net.host, forward()),))
        one.until_line(f"fetched http://{HOST}:9090/ sidecar")
        one.until_line("http on port 80")
        assert get(net.lan, HOST, 9090) == "sidecar"
        assert get(net.host, PEER, 80) == "peer"
        assert get(net.lan, HOST, 8080) == "hello from chv-guest\n"
        one.machine.destroy()
        assert get(net.lan, HOST, 9090) == "sidecar"
    assert net.host.names() == before


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_a_neighbour_in_the_namespace_holds_is_told_by_its_label(
    qemu: Host, router: str, lan: Namespace, kind: socket.SocketKind
) -> None:
    with lan.do(lambda: socket.socket(socket.AF_INET, kind)) as sidecar:
        sidecar.bind(("127.0.0.1", 8080))
        if kind == socket.SOCK_STREAM:
            sidecar.listen()
        protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
        spec = qemu.spec(nics=(nic(lan, forward(8079, label="other"), forward(8080, host_ip="127.0.0.1")),))
        with pytest.raises(NoCapacityError) as exc:
            qemu.run(spec)
        assert str(exc.value) == (
            f"port 'http': {protocol} port 127.0.0.1:8080 of the group's network is not to be had: another process"
            " listens on it, or the address is not one of its"
        )
    assert not qemu.layout.run(spec.id).root.exists()


def test_a_namespace_that_is_not_there_is_named(qemu: Host, router: str, tmp_path: Path) -> None:
    link = UserLink(netns=tmp_path / "gone")
    with pytest.raises(HostError, match=f"^network 'nat': there is no network namespace {tmp_path}/gone$"):
        qemu.start(nics=(NicSpec(network="nat", link=link, mac="52:54:00:12:34:56"),))


def test_only_the_router_is_in_the_namespace(qemu: Host, router: str, lan: Namespace) -> None:
    one = qemu.start("tick", nics=(nic(lan),))
    inside, ours = lan.path.stat().st_ino, Path("/proc/self/ns/net").stat().st_ino

    def where(pid: int) -> int:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino

    if router == "passt":
        assert where(one.ask("status")["helpers"]["net0"]) == inside
        assert where(one.vmm) not in (ours, inside)  # in one of its own
    else:
        assert where(one.vmm) == inside
    assert where(one.keeper.pid) == ours
    one.machine.destroy()


@pytest.mark.needs("passt")
def test_passt_runs_as_the_machines_user_without_privileges_and_ends_with_it(qemu: Host) -> None:
    one = qemu.start("tick", nics=(nic(None),))
    one.until_line("tick 1")
    who = process.identify(one.ask("status")["helpers"]["net0"])
    assert who is not None
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{who.pid}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(one.machine.record.uid)}
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert Path(f"/proc/{who.pid}/ns/user").stat().st_ino != Path("/proc/self/ns/user").stat().st_ino
    one.machine.press_power_button()
    assert one.end().exit_code == 0
    assert not process.alive(who)
    one.machine.destroy()


@pytest.mark.needs("passt")
def test_a_passt_that_is_killed_is_started_again_and_the_guest_is_reached_again(qemu: Host, lan: Namespace) -> None:
    one = qemu.start("http=80", nics=(nic(lan, forward(80)),))
    one.until_line("http on port 80")
    before = process.identify(one.ask("status")["helpers"]["net0"])
    assert before is not None
    assert process.send_signal(before, signal.SIGKILL)
    one.until_told("helper restarted: passt of network nat was killed by signal 9; connections through it were cut")
    # The guest has nothing to say by itself: it is asked to.
    one.pass_time(1)
    assert get(lan, HOST, 80) == "hello from chv-guest\n"

    # Once more, while there is no keeper: the next one does it.
    again = process.identify(one.ask("status")["helpers"]["net0"])
    assert again is not None
    one.kill_keeper()
    assert get(lan, HOST, 80) == "hello from chv-guest\n"
    assert process.send_signal(again, signal.SIGKILL)
    assert process.wait_gone(again, 5.0)
    assert one.machine.settle() is None
    one.until_told("passt of network nat ended while there was no keeper")
    one.pass_time(1)
    assert get(lan, HOST, 80) == "hello from chv-guest\n"
    one.machine.press_power_button()
    assert one.end().exit_code == 0
    one.machine.destroy()


def test_a_port_below_1024_that_qemu_may_not_have_names_the_cure(
    qemu: Host, lan: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_program = probe.find_program
    monkeypatch.setattr(probe, "find_program", lambda name: None if name == "passt" else find_program(name))
    with pytest.raises(
        NoCapacityError, match=r"^port 'http': (tcp|udp) port 80 .*: for a port below 1024 install passt$"
    ):
        qemu.start(nics=(nic(lan, forward(80)),))


@pytest.mark.needs("passt")
def test_a_machine_that_nobody_keeps_is_destroyed_with_its_passt(qemu: Host, lan: Namespace) -> None:
    one = qemu.start("tick", nics=(nic(lan, forward()),))
    one.until_line("tick 1")
    who = process.identify(one.ask("status")["helpers"]["net0"])
    assert who is not None
    assert [(nic.network, nic.router) for nic in one.machine.record.nics] == [("nat", "passt")]
    one.kill_keeper()
    one.machine.destroy()
    assert not process.alive(who)
    with pytest.raises(OSError, match="refused"):
        get(lan, HOST, 8080)


@pytest.mark.timeout(30)
def test_a_vmm_that_takes_no_calls_does_not_hold_up_its_keeper(short_dir: Path) -> None:
    plan = HelperPlan(name="net0", what="passt of network nat", argv=["true"], loss="", calls="net0")
    with contextlib.ExitStack() as ours:
        ours.enter_context(listen(short_dir / "net0"))
        with contextlib.suppress(BlockingIOError):
            while True:  # as many as wait
                caller = ours.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                caller.connect(str(short_dir / "net0"))
        with pytest.raises(BlockingIOError, match="net0"):
            spawn_helper(plan, RunPaths(short_dir))
