"""What a guest may send where the operator says `filter = true`: frames from its own MAC, and with static addresses
nothing that speaks for other addresses.

A classic BPF program as a direct-action classifier, where the frames of the guest enter the host: it needs no nftables,
goes with its link, and every kernel since Linux 4.5 has the means.
"""

import contextlib
import ctypes
import errno
import ipaddress
import struct
import threading

from vmlib.errors import HostError
from vmlib.net import rtnetlink
from vmlib.net.bpf import ARP, BYTE, ETHERNET, HALF, IPV4, IPV6, Program, ip_bytes, mac_bytes
from vmlib.spec import BridgeLink, MacvtapLink, NicSpec

CURE = "load the kernel modules sch_ingress and cls_bpf, or set filter = false"

_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1  # its index in every namespace

_PASS, _DROP = 0, 2  # of the kernel's TC_ACT_*; a frame too short to be looked at passes, and is good for nothing

_SOURCE_MAC = 6
_TYPE = 12
_ARP_SENDER_MAC, _ARP_SENDER_IP = ETHERNET + 8, ETHERNET + 14
_IPV4_SOURCE = ETHERNET + 12
_IPV6_NEXT, _IPV6_SOURCE, _IPV6_BODY = ETHERNET + 6, ETHERNET + 8, ETHERNET + 40
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _ICMPV6, _DESTINATION_OPTIONS = 0, 43, 44, 58, 60
_MLD = (131, 132, 143)
_ROUTER_ADVERTISEMENT, _SOLICITATION, _NEIGHBOUR, _REDIRECT = 134, 135, 136, 137
_UNSPECIFIED = bytes(16)

_CLSACT_HANDLE, _CLSACT_PARENT = 0xFFFF_0000, 0xFFFF_FFF1
_INGRESS, _EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3
_KIND, _OPTIONS = 1, 2
_OPS_LENGTH, _OPS, _NAME, _FLAGS = 4, 5, 7, 8
_DIRECT_ACTION = 1
_ALL_PROTOCOLS = 0x0003
_PRIORITY = 1
_TCMSG = struct.Struct("=BxxxiIII")


def wanted(nic: NicSpec) -> bool:
    return isinstance(nic.link, MacvtapLink | BridgeLink) and nic.link.filter


def apply(nic: NicSpec, link: str, ifindex: int) -> None:
    """Guard a link that was just made, before its guest runs. Does nothing for one without filter. Raises HostError."""
    if not wanted(nic):
        return
    # What a guest sends through a macvtap leaves the host there; through a tap it comes in.
    where = _EGRESS if isinstance(nic.link, MacvtapLink) else _INGRESS
    code = program(nic.mac, nic.addresses)
    try:
        _attach(ifindex, where, code)
    except OSError as exc:
        raise _refused(exc, nic, link) from exc


def _refused(exc: OSError, nic: NicSpec, link: str) -> HostError:
    what = f"network.{nic.network}.filter = true: link {link}"
    if exc.errno in (errno.ENOENT, errno.EOPNOTSUPP):
        return HostError(
            f"{what}: this kernel cannot look at what a guest sends",
            hint=CURE,
        )
    return HostError(f"{what}: {(exc.strerror or str(exc)).lower()}")


def lack() -> str:
    """Why this kernel cannot guard a link, in a sentence; "" when it can. Tried on a loopback that nobody else sees."""
    faults: list[str] = []

    def attempt() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            return  # not for us to try; whoever starts machines is told then
        try:
            _attach(_LOOPBACK, _INGRESS, program("02:00:00:00:00:01", ("192.0.2.1/32",)))
        except OSError as exc:
            faults.append(f"the kernel cannot look at what a guest sends: {(exc.strerror or str(exc)).lower()}")

    # The namespace goes with its thread.
    thread = threading.Thread(target=attempt, name="guard")
    thread.start()
    thread.join()
    return "".join(faults)


def link_local(mac: str) -> str:
    """The IPv6 address that follows from a MAC, which every guest has unless it is told otherwise."""
    raw = mac_bytes(mac)
    host = bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + host))


def program(mac: str, addresses: tuple[str, ...]) -> bytes:
    """The classifier for a guest with that MAC; without static addresses it may use any, as it asks by DHCP."""
    code = Program()
    code.need_bytes(_SOURCE_MAC, mac_bytes(mac), "drop")
    if addresses:
        code.load_vlan_tag_present()
        code.go_unless(0, "drop")
    code.load(HALF, _TYPE)
    code.go_if(ARP, "arp")
    if addresses:
        code.go_if(IPV4, "ipv4")
        code.go_if(IPV6, "ipv6")
        code.go("drop")
    else:
        code.go("pass")
    known = [ip_bytes(address) for address in addresses]
    v4 = tuple(one for one in known if len(one) == 4)
    v6 = (ip_bytes(link_local(mac)), *(one for one in known if len(one) == 16))
    code.place("arp")
    code.need_bytes(_ARP_SENDER_MAC, mac_bytes(mac), "drop")
    if addresses:
        code.need_one_of(_ARP_SENDER_IP, (*v4, bytes(4)), "drop")  # 0.0.0.0: asks whether an address is free
        code.go("pass")
        code.place("ipv4")
        code.need_one_of(_IPV4_SOURCE, v4, "drop")
        code.go("pass")
        _ipv6(code, v6)
    code.place("pass")
    code.give(_PASS)
    code.place("drop")
    code.give(_DROP)
    return code.assemble()


def _ipv6(code: Program, own: tuple[bytes, ...]) -> None:
    """Own sources; of neighbour discovery only what says the truth, behind whatever header it stands."""
    code.place("ipv6")
    code.need_one_of(_IPV6_SOURCE, own, "from nobody")
    code.load(BYTE, _IPV6_NEXT)
    code.go_if(_ICMPV6, "icmp")
    code.go_if(_HOP_BY_HOP, "hop by hop")
    code.go_if(_FRAGMENT, "fragment")
    code.go_if(_ROUTING, "drop")
    code.go_if(_DESTINATION_OPTIONS, "drop")
    code.go("pass")

    code.place("icmp")
    code.load(BYTE, _IPV6_BODY)
    code.go_if(_ROUTER_ADVERTISEMENT, "drop")
    code.go_if(_REDIRECT, "drop")
    code.go_unless(_NEIGHBOUR, "pass")
    code.need_one_of(_IPV6_BODY + 8, own, "drop")
    code.go("pass")

    # Who has no address yet asks whether its own is free, and joins the groups in which it will be asked.
    code.place("from nobody")
    code.need_bytes(_IPV6_SOURCE, _UNSPECIFIED, "drop")
    code.load(BYTE, _IPV6_NEXT)
    code.go_if(_HOP_BY_HOP, "hop by hop")
    code.go_unless(_ICMPV6, "drop")
    code.load(BYTE, _IPV6_BODY)
    code.go_if(133, "pass")
    code.go_unless(_SOLICITATION, "drop")
    code.need_one_of(_IPV6_BODY + 8, own, "drop")
    code.go("pass")

    # Reports of multicast listeners come with a header of eight bytes before them.
    code.place("hop by hop")
    code.need_bytes(_IPV6_BODY, bytes((_ICMPV6, 0)), "drop")
    code.load(BYTE, _IPV6_BODY + 8)
    for kind in _MLD:
        code.go_if(kind, "pass")
    code.go("drop")

    # Large datagrams; nobody sends neighbour discovery in pieces, and nobody has to take it.
    code.place("fragment")
    code.load(BYTE, _IPV6_BODY)
    for kind in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION_OPTIONS):
        code.go_if(kind, "drop")
    code.go_unless(_ICMPV6, "pass")
    code.load(HALF, _IPV6_BODY + 2)
    code.go_if_any_bit(0xFFF8, "pass")  # not the first piece
    code.load(BYTE, _IPV6_BODY + 8)
    for kind in range(133, 138):
        code.go_if(kind, "drop")
    code.go("pass")


def _attach(ifindex: int, where: int, code: bytes) -> None:
    """Raises OSError; called twice it replaces what is there."""
    head = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT_PARENT, 0)
    with contextlib.suppress(FileExistsError):
        rtnetlink.change(
            rtnetlink.NEWQDISC,
            rtnetlink.CREATE | rtnetlink.EXCLUSIVE,
            head + rtnetlink.attribute(_KIND, b"clsact\0"),
        )
    options = (
        rtnetlink.attribute(_OPS_LENGTH, struct.pack("=H", len(code) // 8))
        + rtnetlink.attribute(_OPS, code)
        + rtnetlink.attribute(_NAME, b"chv-guard\0")
        + rtnetlink.attribute(_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    )
    info = _PRIORITY << 16 | struct.unpack("=H", struct.pack("!H", _ALL_PROTOCOLS))[0]
    body = _TCMSG.pack(0, ifindex, 1, where, info)
    body += rtnetlink.attribute(_KIND, b"bpf\0") + rtnetlink.attribute(_OPTIONS, options)
    rtnetlink.change(rtnetlink.NEWFILTER, rtnetlink.CREATE | rtnetlink.REPLACE, body)
