"""macvtap links: the guest has a MAC of its own on an interface of the host's."""

from dataclasses import replace

from vmlib import failpoint
from vmlib.net import devices, netlink
from vmlib.net.making import Making, Plugged, tap_nic
from vmlib.net.netlink import Interface, Netlink
from vmlib.net.refusals import macvtap_refused, missing, name_taken, other
from vmlib.resources import TapNic
from vmlib.spec import MacvtapLink, NicSpec


def attach_macvtap(nic: NicSpec, link: MacvtapLink, index: int, making: Making) -> Plugged:
    """Make the link and open it. Raises VmError; what was made then is in the journal."""
    what, name = f"network.{nic.network}.parent = {link.parent!r}", making.name(index)
    mac = nic.mac
    with netlink.connect() as kernel:
        parent = kernel.find(link.parent)
        if parent is None:
            raise missing(what)
        if kernel.find(name) is not None:
            raise name_taken(name)
        # One that has its parent alone is born with the parent's MAC, and the parent then takes the guest's.
        born = parent.mac if link.mode == "passthru" else mac
        making.note(name, born)
        failpoint.hit("link.noted")
        try:
            kernel.create_macvtap(name, parent=parent.index, mode=link.mode, mac=mac)
            failpoint.hit("link.made")
            made = finish(kernel, name, making, mac=mac)
        except OSError as exc:
            raise macvtap_refused(
                exc,
                what=what,
                parent=link.parent,
                mode=link.mode,
                mac=mac,
                name=name,
                others=[
                    one
                    for one in kernel.links()
                    if one.parent == parent.index
                    and not one.foreign_parent
                    and one.kind.startswith("macv")
                    and one.name != name
                ],
            ) from exc
    return Plugged(
        nic=open_queues(made, index, making, mac=mac),
        spec=replace(nic, mac=mac),
        link=name,
        ifindex=made.index,
        notice="" if parent.up and parent.carrier else _down(link.parent, name),
    )


def finish(kernel: Netlink, name: str, making: Making, *, mac: str) -> Interface:
    """Mark a link that was just made, and set it up."""
    made = kernel.find(name)
    if made is None:
        raise FileNotFoundError(2, "gone as soon as it was made", name)
    kernel.silence(made.index, alias=making.mark)
    failpoint.hit("link.marked")
    if made.mac != mac:
        kernel.set_mac(made.index, mac)
    kernel.set_up(made.index)
    failpoint.hit("link.up")
    return made


def open_queues(made: Interface, index: int, making: Making, *, mac: str) -> TapNic:
    try:
        fds = devices.open_macvtap(made.name, made.index, mac=mac, queues=making.queue_pairs)
    except OSError as exc:
        raise other(exc, f"device of link {made.name}") from exc
    vhost = devices.open_vhost(len(fds)) if making.vhost else []
    nic = tap_nic(making, index, fds, vhost, mac=mac, mtu=made.mtu)
    failpoint.hit("link.opened")
    return nic


def _down(parent: str, name: str) -> str:
    return f"link lost: {parent} has no carrier, {name} on it comes up when that does"
