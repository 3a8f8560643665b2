"""What a tap's descriptor tells of its interface."""

import contextlib
import fcntl
from pathlib import Path

from tests.fakes.ch.config import RefusedError

_TUNGETIFF = 0x800454D2
_IFNAME_BYTES = 16


def interface_name(fd: int) -> str:
    """Raises OSError for what is no tap."""
    answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
    return answer[:_IFNAME_BYTES].rstrip(b"\0").decode()


def check(nics: list[list[int]]) -> None:
    """Raises RefusedError for a descriptor that is no tap's, and for an interface without any."""
    for fds in nics:
        if not fds:
            raise RefusedError(
                "Error from device manager",
                "Cannot create virtio-net device",
                "Failed to open taps",
                "Unable to configure tap interface",
                "Permission denied (os error 13)",
            )
        for fd in fds:
            try:
                interface_name(fd)
            except OSError as exc:
                raise RefusedError(
                    "Error from device manager",
                    "Cannot create virtio-net device",
                    "Using existing tap",
                    f"Ioctl failed ({_TUNGETIFF})",
                    f"{exc.strerror} (os error {exc.errno})",
                ) from exc


def traffic(fd: int) -> dict[str, int]:
    """Counters from the guest's point of view, as far as this network namespace shows the interface."""
    found = dict.fromkeys(("rx_bytes", "tx_bytes", "rx_frames", "tx_frames"), 0)
    with contextlib.suppress(OSError):
        device = Path("/sys/class/net", interface_name(fd))
        # What a tap receives is what its guest sent; a macvtap counts as the guest does.
        turned = not (device / "macvtap").exists()
        for ours in found:
            way, _, what = ours.partition("_")
            seen = {"rx": "tx", "tx": "rx"}[way] if turned else way
            found[ours] = int((device / "statistics" / f"{seen}_{what.replace('frames', 'packets')}").read_text())
    return found
