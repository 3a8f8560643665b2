"""Links into another network namespace: the guest takes over an interface there, with its MAC, addresses and routes.

By a macvtap that has the interface alone (passthru) but lives in our namespace, where it is opened, marked and deleted
as all others are.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vmlib import failpoint
from vmlib.errors import HostError, SpecError, VmError
from vmlib.net import netlink
from vmlib.net.macvtap import finish, open_queues
from vmlib.net.making import Making, Plugged
from vmlib.net.netlink import Interface
from vmlib.net.refusals import name_taken, taken_over_refused
from vmlib.spec import NetnsLink, NicSpec

_CLONE_NEWNET = 0x40000000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What the guest gets of an interface."""

    interface: Interface
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]


def attach_netns(nic: NicSpec, link: NetnsLink, index: int, making: Making) -> Plugged:
    """Make the link and open it. Raises VmError; what was made then is in the journal."""
    name = making.name(index)
    found = in_netns(link.netns, lambda: _look(link))
    mac = found.interface.mac
    if nic.mac not in ("", mac):
        raise SpecError(f"mac = {nic.mac!r}: expected none, the guest takes over {mac} of {link.interface}")
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.connect() as kernel:
            if kernel.find(name) is not None:
                raise name_taken(name)
            making.note(name, mac)
            failpoint.hit("link.noted")
            in_netns(link.netns, lambda: _create(name, link, found, ours))
            failpoint.hit("link.made")
            try:
                made = finish(kernel, name, making, mac=mac)
            except OSError as exc:
                raise _refused(exc, name, link) from exc
    finally:
        os.close(ours)
    return Plugged(
        nic=open_queues(made, index, making, mac=mac),
        spec=replace(nic, mac=mac, addresses=nic.addresses or found.addresses, gateways=nic.gateways or found.gateways),
        link=name,
        ifindex=made.index,
    )


def _look(link: NetnsLink) -> TakenOver:
    with netlink.connect() as kernel:
        interface = kernel.find(link.interface)
        if interface is None:
            raise HostError(f"{link.netns}: no interface {link.interface!r}, expected one that the guest can take over")
        return TakenOver(
            interface=interface,
            addresses=kernel.addresses(interface.index),
            gateways=kernel.gateways(interface.index),
        )


def _create(name: str, link: NetnsLink, found: TakenOver, ours: int) -> None:
    with netlink.connect() as kernel:
        try:
            kernel.create_macvtap(name, parent=found.interface.index, mode="passthru", netns_fd=ours)
        except OSError as exc:
            raise _refused(exc, name, link) from exc


def _refused(exc: OSError, name: str, link: NetnsLink) -> VmError:
    return taken_over_refused(exc, what=f"{link.interface} of network namespace {link.netns}", name=name)


def in_netns(path: Path, func: Callable[[], _T]) -> _T:
    """Run `func` inside another network namespace, in a thread of its own: nobody else moves, nothing forks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise HostError(f"network namespace {path}: {(exc.strerror or str(exc)).lower()}") from exc
    results: list[_T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise HostError(f"network namespace {path}: {os.strerror(code).lower()}")
            results.append(func())
        except BaseException as exc:  # noqa: BLE001  it is raised where it belongs, in the thread that waits
            failures.append(exc)

    try:
        worker = threading.Thread(target=body, name="netns")
        worker.start()
        worker.join()
    finally:
        os.close(fd)
    if failures:
        raise failures[0]
    return results[0]
