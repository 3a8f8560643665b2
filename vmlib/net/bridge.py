"""Bridge links: a tap that is a port of a bridge of the host's. The tap is gone when the VMM is."""

import errno

from vmlib import failpoint
from vmlib.errors import HostError
from vmlib.net import devices, netlink
from vmlib.net.making import Making, Plugged, tap_nic
from vmlib.net.names import port_mac
from vmlib.net.refusals import bridge_missing, name_taken, no_bridge, other
from vmlib.spec import BridgeLink, NicSpec


def attach_bridge(nic: NicSpec, link: BridgeLink, index: int, making: Making) -> Plugged:
    """Make the tap and plug it into the bridge. Raises VmError; what was made then is in the journal."""
    key, name = f"network.{nic.network}.bridge", making.name(index)
    with netlink.connect() as kernel:
        bridge = kernel.find(link.bridge)
        if bridge is None:
            raise bridge_missing(key, link.bridge)
        if bridge.kind != "bridge":
            raise no_bridge(key, bridge)
        making.note(name, port_mac(nic.mac))
        failpoint.hit("link.noted")
        try:
            fds = devices.open_tap(name, queues=making.queue_pairs)
        except FileExistsError as exc:
            raise name_taken(name) from exc
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise HostError(f"{devices.TUN} is not to be had", hint="load the kernel module tun") from exc
            raise other(exc, f"tap {name}") from exc
        vhost = devices.open_vhost(len(fds)) if making.vhost else []
        made = tap_nic(making, index, fds, vhost, mac=nic.mac, mtu=bridge.mtu)
        failpoint.hit("link.made")
        try:
            tap = kernel.find(name)
            if tap is None:
                raise FileNotFoundError(errno.ENOENT, "gone as soon as it was made", name)
            kernel.silence(tap.index, alias=making.mark)
            failpoint.hit("link.marked")
            kernel.join(tap.index, mac=port_mac(nic.mac), mtu=bridge.mtu, bridge=bridge.index)
            kernel.set_up(tap.index)
            failpoint.hit("link.up")
        except OSError as exc:
            raise other(exc, f"{key} = {link.bridge!r}: tap {name}") from exc
        failpoint.hit("link.opened")
    return Plugged(
        nic=made,
        spec=nic,
        link=name,
        ifindex=tap.index,
        notice="" if bridge.up else f"link lost: bridge {link.bridge} is down, {name} on it comes up when that does",
    )
