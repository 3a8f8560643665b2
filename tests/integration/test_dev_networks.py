"""Jobs on the operator's networks by `chv dev`, inside network namespaces of the tests' own."""

import contextlib
import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.devhost.client import RpcError
from driver.namespaces import processes_in
from tests import leftovers
from tests.guest import build
from tests.integration.networks import Network, agent_file, network
from tests.integration.nodes import Node
from vmlib.disk.seed import seed_files
from vmlib.spec import BridgeLink, MacvtapLink, NicSpec, SeedSpec

MAC, MAC_2 = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
RESOURCES = "resources {\n cpu = 100\n memory = 128\n }"
STATIC = f"""
network_interface {{
  network = "lan"
  mac     = "{MAC}"
  address = ["192.0.2.20/24", "2001:db8::20/64"]
  gateway = "192.0.2.1 2001:db8::1"
  dns     = ["192.0.2.53"]
}}
"""
TWO_INTERFACES = f"""{STATIC}
network_interface {{
  network = "dmz"
  mac     = "{MAC_2}"
}}
"""


NETWORKS = """
    network "lan" {
      mode   = "macvtap"
      parent = "up0"
    }
    network "dmz" {
      mode   = "bridge"
      bridge = "br0"
    }
    network "gone" {
      mode   = "macvtap"
      parent = "up9"
    }
"""


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as made:
        made.host.add_bridge("br0")
        yield made
        assert made.host.ours() == []


@pytest.fixture
def config(short_dir: Path, guest: build.Guest) -> Iterator[Path]:
    path = short_dir / "agent.hcl"
    path.write_text(agent_file(short_dir, guest.kernel.parent, NETWORKS))
    with leftovers.none_left(run_dir=short_dir / "run", data_dir=short_dir / "data"):
        yield path


def job(directory: Path, name: str, config: str, resources: str = RESOURCES) -> Path:
    path = directory / f"{name}.nomad.hcl"
    path.write_text(f"""
job "{name}" {{
  type = "batch"
  group "g" {{
    restart {{
      attempts = 0
    }}
    task "vm" {{
      driver       = "chv"
      kill_timeout = "30s"
      config {{
        placement = "shared"
        {config}
      }}
      {resources}
    }}
  }}
}}
""")
    return path


def boot(guest: build.Guest, words: str) -> str:
    return f'kernel = "{guest.kernel}"\n initrd = "{guest.initrd}"\n cmdline = "{build.CMDLINE} {words}"'


class Dev:
    """One run of `chv dev` in a namespace."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    @property
    def console(self) -> str:
        return "".join(line["text"] for line in self.lines if line["kind"] == "output" and line["stream"] == "stdout")

    def read_until(self, text: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if text in self.console:
                return
            assert time.monotonic() < deadline, self.console
        pytest.fail(f"{text!r} did not come: {self.lines}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += [json.loads(line) for line in self.process.stdout]
        return self.process.wait(60)


@contextlib.contextmanager
def dev(net: Network, chv: Path, config: Path, path: Path) -> Iterator[Dev]:
    process = net.host.popen(
        str(chv), "dev", "--json", "--config", str(config), str(path), stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield Dev(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        process.kill()
        process.wait()


@pytest.mark.needs("qemu")
def test_a_job_with_two_interfaces_has_its_links_and_its_seed(
    net: Network, chv: Path, config: Path, guest: build.Guest, tmp_path: Path
) -> None:
    words = "ip=eth0:192.0.2.20/24 ping=192.0.2.1"
    with dev(net, chv, config, job(tmp_path, "two", f"{boot(guest, words)}\n{TWO_INTERFACES}")) as one:
        one.read_until("ping 192.0.2.1 ok")
        assert len(net.host.ours()) == 2
        # The guest was given what the job says, and asks for the rest.
        nics = [
            NicSpec(
                network="lan",
                link=MacvtapLink(parent="up0"),
                mac=MAC,
                addresses=("192.0.2.20/24", "2001:db8::20/64"),
                gateways=("192.0.2.1", "2001:db8::1"),
                dns=("192.0.2.53",),
            ),
            NicSpec(network="dmz", link=BridgeLink(bridge="br0"), mac=MAC_2),
        ]
        expected = seed_files(SeedSpec(instance_id="i", hostname="h"), nics)["network-config"]
        assert f"seed file network-config {hashlib.sha256(expected).hexdigest()}" in one.console

        # Another machine of this node cannot have that MAC meanwhile, and may later.
        other = f'{boot(guest, "")}\n network_interface {{\n network = "dmz"\n mac = "{MAC_2}"\n }}'
        with dev(net, chv, config, job(tmp_path, "other", other)) as two:
            assert two.end() != 0
            words_ = json.dumps(two.lines)
            assert f"mac = '{MAC_2}': machine " in words_
            assert "has it on network 'dmz' of this node" in words_
        assert len(net.host.ours()) == 2


@pytest.mark.needs("qemu")
def test_a_network_whose_parent_is_missing_fails_the_start_and_is_in_doctors_report(
    net: Network, chv: Path, config: Path, guest: build.Guest, tmp_path: Path
) -> None:
    with dev(
        net, chv, config, job(tmp_path, "gone", f'{boot(guest, "")}\n network_interface {{\n network = "gone"\n }}')
    ) as one:
        assert one.end() != 0
        assert "up9" in json.dumps(one.lines)
    doctor = net.host.popen(str(chv), "doctor", "--json", "--config", str(config), stdout=subprocess.PIPE)
    report, _ = doctor.communicate(timeout=60)
    found = {line["check"]: line for line in json.loads(report) if line["check"].startswith("network ")}
    assert [(name, line["verdict"], line["text"]) for name, line in sorted(found.items())] == [
        ("network dmz", "ok", "bridge on br0"),
        ("network gone", "problem", "macvtap on up9: this host has no interface 'up9'"),
        ("network lan", "ok", "macvtap on up0, mode bridge; this host and its guests do not reach each other"),
    ]


async def test_a_guest_does_not_take_the_network_of_a_task_that_runs_in_it(fake_node: Node, net: Network) -> None:
    with net.host.popen("sleep", "60") as neighbour:
        try:
            assert processes_in(str(net.host.path)) == (f"sleep (pid {neighbour.pid})",)
            assert processes_in("/proc/self/ns/net") == ()
            assert processes_in("/run/netns/none") == ()
            async with fake_node.host(fake_node.job()) as host:
                client = await host.client()
                task = host.alloc.task_config(host.alloc.new_task_id(), host.encode_config())
                task.network_isolation_spec.path = str(net.host.path)
                with pytest.raises(RpcError, match=rf"take the network from sleep \(pid {neighbour.pid}\)") as refused:
                    await client.start_task(task)
                assert not refused.value.recoverable
        finally:
            neighbour.kill()


async def test_nomad_is_told_the_routers_address_where_it_listens_on_the_guests_port(node: Node) -> None:
    group = 'network {\n port "api" {\n static = 28080\n to = 28080\n }\n }'
    config = 'network_interface {\n network = "user0"\n }'
    async with node.host(node.job(group=group, config=config)) as host:
        client = await host.client()
        task = host.alloc.task_config(host.alloc.new_task_id(), host.encode_config())
        first = await client.start_task(task)
        again = await client.start_task(task)
        for answer in (first, again):
            assert answer.network_override.addr == "127.0.0.1"
            assert dict(answer.network_override.port_map) == {"api": 28080}
            assert not answer.network_override.auto_advertise
        attributes = (await client.inspect_task(task.id)).driver.attributes
        assert re.fullmatch("user0 ([0-9a-f]{2}:){5}[0-9a-f]{2}", attributes["nic0"])
        await client.stop_task(task.id, timeout_s=0, signal="SIGKILL")
        await client.destroy_task(task.id, force=True)
