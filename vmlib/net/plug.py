"""Plugs the interfaces of a machine into what they ask for: one way in for all kinds of links."""

from vmlib.errors import SpecError
from vmlib.net.user import attach_user
from vmlib.resources import Nic
from vmlib.spec import NicSpec, UserLink


def plug(nic: NicSpec, index: int) -> Nic:
    """What the VMM gets for interface number `index`. Raises SpecError, HostError."""
    if isinstance(nic.link, UserLink):
        return attach_user(nic, nic.link, index)
    raise SpecError(f"network {nic.network!r}: this kind of link is not built yet")
