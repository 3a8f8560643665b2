"""Why the kernel does not make a link, in words for whoever can change it. Pure."""

import errno
from collections.abc import Iterable

from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.net.netlink import Interface


def macvtap_refused(
    exc: OSError, *, what: str, parent: str, mode: str, mac: str, name: str, others: Iterable[Interface]
) -> VmError:
    """`what` is how whoever reads it knows the parent (`network.lan.parent = 'eno1'`); `others` are the links on it."""
    match exc.errno:
        case errno.EADDRINUSE:
            return NoCapacityError(
                f"mac = {mac!r}: taken on {parent}, expected one that neither {parent} nor a link on it has"
            )
        case errno.EADDRNOTAVAIL:
            return SpecError(f"mac = {mac!r}: expected a unicast address like 52:54:00:12:34:56")
        case errno.EEXIST:
            return name_taken(name)
        case errno.ENODEV:
            return missing(what)
        case errno.EBUSY:
            return HostError(f"{what}: is part of a bridge or bond, expected an interface of its own")
        case errno.EOPNOTSUPP:
            return HostError(f"{what}: this kernel has no macvtap", hint="load the kernel module macvtap")
        case errno.EINVAL:
            there = sorted(one.name for one in others)
            if mode == "passthru" and there:
                return NoCapacityError(f"{what}: passthru wants it alone, but {', '.join(there)} is on it")
            if exclusive := sorted(one.name for one in others if one.mode == "passthru"):
                return NoCapacityError(f"{what}: {exclusive[0]} has it alone, by passthru")
            return HostError(f"{what}: the kernel puts no macvtap on it, expected an Ethernet interface")
    return other(exc, what)


def taken_over_refused(exc: OSError, *, what: str, name: str) -> VmError:
    """The same for an interface of another namespace, of which we do not see who else has it."""
    if exc.errno == errno.EINVAL:
        return NoCapacityError(f"{what}: another guest has taken it over, or it is no Ethernet interface")
    return macvtap_refused(exc, what=what, parent=what, mode="passthru", mac="", name=name, others=())


def missing(what: str) -> HostError:
    return HostError(f"{what}: no such interface, expected one of this host")


def bridge_missing(key: str, name: str) -> HostError:
    return HostError(f"{key} = {name!r}: no such interface, expected a bridge of this host")


def no_bridge(key: str, found: Interface) -> HostError:
    return HostError(f"{key} = {found.name!r}: is {found.kind or 'hardware'}, expected a bridge of the kernel's")


def name_taken(name: str) -> HostError:
    return HostError(f"link {name} is there and not ours, expected that name to be free", hint=f"remove {name}")


def other(exc: OSError, what: str) -> VmError:
    words = (exc.strerror or str(exc)).lower()
    if exc.errno in (errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        return NoCapacityError(f"{what}: {words}")
    return HostError(f"{what}: {words}")
