"""What a user sees of links that are watched, by `chv dev` and real guests in network namespaces of the tests' own."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.guest import build
from tests.integration.http import get
from tests.integration.networks import Network, agent_file, network
from tests.integration.test_dev_networks import Dev, boot, dev, job
from vmlib.net import netlink

MAC = "52:54:00:00:00:0a"
STATIC = f"""
network_interface {{
  network = "lan"
  mac     = "{MAC}"
  address = ["192.0.2.20/24"]
}}
"""
BY_DHCP = 'network_interface {\n network = "lan"\n}\n'

NETWORKS = """
    network "lan" {
      mode      = "macvtap"
      parent    = "up0"
      filter    = true
      host_shim = "192.0.2.9/24"
    }
"""

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        yield made
        assert made.host.ours() == []


@pytest.fixture
def config(short_dir: Path, guest: build.Guest) -> Iterator[Path]:
    path = short_dir / "agent.hcl"
    path.write_text(agent_file(short_dir, guest.kernel.parent, NETWORKS))
    with leftovers.none_left(run_dir=short_dir / "run", data_dir=short_dir / "data"):
        yield path


def events(one: Dev, start: str) -> list[str]:
    return [line["message"] for line in one.lines if line["kind"] == "event" and line["message"].startswith(start)]


def read_event(one: Dev, start: str, timeout_s: float) -> str:
    """The first event that begins so; chv dev says something often enough for the deadline to count."""
    assert one.process.stdout is not None
    deadline = time.monotonic() + timeout_s
    while not (found := events(one, start)):
        assert time.monotonic() < deadline, one.lines
        one.lines.append(json.loads(one.process.stdout.readline()))
    return found[0]


def until(true: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def tool(net: Network, chv: Path, *words: str) -> Any:
    process = net.host.popen(str(chv), *words, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=60)
    return json.loads(said)


def test_a_parent_that_is_deleted_is_an_event_and_the_machine_stops_as_ever(
    net: Network, chv: Path, config: Path, guest: build.Guest, tmp_path: Path
) -> None:
    words = "ip=eth0:192.0.2.20/24 ping=192.0.2.1"
    with dev(net, chv, config, job(tmp_path, "lost", f"{boot(guest, words)}\n{STATIC}")) as one:
        one.read_until("ping 192.0.2.1 ok")  # it is honest, so the filter is not in its way
        assert read_event(one, "address", 5) == "address: 192.0.2.20 on lan"

        def delete() -> None:
            with netlink.connect() as kernel:
                kernel.delete(net.host.index("up0"))

        deleted = time.monotonic()
        net.host.do(delete)
        lost = read_event(one, "link lost", 5)
        assert time.monotonic() - deleted < 2.0
        assert "(lan) is gone" in lost
        one.process.send_signal(2)
        one.end()
        assert "power button" in one.console
        assert len(events(one, "link lost")) == 1
        assert events(one, "forced off") == []


@pytest.mark.needs("dnsmasq")
def test_a_host_and_its_guest_reach_each_other_at_an_address_that_was_learned(
    net: Network, chv: Path, config: Path, guest: build.Guest, tmp_path: Path, short_dir: Path
) -> None:
    net.serve_addresses(short_dir)
    words = "http=80 ping=192.0.2.9"
    with dev(net, chv, config, job(tmp_path, "learned", f"{boot(guest, words)}\n{BY_DHCP}")) as one:
        told = read_event(one, "address", 60)
        assert told.startswith("address: 192.0.2.1")
        address = told.split()[1].rstrip(",")
        if "ping 192.0.2.9 ok" not in one.console:  # it may have been read on the way to the event
            one.read_until("ping 192.0.2.9 ok")
        assert "hello from chv-guest" in get(net.host, address, 80)
        (machine,) = tool(net, chv, "ps", "--json", "--config", str(config))
        found = tool(net, chv, "inspect", machine["id"], "--json", "--config", str(config))
        assert found["addresses"][0] == address
        (nic,) = found["nics"]
        assert nic["network"] == "lan"
        assert nic["addresses"][0] == address
        assert "lost" not in nic
        assert min(nic[f"{way}_{what}"] for way in ("received", "sent") for what in ("bytes", "frames")) > 0
        checks = {line["check"]: line for line in tool(net, chv, "doctor", "--json", "--config", str(config))}
        assert checks["filter lan"]["verdict"] == "ok"
        assert checks["host_shim lan"]["text"].startswith("192.0.2.9/24 on chvs")
    until(lambda: net.host.ours() == [], "the shim goes with the embedded host")
