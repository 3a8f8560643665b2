"""The watch over links that exist: what is lost and back is told once, addresses are learned from frames."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from driver.link_watch import LinkWatch
from driver.offload import Offload
from driver.store import Task
from tests.frames import arp, dhcp, icmpv6, ipv4, ipv6
from tests.integration.networks import Network, network
from vmlib.cores.service import Notice
from vmlib.net import known, netlink
from vmlib.net.learn import MAX_ADDRESSES
from vmlib.net.linkstate import LinkNotices
from vmlib.net.making import Making
from vmlib.net.plug import plug
from vmlib.paths import RunPaths
from vmlib.record import NicRecord
from vmlib.resources import OpenFile, TapNic
from vmlib.spec import BridgeLink, Link, MacvtapLink, NicSpec

MAC, OTHER = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
_VNET_HEADER = bytes(10)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as one:
        yield one


@dataclass
class Machine:
    """A machine as far as the watch sees it: a record, a run directory, and real links."""

    run: RunPaths
    record: SimpleNamespace
    fds: list[int]
    notices: tuple[Any, ...] = ()
    alive: bool = True

    def running(self) -> bool:
        return self.alive

    def send(self, *frames: bytes, nic: int = 0) -> None:
        for frame in frames:
            os.write(self.fds[nic], _VNET_HEADER + frame)


@dataclass
class Stage:
    """A watch on a loop, and what it told."""

    directory: Path
    kept: list[OpenFile] = field(default_factory=list)
    told: list[tuple[str, str, str]] = field(default_factory=list)  # task, kind, text
    tasks: dict[str, Task] = field(default_factory=dict)
    watch: LinkWatch = field(init=False)

    def begin(self) -> None:
        """A plugin starts."""
        self.watch = LinkWatch(Offload(), lambda task, text, kind: self.told.append((task.id, kind, text)))
        self.watch.start()

    def end(self) -> None:
        """It is killed: nothing is written any more."""
        for task_id in self.tasks:
            self.watch.drop(task_id)
        assert self.watch._running is not None
        self.watch._running.cancel()

    async def machine(self, name: str, *nics: NicSpec) -> Machine:
        return await asyncio.to_thread(self._machine, name, *nics)  # pyroute2 has a loop of its own

    def _machine(self, name: str, *nics: NicSpec) -> Machine:
        run = RunPaths(self.directory / name)
        run.root.mkdir()
        making = Making(
            machine_id=name,
            mark="chv dev /nowhere",
            queue_pairs=1,
            vhost=False,
            note=lambda *_: None,
            keep=self.kept.append,
        )
        plugged = [plug(nic, index, making) for index, nic in enumerate(nics)]
        records = tuple(
            NicRecord(
                network=p.spec.network, mac=p.spec.mac, addresses=p.spec.addresses, link=p.link, ifindex=p.ifindex
            )
            for p in plugged
        )
        fds = [p.nic.queues[0].fd for p in plugged if isinstance(p.nic, TapNic)]
        notices = tuple(Notice(name, "link lost", p.notice) for p in plugged if p.notice)
        return Machine(run, SimpleNamespace(nics=records), fds, notices)

    def serve(self, machine: Machine, *, fresh: bool = True) -> Task:
        name = machine.run.root.name
        task = cast(Task, SimpleNamespace(id=name, machine=machine, ended=asyncio.get_running_loop().create_future()))
        self.tasks[name] = task
        self.watch.add(task, fresh=fresh)
        return task

    def events(self, kind: str) -> list[str]:
        return [text for _, one, text in self.told if one == kind]

    async def until(self, true: Callable[[], Any], what: str, seconds: float = 5.0) -> float:
        start = time.monotonic()
        while not true():
            assert time.monotonic() < start + seconds, f"not within {seconds} s: {what}; told: {self.told}"
            await asyncio.sleep(0.02)
        return time.monotonic() - start


@contextlib.asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    one = Stage(directory)
    one.begin()
    try:
        yield one
    finally:
        one.end()
        for file in one.kept:
            os.close(file.fd)
        await asyncio.sleep(0.05)


def play(net: Network, directory: Path, act: Callable[[Stage], Awaitable[None]]) -> None:
    """Run `act` on a loop all of whose threads are in the host's namespace."""

    async def run() -> None:
        async with stage(directory) as one:
            await act(one)

    net.host.do(lambda: asyncio.run(run()))


def macvtap(mac: str = MAC, *addresses: str) -> NicSpec:
    return NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=mac, addresses=addresses)


def with_link(name: str, act: Callable[[Any, int], None]) -> None:
    with netlink.connect() as kernel:
        found = kernel.find(name)
        assert found is not None
        act(kernel, found.index)


def delete(name: str) -> None:
    with_link(name, lambda kernel, index: kernel.delete(index))


def flag(name: str, up: bool) -> None:
    with_link(name, lambda kernel, index: kernel._ipr.link("set", index=index, state="up" if up else "down"))


def test_a_parent_that_is_deleted_is_told_within_two_seconds(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        one, two = await on.machine("one", macvtap(MAC, "192.0.2.10/24")), await on.machine("two", macvtap(OTHER))
        on.serve(one)
        on.serve(two)
        await on.until(lambda: on.events("address"), "the address that was known")
        await asyncio.to_thread(delete, "up0")
        assert await on.until(lambda: len(on.events("link lost")) == 2, "both lost") < 2.0
        (link,) = (nic.link for nic in one.record.nics)
        assert f"link lost: {link} (lan) is gone" in on.events("link lost")[0]
        await asyncio.sleep(0.5)
        assert len(on.told) == 3

    play(net, tmp_path, act)


def test_a_parent_that_is_down_is_told_and_also_that_it_is_back(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        on.serve(await on.machine("one", macvtap()))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(flag, "up0", False)
        assert await on.until(lambda: on.events("link lost"), "lost") < 2.0
        assert on.events("link lost")[0].endswith("up0 is down")
        await asyncio.to_thread(flag, "up0", True)
        assert await on.until(lambda: on.events("link back"), "back") < 2.0
        assert len(on.told) == 2

    play(net, tmp_path, act)


def test_a_cable_that_is_pulled_is_told(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        on.serve(await on.machine("one", macvtap()))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(net.lan.ask, lambda ipr: ipr.link("set", index=net.lan.index("lan0"), state="down"))
        await on.until(lambda: on.events("link lost"), "lost")
        assert on.events("link lost")[0].endswith("up0 has no carrier")

    play(net, tmp_path, act)


def test_a_link_that_comes_and_goes_is_told_a_few_times_only(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        on.serve(await on.machine("one", macvtap()))
        await asyncio.sleep(0.2)
        for _ in range(6):
            for up in (False, True):
                await asyncio.to_thread(flag, "up0", up)
                await asyncio.sleep(0.5)
        assert len(on.events("link lost")) <= 4
        assert "comes and goes" in on.events("link lost")[-1]

    play(net, tmp_path, act)


@pytest.mark.parametrize("loss", ["deleted", "down"])
def test_a_bridge_that_is_lost_is_told(net: Network, tmp_path: Path, loss: str) -> None:
    net.host.add_bridge("br0")
    bridge: Link = BridgeLink(bridge="br0")

    async def act(on: Stage) -> None:
        on.serve(await on.machine("one", replace(macvtap(), link=bridge)))
        await asyncio.sleep(0.2)
        assert on.told == []
        await asyncio.to_thread(delete, "br0") if loss == "deleted" else await asyncio.to_thread(flag, "br0", False)
        assert await on.until(lambda: on.events("link lost"), "lost") < 2.0

    play(net, tmp_path, act)


@pytest.mark.parametrize(("link", "below"), [(MacvtapLink(parent="up0"), "up0"), (BridgeLink(bridge="br0"), "br0")])
def test_what_was_down_at_the_start_and_told_then_is_not_told_again_nor_by_the_next_plugin(
    net: Network, tmp_path: Path, link: Link, below: str
) -> None:
    net.host.add_bridge("br0")

    async def act(on: Stage) -> None:
        await asyncio.to_thread(flag, below, False)
        one = await on.machine("one", replace(macvtap(), link=link))
        assert [notice.kind for notice in one.notices] == ["link lost"]
        on.serve(one)
        await asyncio.sleep(1.0)
        assert on.told == []
        on.end()
        on.begin()
        on.serve(one, fresh=False)
        await asyncio.sleep(1.0)
        assert on.told == []
        await asyncio.to_thread(flag, below, True)
        await on.until(lambda: on.events("link back"), "back")
        assert on.events("link lost") == []

    play(net, tmp_path, act)


def test_what_was_lost_while_no_plugin_ran_is_told_by_the_next_once(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        one = await on.machine("one", macvtap(MAC, "192.0.2.10/24"))
        on.serve(one)
        await on.until(one.run.links.exists, "the file beside the machine")
        on.end()
        await asyncio.to_thread(delete, "up0")
        for _ in range(2):
            on.begin()
            on.serve(one, fresh=False)
            await on.until(lambda: on.events("link lost"), "lost")
            await on.until(lambda: known.load(one.run.links).lost, "written down")
            await asyncio.sleep(0.5)
            on.end()
        assert [kind for _, kind, _ in on.told] == ["address", "link lost"]

    play(net, tmp_path, act)


def test_a_link_that_goes_with_its_machine_is_not_lost(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        one = await on.machine("one", macvtap())
        on.serve(one)
        await asyncio.sleep(0.2)
        one.alive = False
        await asyncio.to_thread(delete, one.record.nics[0].link)
        await asyncio.sleep(1.0)
        assert on.told == []

    play(net, tmp_path, act)


def test_lost_notices_are_a_reason_to_look_at_everything(net: Network) -> None:
    def overflow() -> frozenset[int] | None:
        notices = LinkNotices(receive_bytes=1)
        try:
            for number in range(60):
                flag("up0", bool(number % 2))
            return notices.read()
        finally:
            notices.close()

    assert net.host.do(overflow) is None


# ---------------------------------------------------------------------------------------------------------------------
# addresses


@pytest.mark.parametrize("kind", ["macvtap", "bridge"])
def test_addresses_are_learned_from_what_a_guest_sends(net: Network, tmp_path: Path, kind: str) -> None:
    if kind == "bridge":
        net.host.add_bridge("br0")
        net.host.join("up0", "br0")
    link: Link = MacvtapLink(parent="up0") if kind == "macvtap" else BridgeLink(bridge="br0")

    async def act(on: Stage) -> None:
        one = await on.machine("one", replace(macvtap(), link=link))
        on.serve(one)
        await asyncio.sleep(0.3)
        one.send(
            ipv6(MAC, "fe80::9", icmpv6(135, "fe80::1")),
            arp(MAC, "0.0.0.0", target="192.0.2.10"),
            arp(MAC, "192.0.2.10"),
            ipv6(MAC, "2001:db8::10", icmpv6(136, "2001:db8::10")),
        )
        await on.until(lambda: on.events("address"), "an address")
        assert on.told == [("one", "address", "address: 192.0.2.10, 2001:db8::10 on lan")]
        await on.until(lambda: known.load(one.run.links).addresses, "written down")
        assert known.load(one.run.links).of(one.record.nics[0]) == ("192.0.2.10", "2001:db8::10", "fe80::9")

    play(net, tmp_path, act)


def test_the_answer_of_a_dhcp_server_is_enough(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        on.serve(await on.machine("one", macvtap()))
        await asyncio.sleep(0.3)
        server = net.lan.link("lan0").get_attr("IFLA_ADDRESS")
        with net.lan.do(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as mouth:
            mouth.bind(("lan0", 0))
            mouth.send(dhcp(server, MAC, 5, yours="192.0.2.77"))
        await on.until(lambda: on.events("address"), "an address")
        assert on.events("address") == ["address: 192.0.2.77 on lan"]

    play(net, tmp_path, act)


def test_addresses_are_learned_again_when_the_link_is_back(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        one = await on.machine("one", macvtap())
        on.serve(one)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(flag, "up0", False)
        await on.until(lambda: on.events("link lost"), "lost")
        await asyncio.to_thread(flag, "up0", True)
        await on.until(lambda: on.events("link back"), "back")
        await asyncio.sleep(0.3)
        one.send(arp(MAC, "192.0.2.10"))
        await on.until(lambda: on.events("address"), "an address")

    play(net, tmp_path, act)


def test_a_guest_that_floods_costs_neither_memory_nor_time_nor_its_neighbour(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        hostile, honest = await on.machine("hostile", macvtap()), await on.machine("honest", macvtap(OTHER))
        on.serve(hostile)
        on.serve(honest)
        await asyncio.sleep(0.3)
        frames = [arp(MAC, f"10.{n >> 8 & 255}.{n & 255}.1") for n in range(20_000)]
        flood = asyncio.create_task(asyncio.to_thread(hostile.send, *frames))
        before = time.thread_time()
        honest.send(arp(OTHER, "192.0.2.11"))
        await on.until(lambda: ("honest", "address", "address: 192.0.2.11 on lan") in on.told, "the neighbour's")
        await flood
        await asyncio.sleep(1.5)
        assert time.thread_time() - before < 1.0  # the loop's own thread
        assert len([text for task, _, text in on.told if task == "hostile"]) <= 2
        assert sum(len(text) for _, _, text in on.told) < 500
        seen = on.watch._watched["hostile"].seen[MAC].addresses()
        assert len(seen) <= MAX_ADDRESSES

    play(net, tmp_path, act)


def test_a_guest_cannot_give_its_neighbour_an_address(net: Network, tmp_path: Path) -> None:
    async def act(on: Stage) -> None:
        hostile, honest = await on.machine("hostile", macvtap()), await on.machine("honest", macvtap(OTHER))
        on.serve(hostile)
        on.serve(honest)
        await asyncio.sleep(0.3)
        hostile.send(arp(MAC, "192.0.2.66", sender_mac=OTHER), ipv4(OTHER, "192.0.2.66"))
        honest.send(arp(OTHER, "192.0.2.11"))
        await on.until(lambda: on.events("address"), "the honest one's")
        assert on.told == [("honest", "address", "address: 192.0.2.11 on lan")]

    play(net, tmp_path, act)
