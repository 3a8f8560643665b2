"""Whoever makes a link dies on the way; whoever comes next leaves exactly the links of the machines that live."""

import contextlib
import functools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host
from tests.integration.networks import Namespace, Network, machines_on, network
from vmlib import failpoint
from vmlib.paths import Layout
from vmlib.spec import BridgeLink, Link, MachineSpec, MacvtapLink, NetnsLink, NicSpec
from vmlib.sweep import Sweeper

MAC = "52:54:00:00:00:0a"
MAC_2 = "52:54:00:00:00:0b"
KINDS = ("macvtap", "bridge", "netns")
COMERS = ("next start", "newer start", "destroy", "sweep")
PLACES = (*failpoint.LINKS, "start.files", "start.spawned", "start.recorded")


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        one.host.add_bridge("br0")
        yield one


@pytest.fixture
def alloc(net: Network) -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as one:
        net.host.add_veth("veth1", one, "eth0")
        yield one


@pytest.fixture
def host(request: pytest.FixtureRequest, net: Network, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with machines_on(net, short_dir, guest.directory, getattr(request, "param", "fake")) as one:
        yield one


def nic_on(kind: str, alloc: Namespace) -> NicSpec:
    links: dict[str, Link] = {
        "macvtap": MacvtapLink(parent="up0"),
        "bridge": BridgeLink(bridge="br0"),
        "netns": NetnsLink(netns=alloc.path),
    }
    return NicSpec(network="lan", link=links[kind], mac="" if kind == "netns" else MAC)


def die_at(net: Network, host: Host, place: str, spec: MachineSpec) -> None:
    with net.host.do(lambda: host.elsewhere(spec, failpoint=place)) as starter:
        _, words = starter.communicate(timeout=60)
        assert starter.returncode == -signal.SIGKILL, words.decode()


def sweeper(host: Host, *, grace_s: float = 0.0, dry_run: bool = False) -> Sweeper:
    return Sweeper(machines=host.machines, owner="dev", gone_s=0.0, orphan_grace_s=grace_s, dry_run=dry_run)


@pytest.mark.parametrize(
    ("host", "kind", "place", "who"),
    [
        *(("fake", "macvtap", place, who) for place in PLACES for who in COMERS),
        *(("fake", kind, place, who) for kind in KINDS[1:] for place in failpoint.LINKS for who in COMERS[::3]),
        *(("qemu", kind, "link.opened", COMERS[number]) for number, kind in enumerate(KINDS)),
    ],
    indirect=["host"],
)
def test_whoever_comes_next_leaves_the_links_of_the_living(
    net: Network, alloc: Namespace, host: Host, kind: str, place: str, who: str
) -> None:
    other = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=MAC_2)
    living = net.host.do(lambda: host.start("tick", task="db", nics=(other,)))
    kept = living.machine.record.nics[0].link
    nic = nic_on(kind, alloc)
    spec = host.spec("tick", nics=(nic,), alive_while=host.directory / "gone")
    die_at(net, host, place, spec)
    if who.endswith("start"):
        newer = spec if who == "next start" else host.spec("tick", nics=(nic,))
        one = net.host.do(lambda: host.run(newer))
        assert net.host.ours() == sorted([kept, one.machine.record.nics[0].link])
        net.host.do(one.machine.destroy)
    elif who == "destroy":
        net.host.do(lambda: host.machines.destroy(spec.name, spec.id))
    else:
        assert net.host.do(lambda: sweeper(host).sweep(0.0)) == [spec.name]
    assert net.host.ours() == [kept]
    assert living.machine.running()


def test_links_whose_directories_are_gone_have_the_time_of_an_orphan(net: Network, host: Host) -> None:
    nic = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=MAC)
    spec = host.spec("tick", nics=(nic,))
    die_at(net, host, "link.opened", spec)
    (name,) = net.host.ours()
    shutil.rmtree(host.layout.run(spec.id).root)
    early = sweeper(host, grace_s=300)
    assert [net.host.do(lambda: early.sweep(0.0)), net.host.do(lambda: early.sweep(301.0))] == [[], []]  # its journal
    shutil.rmtree(host.layout.machine(spec.name).root)
    dry = sweeper(host, dry_run=True)
    assert net.host.do(lambda: dry.sweep(0.0)) == [name]
    late = sweeper(host, grace_s=300)
    assert [net.host.do(lambda: late.sweep(0.0)), net.host.do(lambda: late.sweep(299.0))] == [[], []]
    assert net.host.ours() == [name]
    assert net.host.do(lambda: late.sweep(300.0)) == [name]
    assert net.host.ours() == []


def test_a_journal_that_is_unwound_meanwhile_does_not_end_the_sweep(
    net: Network, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = host.spec("tick", nics=(NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=MAC),))
    die_at(net, host, "link.opened", spec)
    (name,) = net.host.ours()
    shutil.rmtree(host.layout.run(spec.id).root)
    shutil.rmtree(host.layout.machine(spec.name).root)
    journal = host.layout.machine("other/task").journal
    journal.parent.mkdir(parents=True)
    journal.touch()
    read_bytes = Path.read_bytes

    def read_too_late(path: Path) -> bytes:
        path.unlink() if path == journal else None
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_too_late)
    assert net.host.do(lambda: sweeper(host).sweep(0.0)) == [name]
    assert not journal.exists()
    assert net.host.ours() == []


@pytest.mark.parametrize("changed", ["owner", "data directory", "alias"])
def test_a_link_of_somebody_elses_is_not_swept(net: Network, host: Host, changed: str) -> None:
    nic = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=MAC)
    spec = host.spec("tick", nics=(nic,))
    die_at(net, host, "link.opened", spec)
    (name,) = net.host.ours()
    index, run_dir = net.host.index(name), host.layout.run(spec.id).root
    alias = {
        "owner": f"chv nomad {run_dir}",
        "data directory": f"chv dev {Layout(Path('/elsewhere'), Path('/elsewhere/run')).run(spec.id).root}",
        "alias": "the uplink of rack 7",
    }[changed]
    net.host.ask(lambda ipr: ipr.link("set", index=index, ifalias=alias))
    net.host.do(lambda: host.machines.destroy(spec.name, spec.id))
    host_sweeper = sweeper(host)
    for now_s in (0.0, 1000.0):
        assert net.host.do(functools.partial(host_sweeper.sweep, now_s)) == []
    assert net.host.ours() == [name]
    net.host.ask(lambda ipr: ipr.link("del", index=index))
