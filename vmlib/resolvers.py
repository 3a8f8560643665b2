"""The name servers of this host, which a guest can ask as the host does."""

import contextlib
from ipaddress import ip_address
from pathlib import Path

# The second one has what stands behind systemd's own server on the loopback.
_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def host_name_servers(paths: tuple[Path, ...] = _FILES, *, only_ipv4: bool = False) -> tuple[str, ...]:
    """Those that can be reached from elsewhere than the host itself, of the first file that names any."""
    for path in paths:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := name_servers(path.read_text(), only_ipv4=only_ipv4):
                return found
    return ()


def name_servers(resolv_conf: str, *, only_ipv4: bool = False) -> tuple[str, ...]:
    found = []
    for line in resolv_conf.splitlines():
        key, *values = line.split()[:2] or [""]
        if key != "nameserver" or not values:
            continue
        with contextlib.suppress(ValueError):
            address = ip_address(values[0])
            reached = not address.is_loopback and not address.is_unspecified and "%" not in values[0]
            if reached and not (only_ipv4 and address.version != 4):
                found.append(str(address))
    return tuple(dict.fromkeys(found))
