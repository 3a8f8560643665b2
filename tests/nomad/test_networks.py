"""Machines on every kind of network, on a real agent that has a network of its own: who reaches whom, from outside.

The jobs are started together and run through the file; the last test stops them.
"""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.guest import build
from tests.integration.networks import Network
from tests.nomad.agent import Agent
from tests.nomad.networks import UPLINK, agent_on, host_network, left_of_machines, page
from tests.nomad.test_jobs import NETWORKS, job_file
from tests.nomad.test_survival import plugin_pid, plugin_pids

pytestmark = pytest.mark.needs("cni", "dnsmasq")

READY = "chv test guest: ready"
HELLO = "hello from "
BOOT_S = 150.0  # for all of them at once, on a host that is busy


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with tempfile.TemporaryDirectory(prefix="cn-net-", dir="/tmp") as directory, host_network(Path(directory)) as net:
        yield net


@pytest.fixture(scope="module")
def agent(net: Network, guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    yield from agent_on(net, guest, plugin_dir)


@dataclass
class Jobs:
    """The jobs of this file by name."""

    agent: Agent
    started: set[str] = field(default_factory=set)

    def start(self, name: str) -> None:
        self.agent.run_job(job_file(name))
        self.started.add(name)

    def alloc(self, name: str) -> str:
        """Its alloc, once its guest is up."""
        alloc = self.agent.wait_alloc(name, "running", "failed")
        events = self.agent.task_events(alloc, name)
        assert self.agent.alloc(alloc)["ClientStatus"] == "running", events
        self.agent.wait_for(f"the guest of {name}", lambda: READY in self.logs(name), timeout_s=BOOT_S)
        return alloc

    def logs(self, name: str, task: str = "") -> str:
        alloc = self.agent.allocs(name)[0]["ID"]
        return self.agent.command("alloc", "logs", "-task", task or name, alloc, check=False).stdout

    def addresses(self, name: str) -> list[tuple[str, str]]:
        """What the guest has said of its interfaces, oldest first."""
        self.alloc(name)
        return re.findall(r"^address (\S+) (\S+)\r?$", self.logs(name), re.MULTILINE)

    def port(self, name: str) -> int:
        """The host's port that leads to the job's."""
        ports = self.agent.alloc(self.alloc(name))["AllocatedResources"]["Shared"]["Ports"]
        return next(int(one["Value"]) for one in ports if one["Label"] == "http")

    def nics(self, name: str) -> list[dict[str, Any]]:
        """The links of its machine as chv has noted them."""
        record = self.agent.paths.chv_data / "machines" / self.alloc(name) / name / "machine.json"
        nics: list[dict[str, Any]] = json.loads(record.read_text())["nics"]
        return nics

    def wait_check(self, name: str) -> None:
        """Until Nomad's own check of the service has passed."""
        alloc = self.alloc(name)

        def passed() -> bool:
            checks = self.agent.get(f"/v1/client/allocation/{alloc}/checks")
            return bool(checks) and all(one["Status"] == "success" for one in checks.values())

        self.agent.wait_for(f"the check of {name}", passed, timeout_s=30)

    def stop(self, name: str) -> None:
        """Until it has ended: an agent that is stopped before that leaves the alloc's namespace behind."""
        self.agent.command("job", "stop", "-detach", name)
        self.agent.wait_alloc(name, "complete", "failed")


@pytest.fixture(scope="module")
def jobs(agent: Agent) -> Jobs:
    jobs = Jobs(agent)
    for name in sorted(NETWORKS):
        jobs.start(name)
    return jobs


# ---------------------------------------------------------------------------------------------------------------------
# each kind by its job


def test_the_scheduler_knows_the_networks_that_are_there(agent: Agent) -> None:
    (listed,) = agent.get("/v1/nodes")
    name = "driver.chv.network."

    def attributes() -> dict[str, str]:
        node = agent.get(f"/v1/node/{listed['ID']}")
        return {key.removeprefix(name): value for key, value in node["Attributes"].items() if key.startswith(name)}

    agent.wait_for("the second look at the node", lambda: "lan" in attributes())
    found = attributes()
    assert found["user0.router"] in ("passt", "qemu")
    assert {key: value for key, value in found.items() if not key.startswith("user0")} == {
        "lan": "macvtap",
        "lan.parent": "up0",
        "lan.state": "up",
        "br": "bridge",
        "br.parent": "br0",
        "br.state": "up",
    }
    health = agent.get(f"/v1/node/{listed['ID']}")["Drivers"]["chv"]["HealthDescription"]
    assert "network spare: " in health


def test_a_machine_on_macvtap_has_an_address_of_the_lan_and_is_reached_from_there(jobs: Jobs, net: Network) -> None:
    ((nic, address),) = jobs.addresses("macvtap")
    assert nic == "eth0"
    assert address.startswith("192.0.2.1")
    assert HELLO in page(net.lan, address, 80)
    # chv has heard the guest use it.
    alloc = jobs.alloc("macvtap")
    jobs.agent.wait_for(
        "the address to be told",
        lambda: any(
            message.startswith("address: ") and address in message
            for kind, message in jobs.agent.task_events(alloc, "macvtap")
            if kind == "Driver"
        ),
        timeout_s=15,
    )


def test_a_machine_on_a_bridge_has_the_address_of_its_job_for_the_lan_and_the_host(jobs: Jobs, net: Network) -> None:
    assert jobs.addresses("bridge") == [("eth0", "198.51.100.20")]
    assert HELLO in page(net.lan, "198.51.100.20", 80)
    assert HELLO in page(net.host, "198.51.100.20", 80)


def test_a_machine_with_two_interfaces_is_reached_on_both(jobs: Jobs, net: Network) -> None:
    (_, first), second = jobs.addresses("two-interfaces")
    assert first.startswith("192.0.2.1")
    assert second == ("eth1", "198.51.100.22")
    for address in (first, "198.51.100.22"):
        assert HELLO in page(net.lan, address, 80)


def test_a_guest_that_takes_over_its_group_s_network_has_its_ports_and_passes_its_check(
    jobs: Jobs, net: Network
) -> None:
    ((_, address),) = jobs.addresses("group-network")
    assert address.startswith("172.26.6")
    assert HELLO in page(net.lan, UPLINK, jobs.port("group-network"))
    jobs.wait_check("group-network")


def test_a_guest_beside_another_task_serves_a_port_of_the_group(jobs: Jobs, net: Network) -> None:
    assert HELLO in page(net.lan, UPLINK, jobs.port("user-sidecar"))
    jobs.agent.wait_for("the neighbour", lambda: HELLO in jobs.logs("user-sidecar", "neighbour"))


def test_a_service_of_address_mode_driver_is_found_at_the_guest(jobs: Jobs, net: Network) -> None:
    jobs.alloc("service-address")
    (service,) = jobs.agent.get("/v1/service/service-address")
    assert (service["Address"], service["Port"]) == ("198.51.100.21", 80)
    assert "198.51.100.21:80" in jobs.agent.command("service", "info", "service-address").stdout
    assert HELLO in page(net.lan, "198.51.100.21", 80)


def test_with_a_user_network_beside_it_such_a_service_passes_nomad_s_check(jobs: Jobs, net: Network) -> None:
    """As the page says: the service is at the guest's address, its check at the port of the host."""
    text = job_file("service-address").read_text().replace("service-address", "checked")
    text = text.replace("198.51.100.21", "198.51.100.23").replace('= "80"', '= "http"')
    text = text.replace('    task "checked" {', PORT + '    task "checked" {')
    text = text.replace('address_mode = "driver"\n', 'address_mode = "driver"\n' + CHECK)
    text = text.replace("        network_interface {\n", USER + "        network_interface {\n")
    path = jobs.agent.paths.base / "checked.nomad.hcl"
    path.write_text(text)
    jobs.agent.run_job(path)
    jobs.wait_check("checked")
    (service,) = jobs.agent.get("/v1/service/checked")
    assert (service["Address"], service["Port"]) == ("198.51.100.23", 80)
    jobs.stop("checked")


PORT = """    network {
      port "http" {
        to = 80
      }
    }
"""
CHECK = """
        check {
          type     = "http"
          path     = "/"
          interval = "2s"
          timeout  = "2s"
        }
"""
USER = """        network_interface {
          network = "user0"
        }
"""


# ---------------------------------------------------------------------------------------------------------------------
# what happens to them


def test_a_restarted_machine_has_its_mac_and_its_address_again(jobs: Jobs, net: Network) -> None:
    before, macs = jobs.addresses("two-interfaces"), [nic["mac"] for nic in jobs.nics("two-interfaces")]
    assert len(macs) == 2
    jobs.agent.command("alloc", "restart", jobs.alloc("two-interfaces"))
    jobs.agent.wait_for("the guest again", lambda: jobs.logs("two-interfaces").count(READY) == 2, timeout_s=BOOT_S)
    assert jobs.addresses("two-interfaces") == [*before, *before]
    assert [nic["mac"] for nic in jobs.nics("two-interfaces")] == macs


def everybody_answers(jobs: Jobs, net: Network) -> None:
    ((_, lan_address),) = jobs.addresses("macvtap")
    assert HELLO in page(net.lan, lan_address, 80)
    assert HELLO in page(net.lan, "198.51.100.20", 80)
    for name in ("group-network", "user-sidecar"):
        assert HELLO in page(net.lan, UPLINK, jobs.port(name))


@pytest.mark.parametrize("what", ["plugin killed", "agent restarted"])
def test_links_and_what_goes_over_them_outlive(jobs: Jobs, net: Network, what: str) -> None:
    everybody_answers(jobs, net)
    links = {name: net.host.index(name) for name in net.host.ours()}
    if what == "plugin killed":
        killed = plugin_pid(jobs.agent)
        os.kill(killed, signal.SIGKILL)
        jobs.agent.wait_for("another plugin", lambda: plugin_pids(jobs.agent) not in ([], [killed]))
    else:
        jobs.agent.stop()
        jobs.agent.start()
    everybody_answers(jobs, net)
    assert {name: net.host.index(name) for name in net.host.ours()} == links
    for name in NETWORKS:
        kinds = [kind for kind, _ in jobs.agent.task_events(jobs.alloc(name), name)]
        assert "Terminated" not in kinds or name == "two-interfaces"


SPARE = """
job "spare" {
  group "spare" {
    task "spare" {
      driver = "chv"
      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check http=80"
        placement = "shared"
        network_interface {
          network = "spare"
          address = ["203.0.113.20/24"]
        }
      }
      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
"""


def add_spare_parent(net: Network) -> None:
    """A parent that nothing else needs."""
    net.host.add_veth("up2", net.lan, "lan2")
    net.host.bring_up("up2")
    net.lan.bring_up("lan2", "203.0.113.1/24")


def lose_spare_parent(agent: Agent, net: Network, alloc: str) -> None:
    """Delete it, and see that an event says so in time."""

    def lost() -> list[str]:
        return [message for _, message in agent.task_events(alloc, "spare") if message.startswith("link lost")]

    before, index = len(lost()), net.host.index("up2")
    deleted = time.monotonic()
    net.host.ask(lambda ipr: ipr.link("del", index=index))
    agent.wait_for("the event", lambda: len(lost()) > before, timeout_s=10)
    assert time.monotonic() - deleted < 2
    assert "up2" in lost()[-1] or "spare" in lost()[-1]


def test_a_parent_deleted_under_a_machine_is_an_event_within_two_seconds_a_restart_mends_it_and_the_machine_stops(
    agent: Agent, net: Network
) -> None:
    add_spare_parent(net)
    path = agent.paths.base / "spare.nomad.hcl"
    path.write_text(SPARE)
    alloc = agent.wait_alloc(agent.run_job(path), "running", "failed")
    agent.wait_for("the guest", lambda: READY in agent.logs(alloc), timeout_s=BOOT_S)
    assert HELLO in page(net.lan, "203.0.113.20", 80)
    lose_spare_parent(agent, net, alloc)
    add_spare_parent(net)
    agent.command("alloc", "restart", alloc)
    agent.wait_for("the guest again", lambda: agent.logs(alloc).count(READY) == 2, timeout_s=BOOT_S)
    assert HELLO in page(net.lan, "203.0.113.20", 80)
    lose_spare_parent(agent, net, alloc)
    agent.command("job", "stop", "-detach", "spare")
    agent.wait_alloc("spare", "complete")
    events = agent.task_events(alloc, "spare")
    assert "Exit Code: 0" in [message for kind, message in events if kind == "Terminated"][-1]


CROWDED = """
job "crowded" {
  type = "batch"
  group "crowded" {
    restart {
      attempts = 0
    }
    network {
      mode = "bridge"
    }
    task "first" {
      driver = "raw_exec"
      lifecycle {
        hook    = "prestart"
        sidecar = true
      }
      config {
        command = "/bin/busybox"
        args    = ["sleep", "300"]
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
    task "crowded" {
      driver = "chv"
      config {
        kernel    = "${meta.chv_guest}/vmlinuz"
        initrd    = "${meta.chv_guest}/initrd.img"
        placement = "shared"
        network_interface {
          network = "alloc"
        }
      }
      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
"""


def test_the_group_s_network_is_not_taken_from_another_task_that_uses_it(agent: Agent) -> None:
    path = agent.paths.base / "crowded.nomad.hcl"
    path.write_text(CROWDED)
    alloc = agent.wait_alloc(agent.run_job(path), "failed", "complete")
    (message,) = [text for kind, text in agent.task_events(alloc, "crowded") if kind == "Driver Failure"]
    assert "network_interface[0].network = 'alloc': the guest would take the network from busybox" in message
    assert "expected a network of mode user" in message


def test_with_their_jobs_all_links_are_gone(jobs: Jobs, net: Network) -> None:
    for name in sorted(jobs.started):
        jobs.stop(name)
    jobs.agent.wait_for("the links to go", lambda: not left_of_machines(net), timeout_s=10)
    for name in sorted(jobs.started):
        alloc = jobs.agent.allocs(name)[0]["ID"]
        events = jobs.agent.task_events(alloc, name)
        assert any(kind == "Terminated" and "Exit Code: 0" in message for kind, message in events), name
