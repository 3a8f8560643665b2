"""`chv disks` as at a terminal."""

import json
import os
import subprocess

from tests.integration.nodes import Node, told
from vmlib.postflight import persistent_disks


def chv(node: Node, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [str(node.chv), "disks", "--config", str(node.agent_file), *words]
    env = os.environ | node.environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


async def test_a_disk_of_a_job_stays_after_it_and_goes_when_somebody_removes_it(fake_node: Node) -> None:
    node = fake_node
    config = 'disk {\n name = "data"\n size = "8MiB"\n persistent = true\n }'
    async with node.host(node.job("poweroff", name="db", config=config)) as host:
        await host.run()
        assert any(
            text.startswith("disk created: persistent disk 'data' is new and empty, 8 MiB") for text in told(host)
        )
    (disk,) = persistent_disks(node.layout).list()
    listed = chv(node)
    assert listed.returncode == 0
    head, row = listed.stdout.splitlines()
    assert head.split() == ["ID", "NAMESPACE", "JOB", "GROUP", "INDEX", "NAME", "SIZE", "USED", "HELD", "BY"]
    assert row.split() == [disk.id, "default", "db", "g", "0", "data", "8", "MiB", "0", "MiB"]
    (facts,) = json.loads(chv(node, "--json").stdout)
    assert (facts["id"], facts["size_bytes"], facts["holder"]) == (disk.id, 8 << 20, None)
    async with node.host(node.job("poweroff", name="db", config=config)) as host:
        await host.run()
        assert not any("disk created" in text for text in told(host))
    assert chv(node, "remove", "zz").returncode == 2
    assert chv(node, "remove", disk.id[:6]).returncode == 0
    assert list(persistent_disks(node.layout).list()) == []
