"""The host's own place among its guests: a macvlan on the parent of their macvtaps, which cannot talk to the parent
itself. One for each address that the operator names; what is there and right is left alone.
"""

import errno
import hashlib
import ipaddress
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmlib.net import devices, netlink
from vmlib.net.netlink import Interface, Netlink

log = logging.getLogger(__name__)

_MARK = "chv-shim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shim:
    """What the operator wants."""

    network: str
    parent: str
    address: str  # with the length of the prefix

    @property
    def name(self) -> str:
        return f"chvs{_digest(f'{self.parent} {self.address}').hex()[:10]}"

    def __str__(self) -> str:
        return f"network {self.network}: host_shim = {self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    """Who may take a shim away again: the plugins of one owner and run directory."""

    owner: str
    run_dir: Path

    @property
    def mark(self) -> str:
        return f"{_MARK} {self.owner} {self.run_dir}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do. Of a link that is there, `link` says which."""

    do: Literal["remove", "make", "mark", "address", "up"]
    shim: Shim | None = None
    link: Interface | None = None


def decide(
    wanted: Sequence[Shim], links: Iterable[Interface], addresses: Mapping[int, Sequence[str]], mine: Mine
) -> tuple[list[Step], list[str]]:
    """What is to be done, and in sentences what the operator has to do. `addresses` are those of links by index."""
    by_name = {link.name: link for link in links}
    names = {shim.name for shim in wanted}
    steps = [
        Step(do="remove", link=link) for link in by_name.values() if link.alias == mine.mark and link.name not in names
    ]
    faults: list[str] = []
    for shim in {one.name: one for one in wanted}.values():
        parent, found = by_name.get(shim.parent), by_name.get(shim.name)
        if parent is None:
            faults.append(f"{shim}: there is no interface {shim.parent}, so host and guests do not reach each other")
            continue
        if (why := _hidden(shim, addresses.get(parent.index, ()))) is not None:
            faults.append(why)
        if found is None:
            steps.append(Step(do="make", shim=shim, link=parent))
        elif not _ours(found):
            faults.append(f"{shim}: link {shim.name} is there and not ours, remove it")
        elif found.kind != "macvlan" or found.parent != parent.index or found.mode != "bridge":
            steps += [Step(do="remove", link=found), Step(do="make", shim=shim, link=parent)]
        else:
            steps += _repairs(shim, found, addresses.get(found.index, ()), mine)
    return steps, faults


def _repairs(shim: Shim, found: Interface, has: Sequence[str], mine: Mine) -> list[Step]:
    steps = []
    # The agent's plugin stays when `chv dev` goes, so it takes over what that has made.
    if not found.alias or (mine.owner == "nomad" and not found.alias.startswith(f"{_MARK} nomad ")):
        steps.append(Step(do="mark", shim=shim, link=found))
    if _interface(shim.address) not in map(_interface, has):
        steps.append(Step(do="address", shim=shim, link=found))
    if not found.up:
        steps.append(Step(do="up", shim=shim, link=found))
    return steps


def _ours(found: Interface) -> bool:
    """By its mark, or by its name and kind when its maker died before it was marked."""
    return found.alias.startswith(f"{_MARK} ") or (not found.alias and found.kind == "macvlan")


def _hidden(shim: Shim, parents: Sequence[str]) -> str | None:
    """Why the host would not take the way by the shim, in a sentence."""
    own = _interface(shim.address)
    for text in parents:
        other = _interface(text)
        longer = other.network.prefixlen >= own.network.prefixlen
        if longer and other.version == own.version and other.ip in own.network:
            return (
                f"{shim}: {shim.parent} itself has {text}, so the host looks for guests there and reaches none: give"
                " the shim a longer prefix that holds only guests, or move that address from the interface to the shim"
            )
    return None


def examine(wanted: Sequence[Shim], mine: Mine) -> list[str]:
    """What is wrong with those that are wanted, in sentences; changes nothing. Raises OSError."""
    with netlink.connect() as kernel:
        steps, faults = _decided(kernel, wanted, mine)
    missing = [f"{step.shim}: not made yet" for step in steps if step.do == "make"]
    return faults + missing


def _decided(kernel: Netlink, wanted: Sequence[Shim], mine: Mine) -> tuple[list[Step], list[str]]:
    links = kernel.links()
    # The kernel finds an interface by any of its names, and lists it by its first.
    unlisted = {shim.parent for shim in wanted} - {link.name for link in links}
    links += [replace(found, name=name) for name in sorted(unlisted) if (found := kernel.find(name)) is not None]
    names = {shim.parent for shim in wanted} | {shim.name for shim in wanted}
    addresses = {link.index: kernel.addresses(link.index) for link in links if link.name in names}
    return decide(wanted, links, addresses, mine)


def ensure(wanted: Sequence[Shim], mine: Mine, *, dry_run: bool = False) -> list[str]:
    """Make what is wanted and missing, remove what is ours and not wanted. Returns sentences for the operator.

    Never raises for what the kernel refuses; to be called again from time to time, for parents come and go.
    """
    try:
        if not wanted and mine.mark not in devices.aliases().values():
            return []
        with netlink.connect() as kernel:
            steps, faults = _decided(kernel, wanted, mine)
            return faults + [fault for step in steps if (fault := _done(kernel, step, mine, dry_run=dry_run))]
    except OSError as exc:
        return [f"host_shim: {(exc.strerror or str(exc)).lower()}"]


def _done(kernel: Netlink, step: Step, mine: Mine, *, dry_run: bool) -> str:
    try:
        if step.do == "remove" and step.link is not None:
            if dry_run:
                log.info("would remove shim=%s: no network wants it", step.link.name)
            else:
                kernel.delete(step.link.index)
                log.info("removed shim=%s: no network wants it", step.link.name)
        elif step.shim is not None and step.link is not None:
            _act(kernel, step.do, step.shim, step.link, mine)
    except OSError as exc:
        return f"{step.shim or 'host_shim'}: {_refused(exc, step)}"
    return ""


def _act(kernel: Netlink, do: str, shim: Shim, link: Interface, mine: Mine) -> None:
    match do:
        case "make":
            try:
                kernel.create_macvlan(shim.name, parent=link.index, mac=_mac(shim, link))
            except FileExistsError:
                return  # another plugin was faster
            made = kernel.find(shim.name)
            if made is not None:
                kernel.mark(made.index, alias=mine.mark)
                kernel.add_address(made.index, shim.address)
                kernel.raise_up(made.index)
                log.info("shim made link=%s parent=%s address=%s", shim.name, shim.parent, shim.address)
        case "mark":
            kernel.mark(link.index, alias=mine.mark)
        case "address":
            kernel.add_address(link.index, shim.address)
        case "up":
            kernel.raise_up(link.index)


def _refused(exc: OSError, step: Step) -> str:
    parent = step.shim.parent if step.shim is not None else ""
    if step.do == "make" and exc.errno == errno.EINVAL:
        return f"a machine has {parent} alone, by passthru, or it takes no macvlan"
    if step.do == "make" and exc.errno == errno.EBUSY:
        return f"{parent} is part of a bridge or bond, expected an interface of its own"
    if step.do == "make" and exc.errno == errno.EOPNOTSUPP:
        return "this kernel has no macvlan: load the kernel module macvlan"
    return (exc.strerror or str(exc)).lower()


def _mac(shim: Shim, parent: Interface) -> str:
    """The same each time, so that neighbours need not learn anew."""
    raw = _digest(f"{parent.mac} {shim.address}")[:6]
    return (bytes((raw[0] & 0xFC | 0x02,)) + raw[1:]).hex(":")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    return ipaddress.ip_interface(text)
