"""Jobs on every kind of network, on a real agent that has a network of its own: who reaches whom, seen from outside."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import build
from tests.integration.networks import Network
from tests.nomad.agent import Agent
from tests.nomad.networks import UPLINK, agent_on, host_network, page

pytestmark = pytest.mark.needs("cni", "dnsmasq")

NEIGHBOUR = """
job "neighbour" {
  group "g" {
    network {
      mode = "bridge"
      port "http" {
        to = 8080
      }
    }
    task "web" {
      driver = "raw_exec"
      config {
        command = "/bin/busybox"
        args    = ["sh", "-c", "echo hello from $(hostname) >local/index.html; exec busybox httpd -f -p 8080 -h local"]
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with tempfile.TemporaryDirectory(prefix="cn-net-", dir="/tmp") as directory, host_network(Path(directory)) as net:
        yield net


@pytest.fixture(scope="module")
def agent(net: Network, guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    yield from agent_on(net, guest, plugin_dir)


def mapped_port(agent: Agent, alloc: str, label: str) -> int:
    """The host's port of that label."""
    ports = agent.alloc(alloc)["AllocatedResources"]["Shared"]["Ports"]
    (port,) = [int(one["Value"]) for one in ports if one["Label"] == label]
    return port


def stop(agent: Agent, job: str) -> None:
    """Until it has ended: an agent that is stopped before that leaves the alloc's namespace behind."""
    agent.command("job", "stop", "-detach", job)
    agent.wait_alloc(job, "complete", "failed")


def test_the_network_around_the_agent_is_one_that_nomads_own_drivers_use(agent: Agent, net: Network) -> None:
    """So that what fails below is ours."""
    path = agent.paths.base / "neighbour.nomad.hcl"
    path.write_text(NEIGHBOUR)
    job = agent.run_job(path)
    alloc = agent.wait_alloc(job, "running", "failed")
    assert "hello from" in page(net.lan, UPLINK, mapped_port(agent, alloc, "http"))
    stop(agent, job)
