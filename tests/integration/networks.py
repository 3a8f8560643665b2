"""Network namespaces for tests: without names, entered by threads, gone with their last descriptor."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute

from tests.integration.machines import Host, host_for
from vmlib.net.netns import in_netns

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


class Namespace:
    """A network namespace of its own. Whatever is called by `do` sees it as its own, and so do processes it starts."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                made.append(OSError(ctypes.get_errno(), "unshare"))
            else:
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        self.fd = made[0]
        self.ask(lambda ipr: ipr.link("set", index=1, state="up"))

    @property
    def path(self) -> Path:
        """Good for other processes too, as long as this one lives."""
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def do(self, func: Callable[[], _T]) -> _T:
        return in_netns(self.path, func)

    def ask(self, func: Callable[[Any], _T]) -> _T:
        """Talk to the kernel about this namespace. All of it happens in there: the socket opens at its first use."""

        def talk() -> _T:
            with IPRoute() as ipr:
                return func(ipr)

        return self.do(talk)

    def close(self) -> None:
        os.close(self.fd)

    # -- what there is -------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return self.ask(lambda ipr: sorted(link.get_attr("IFLA_IFNAME") for link in ipr.get_links()))

    def index(self, name: str) -> int:
        return self.ask(lambda ipr: int(ipr.link_lookup(ifname=name)[0]))

    def link(self, name: str) -> Any:
        return self.ask(lambda ipr: next(iter(ipr.link("get", ifname=name))))

    def ours(self) -> list[str]:
        return [name for name in self.names() if name.startswith("chv")]

    # -- what can be made ----------------------------------------------------------------------------------------

    def add_bridge(self, name: str, *addresses: str) -> int:
        self.ask(lambda ipr: ipr.link("add", ifname=name, kind="bridge"))
        return self.bring_up(name, *addresses)

    def add_veth(self, name: str, other: "Namespace", other_name: str) -> None:
        """A cable between two namespaces; both ends are down."""
        peer = {"ifname": other_name, "net_ns_fd": other.fd}
        self.ask(lambda ipr: ipr.link("add", ifname=name, kind="veth", peer=peer))

    def bring_up(self, name: str, *addresses: str) -> int:
        def ask(ipr: Any) -> int:
            (index,) = ipr.link_lookup(ifname=name)
            for address in addresses:
                ip, _, length = address.partition("/")
                ipr.addr("add", index=index, address=ip, prefixlen=int(length))
            ipr.link("set", index=index, state="up")
            return int(index)

        return self.ask(ask)

    def join(self, name: str, bridge: str) -> None:
        index, master = self.index(name), self.index(bridge)
        self.ask(lambda ipr: ipr.link("set", index=index, master=master))

    def popen(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        return self.do(lambda: subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, **options))


@dataclass
class Network:
    """A host with an interface `up0`, and behind its cable another host, `lan` (192.0.2.1, 2001:db8::1)."""

    host: Namespace
    lan: Namespace
    processes: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def serve_addresses(self, directory: Path) -> None:
        """DHCP for IPv4 and router advertisements for IPv6 from `lan`."""
        self.processes.append(
            self.lan.popen(
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--port=0",
                "--interface=lan0", "--bind-interfaces", "--user=root", "--group=", "--no-ping",
                f"--pid-file={directory}/dnsmasq.pid", f"--dhcp-leasefile={directory}/leases",
                "--dhcp-range=192.0.2.100,192.0.2.150,255.255.255.0,1h",
                "--dhcp-range=2001:db8::,ra-only", "--enable-ra", "--ra-param=lan0,4",
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(5)
        self.host.close()
        self.lan.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    net = Network(Namespace(), Namespace())
    try:
        net.host.add_veth("up0", net.lan, "lan0")
        net.host.bring_up("up0")
        net.lan.bring_up("lan0", "192.0.2.1/24", "2001:db8::1/64")
        yield net
    finally:
        net.close()


@contextlib.contextmanager
def machines_on(net: Network, directory: Path, guest: Path, hypervisor: str) -> Iterator[Host]:
    """A host whose machines have their links in the namespace of the net's host; none is left at the end."""
    with host_for(directory, guest, hypervisor) as one:
        yield one

        def remove_all() -> None:
            for mark in one.machines.marks():
                one.machines.remove(mark.name)

        net.host.do(remove_all)
    assert net.host.ours() == []


def agent_file(directory: Path, images: Path, networks: str) -> str:
    """For `chv dev`: machines in `directory`, each with a uid of its own, and these network blocks."""
    return f"""
plugin "chv" {{
  config {{
    data_dir    = "{directory}/data"
    run_dir     = "{directory}/run"
    image_paths = ["{images}"]
    vm_uids     = "220000-220099"
{networks}
  }}
}}
"""
