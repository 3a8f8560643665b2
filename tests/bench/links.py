"""What links cost: a macvtap that is ready over the bare netlink calls, a start with interfaces over one without."""

import functools
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pyroute2 import IPRoute

from tests.bench.measure import Line, Settings, in_turns, line
from tests.integration.networks import Namespace, network
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.net.making import Making
from vmlib.net.plug import plug
from vmlib.net.stray import remove_link
from vmlib.paths import Layout
from vmlib.resources import OpenFile
from vmlib.settings import HostSettings
from vmlib.spec import DirectBoot, FileRef, MachineSpec, MacvtapLink, NicSpec

_MAC = "52:54:00:00:00:01"
_MARK = "chv run /bench"
_UP_ALLMULTI = 0x201


def run(settings: Settings) -> list[Line]:
    with network() as net:
        base, mine = in_turns([lambda: net.host.do(_bare), lambda: net.host.do(_ready)], pairs=4 * settings.pairs)
        made = line(
            "macvtap ready",
            "a macvtap made, marked, up, open and proven / the bare netlink calls that make it and set it up",
            ours=mine,
            baseline=base,
        )
        return [made, *_starts(settings, net.host)]


def _ready() -> float:
    files: list[OpenFile] = []
    begin = time.perf_counter()
    made = plug(
        NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=_MAC),
        0,
        Making(machine_id="x", mark=_MARK, queue_pairs=1, vhost=False, note=lambda *_: None, keep=files.append),
    )
    took = time.perf_counter() - begin
    os.close(files[0].fd)
    remove_link(made.link, mac=_MAC, mark=_MARK)
    return took


def _bare() -> float:
    begin = time.perf_counter()
    with IPRoute() as ipr:
        (parent,) = ipr.link("get", ifname="up0")
        ipr.link("add", ifname="bare0", kind="macvtap", link=parent["index"], macvtap_mode="bridge", address=_MAC)
        (made,) = ipr.link("get", ifname="bare0")
        ipr.link("set", index=made["index"], flags=_UP_ALLMULTI, change=_UP_ALLMULTI)
        took = time.perf_counter() - begin
        ipr.link("del", index=made["index"])
    return took


def _starts(settings: Settings, host: Namespace) -> list[Line]:
    directory = settings.directory("links")
    machines = Machines(
        HostSettings(layout=Layout(directory / "data", settings.base / "lr")),
        lambda _: (Fake(), "for the benchmark"),
        attach,
    )
    numbers = count()

    def start(nics: int) -> Callable[[], float]:
        def measure() -> float:
            spec = _spec(next(numbers), nics, settings.guest_dir)
            begin = time.perf_counter()
            machine = machines.start(spec)
            took = time.perf_counter() - begin
            machine.destroy()
            return took

        return lambda: host.do(measure)

    try:
        none, one, eight = in_turns([start(0), start(1), start(8)], pairs=2 * settings.pairs)
    finally:
        for mark in machines.marks():
            host.do(functools.partial(machines.remove, mark.name))
        reap()
    what = "a start with {} / one with no interface"
    return [
        line("start, 1 interface", what.format("one macvtap"), ours=one, baseline=none),
        line("start, 8 interfaces", what.format("eight macvtaps"), ours=eight, baseline=none),
    ]


def _spec(number: int, nics: int, guest_dir: Path) -> MachineSpec:
    return MachineSpec(
        id=f"bench/{number}/1",
        name=f"bench/{number}",
        owner="run",
        vcpus=1,
        memory_mib=64,
        boot=DirectBoot(kernel=FileRef(root=guest_dir, relative="vmlinuz")),
        nics=tuple(
            NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=f"52:54:00:00:00:{index + 1:02x}")
            for index in range(nics)
        ),
    )
