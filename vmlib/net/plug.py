"""Plugs the interfaces of a machine into what they ask for: one way in for all kinds of links."""

import re
from dataclasses import replace

from vmlib.errors import SpecError
from vmlib.net import guard
from vmlib.net.bridge import attach_bridge
from vmlib.net.macvtap import attach_macvtap
from vmlib.net.making import Making, Plugged
from vmlib.net.netns import attach_netns
from vmlib.net.user import attach_user
from vmlib.spec import BridgeLink, MacvtapLink, NetnsLink, NicSpec, UserLink

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def plug(nic: NicSpec, index: int, making: Making) -> Plugged:
    """Make what the VMM gets for interface number `index`. Raises VmError; what was made then is in the journal."""
    nic = replace(nic, mac=_checked(nic))
    plugged = _attach(nic, index, making)
    guard.apply(plugged.spec, plugged.link, plugged.ifindex)
    return plugged


def _attach(nic: NicSpec, index: int, making: Making) -> Plugged:
    match nic.link:
        case UserLink() as link:
            return Plugged(nic=attach_user(nic, link, index, passt=making.passt), spec=nic)
        case MacvtapLink() as link:
            return attach_macvtap(nic, link, index, making)
        case BridgeLink() as link:
            return attach_bridge(nic, link, index, making)
        case NetnsLink() as link:
            return attach_netns(nic, link, index, making)


def _checked(nic: NicSpec) -> str:
    mac = nic.mac.lower()
    if not mac and isinstance(nic.link, NetnsLink):
        return ""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise SpecError(f"mac = {nic.mac!r}: expected a unicast address like 52:54:00:12:34:56")
    return mac
