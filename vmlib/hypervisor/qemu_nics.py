"""Network interfaces on QEMU's command line."""

import ipaddress
import re
from collections.abc import Iterable, Iterator

from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.options import Inherited, inherited, option
from vmlib.hypervisor.qemu_slots import NIC_SLOTS, slot
from vmlib.resources import (
    Forward,
    Nic,
    OpenFile,
    StreamNic,
    TapNic,
    UserNic,
)

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def nic_args(index: int, nic: Nic) -> list[str]:
    if _MAC.fullmatch(nic.mac) is None:
        raise SpecError(f"mac = {nic.mac!r}: expected six pairs of lower case hex digits, as 52:54:00:12:34:56")
    netdev = f"net{index}"
    # Without an option ROM: the guest does not boot from the network.
    pairs = [("netdev", netdev), ("mac", nic.mac), ("romfile", ""), slot(NIC_SLOTS[index])]
    match nic:
        case UserNic():
            backend = option("user", ("id", netdev), *(("hostfwd", _host_forward(one)) for one in nic.forwards))
        case StreamNic():
            # As the server it takes a new helper in when one has ended; a client of 7.2 would call but once.
            backend = option(
                "stream", ("id", netdev), ("server", "on"), ("addr.type", "fd"), ("addr.str", inherited(nic.name))
            )
        case _:
            backend = option("tap", ("id", netdev), *_queues(nic))
            if nic.mtu:
                pairs.append(("host_mtu", str(nic.mtu)))
            if len(nic.queues) > 1:
                # An interrupt for each queue, one for its control queue and one for changes of its state.
                pairs += [("mq", "on"), ("vectors", str(2 * len(nic.queues) + 2))]
    return ["-netdev", backend, "-device", option("virtio-net-pci", *pairs)]


def _queues(nic: TapNic) -> list[tuple[str, str]]:
    many = "s" if len(nic.queues) > 1 else ""
    pairs: list[tuple[str, str]] = [(f"fd{many}", _all_inherited(nic.name, len(nic.queues)))]
    if nic.vhost:
        pairs += [("vhost", "on"), (f"vhostfd{many}", _all_inherited(f"{nic.name}.vhost", len(nic.vhost)))]
    return pairs


def _all_inherited(name: str, count: int) -> Inherited:
    return Inherited(":".join(inherited(f"{name}.{index}") for index in range(count)))


def nic_files(nics: Iterable[Nic]) -> Iterator[tuple[str, OpenFile]]:
    for nic in nics:
        if isinstance(nic, TapNic):
            for index, file in enumerate(nic.queues):
                yield f"{nic.name}.{index}", file
            for index, file in enumerate(nic.vhost):
                yield f"{nic.name}.vhost.{index}", file


def frame_listeners(nics: Iterable[Nic]) -> tuple[str, ...]:
    """The sockets at which routers that are helpers call."""
    return tuple(nic.name for nic in nics if isinstance(nic, StreamNic))


def router_namespace(nics: Iterable[Nic]) -> str:
    """Where QEMU itself has to run because its own router does: a process is in one network namespace."""
    found = {nic.netns for nic in nics if isinstance(nic, UserNic)}
    if len(found) > 1:
        raise SpecError(
            "user networks in several network namespaces: expected one, since QEMU itself is their router here"
        )
    return "".join(found)


def _host_forward(forward: Forward) -> str:
    if forward.host_ip:
        try:
            ipaddress.IPv4Address(forward.host_ip)
        except ValueError as exc:
            raise HostError(
                f"host address {forward.host_ip!r} of port {forward.host_port}: a user-mode link forwards IPv4 only",
                hint="give the client's host network an IPv4 address",
            ) from exc
    for port in (forward.host_port, forward.guest_port):
        if not 1 <= port <= 65535:
            raise SpecError(f"port {port}: expected 1 to 65535")
    return f"{forward.protocol}:{forward.host_ip}:{forward.host_port}-:{forward.guest_port}"
