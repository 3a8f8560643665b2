"""An agent in a network of its own: a host with an uplink and a bridge, and another host at the other end of both."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests import setup as machine_setup
from tests.guest import build
from tests.integration.networks import Namespace, Network, network
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent

UPLINK = "192.0.2.2"  # the host on its uplink up0; ports of jobs are here
LAN = "192.0.2.1"  # the other host, there
BRIDGE = "198.51.100.2"  # the host on its bridge br0
LAN_BRIDGE = "198.51.100.1"  # the other host, there

# What the operator of this node offers. The last one has no parent until a test makes it.
NETWORKS = """
    network "lan" {
      mode   = "macvtap"
      parent = "up0"
    }
    network "br" {
      mode   = "bridge"
      bridge = "br0"
    }
    network "spare" {
      mode   = "macvtap"
      parent = "up2"
    }
"""


@contextlib.contextmanager
def host_network(directory: Path) -> Iterator[Network]:
    """The host's namespace and the other host's, who gives out addresses on the uplink."""
    with network() as net:
        net.host.bring_up("up0", f"{UPLINK}/24")
        net.host.add_veth("up1", net.lan, "lan1")
        net.host.add_bridge("br0", f"{BRIDGE}/24")
        net.host.join("up1", "br0")
        net.host.bring_up("up1")
        net.lan.bring_up("lan1", f"{LAN_BRIDGE}/24")
        net.serve_addresses(directory)
        yield net


def agent_on(net: Network, guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """For a fixture: an agent in the host's namespace, until all its machines and their links are gone."""
    agent = make_agent(guest, plugin_dir, dev=False)
    agent.space = net.host
    agent.interface = "up0"
    agent.networks_block = NETWORKS
    agent.client_block = f'cni_path = "{machine_setup.CNI_PLUGINS}"'
    agent.more_drivers = ("raw_exec",)
    yield from lifetime(agent)
    left = left_of_machines(net)
    assert not left, f"links left behind: {', '.join(left)}"


def left_of_machines(net: Network) -> list[str]:
    """Links of the host that machines and allocs have brought. Nomad keeps its bridge when the last alloc is gone."""
    return [name for name in net.host.names() if name not in ("lo", "up0", "up1", "br0", "nomad")]


def page(space: Namespace, address: str, port: int, *, timeout_s: float = 30.0) -> str:
    """What a web server answers to a host in that namespace; asked again until it answers."""

    def ask() -> str:
        with socket.create_connection((address, port), timeout=3) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.makefile("rb").read().decode(errors="replace")

    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if answer := space.do(ask):
                return answer
        assert time.monotonic() < deadline, f"{address}:{port} does not answer"
        time.sleep(0.2)
