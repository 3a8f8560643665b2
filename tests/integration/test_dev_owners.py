"""Two owners in one data directory: a Nomad agent's plugin and `chv dev`, each with its own machines only."""

import asyncio
import json
import shutil
from pathlib import Path

from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from tests.integration.nodes import NOTHING, READY, Dev, Node, kinds, until_says, until_ticks_on
from vmlib import process
from vmlib.record import load_mark


def owners(node: Node) -> dict[str, str]:
    marks = [load_mark(path) for path in node.layout.machines.glob("*/*/mark.json")]
    return {mark.name: mark.owner for mark in marks if mark is not None}


def wait(dev: Dev) -> int:
    with dev:
        return dev.wait()


async def test_chv_dev_beside_an_agent_starts_runs_and_sweeps_only_its_own(node: Node) -> None:
    async with node.host(node.job("tick", type="service")) as agent:
        life = asyncio.create_task(agent.run())
        await until_says(agent, READY)
        vmm, keeper = node.vmm, node.keeper
        dev = node.dev(node.job("say=mine exit=3", name="other"))
        assert await asyncio.to_thread(wait, dev) == 3
        assert "say mine" in dev.out
        # The agent's task did not notice.
        await until_ticks_on(agent)
        assert (node.vmm, node.keeper) == (vmm, keeper)
        assert owners(node) == {f"{agent.alloc.id}/vm": "nomad"}
        agent.kill()
        assert await life == ExitResult()
        assert kinds(agent) == ["machine started", "cores", "power button"]


async def test_a_machine_of_the_agents_that_has_lost_its_alloc_is_not_for_chv_dev_to_sweep(fake_node: Node) -> None:
    fake_node.block = 'gc {\n orphan_grace = "0s"\n }'
    fake_node.write_agent_file()
    async with fake_node.host(fake_node.job("poweroff")) as agent:
        await agent.run()
        name = f"{agent.alloc.id}/vm"
        shutil.rmtree(agent.alloc.paths.root)
        assert await asyncio.to_thread(wait, fake_node.dev(fake_node.job("poweroff", name="other"))) == 0
        assert owners(fake_node) == {name: "nomad"}


def test_what_a_killed_chv_dev_left_is_swept_by_the_next_one(fake_node: Node) -> None:
    fake_node.block = 'gc {\n orphan_grace = "0s"\n }'
    fake_node.write_agent_file()
    killed = fake_node.dev(fake_node.job("tick", type="service"), "--alloc-dir", str(fake_node.allocs))
    with killed:
        killed.until_says(READY)
    assert list(owners(fake_node).values()) == ["dev"]
    # Its alloc's directory is all that says that somebody may come back for it.
    vmm = fake_node.vmm
    assert process.alive(vmm)
    for alloc in fake_node.allocs.iterdir():
        shutil.rmtree(alloc)
    assert wait(fake_node.dev(fake_node.job("sleep=1 poweroff", name="next"))) == 0
    assert not process.alive(vmm)
    assert owners(fake_node) == {}
    assert fake_node.processes() == NOTHING
    forget_temporary_files(fake_node)


def forget_temporary_files(node: Node) -> None:
    """Those of a process group that was killed whole."""
    for path in (node.base / "tmp").iterdir():
        shutil.rmtree(path)


async def test_two_hosts_at_once_do_not_touch_each_others_machines(fake_node: Node) -> None:
    devs = [fake_node.dev(fake_node.job(f"sleep={1 + n} exit={n}", name=f"dev{n}"), "--json") for n in range(3)]
    assert await asyncio.gather(*(asyncio.to_thread(wait, dev) for dev in devs)) == [0, 1, 2]
    for dev in devs:
        events = [json.loads(line) for line in dev.out.splitlines()]
        assert [one["type"] for one in events if one["kind"] == "event"].count("Terminated") == 1
    assert owners(fake_node) == {}
    assert fake_node.runs() == []


async def test_the_agent_that_comes_back_does_not_take_what_is_of_dev(fake_node: Node) -> None:
    """An agent's start sweeps; a machine of another owner, its alloc gone or not, goes on."""
    fake_node.block = 'gc {\n orphan_grace = "0s"\n }'
    fake_node.write_agent_file()
    async with fake_node.host(fake_node.job("tick", type="service"), owner="dev") as dev:
        life = asyncio.create_task(dev.run())
        await until_says(dev, READY)
        vmm = fake_node.vmm
        await agent_comes_and_goes(fake_node.host(fake_node.job("poweroff", name="agent")))
        assert process.alive(vmm)
        await until_ticks_on(dev)
        dev.kill()
        assert await life == ExitResult()


async def agent_comes_and_goes(host: DevHost) -> None:
    async with host:
        assert await host.run() == ExitResult()


def test_the_data_directory_says_its_version(fake_node: Node) -> None:
    assert wait(fake_node.dev(fake_node.job("poweroff"))) == 0
    version: Path = fake_node.layout.version
    assert version.read_text() == "1\n"
    version.write_text("2\n")
    done = fake_node.command("dev", str(fake_node.job("poweroff")))
    assert done.returncode == 1
    assert "another version of chv" in done.stderr
    assert not list(fake_node.layout.machines.glob("*/*"))


def test_a_killed_chv_dev_takes_its_machine_and_its_plugin_along(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job("tick", type="service")) as dev:
        dev.until_says("tick 3")
        children = Path(f"/proc/{dev.process.pid}/task/{dev.process.pid}/children").read_text().split()
        here = [process.identify(int(pid)) for pid in children]
        plugins = [who for who in here if who is not None]
        assert plugins
        (vmm,) = fake_node.processes()["vmm"]
        dev.process.kill()
        dev.process.wait()
        assert all(process.wait_gone(who, 10.0) for who in plugins)
        assert fake_node.processes() == NOTHING
        assert not Path(f"/proc/{vmm}").exists()
    # What nobody is left to remove; the next `chv dev` sweeps the machine's directory once this one is gone.
    for directory in fake_node.base.glob("tmp/chv-dev-*"):
        shutil.rmtree(directory)
