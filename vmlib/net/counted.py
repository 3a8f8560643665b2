"""What has gone over a link of ours since it was made, from its guest's side: for VMMs that do not count themselves."""

import contextlib

from vmlib.net import netlink
from vmlib.net.netlink import Carried


def carried(link: str, ifindex: int) -> Carried | None:
    """None for a link that is gone, in another network namespace, or by now somebody else's."""
    if not link:
        return None
    with contextlib.suppress(OSError), netlink.connect() as kernel:
        return kernel.carried(link, ifindex)
    return None
