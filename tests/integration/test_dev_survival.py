"""What a running machine survives: its plugin, its keeper, both, and the agent are killed; and what it does not."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from driver.devhost.client import RpcError
from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from tests.integration.nodes import (
    READY,
    Node,
    kill,
    kill_plugin,
    kinds,
    open_files,
    shown,
    ticks,
    told,
    until,
    until_says,
    until_ticks_on,
    until_told,
)
from vmlib import failpoint, process

GRACEFUL = ExitResult()


class Service:
    """A task that runs until it is stopped, and somebody who waits for it."""

    def __init__(self, node: Node, host: DevHost) -> None:
        self.node = node
        self.host = host
        self.life = asyncio.create_task(host.run(), name="life")

    async def ready(self) -> None:
        await until_says(self.host, READY)
        self.vmm = self.node.vmm
        self.keeper = self.node.keeper

    def unharmed(self) -> bool:
        return self.node.vmm == self.vmm and process.alive(self.vmm) and not self.life.done()

    async def stop(self) -> ExitResult:
        self.host.kill()
        return await self.life


@contextlib.asynccontextmanager
async def service(
    node: Node, words: str = "tick", *, attempts: int = 0, env: dict[str, str] | None = None
) -> AsyncIterator[Service]:
    """Its guest is up; a machine that still runs at the end is destroyed by the host."""
    async with node.host(node.job(words, type="service", attempts=attempts), env=env) as host:
        one = Service(node, host)
        try:
            await one.ready()
            # The guest says so, perhaps before the host has heard that the start went well.
            await until(lambda: host.handle is not None, "the answer to the start", host=host)
            yield one
        finally:
            one.life.cancel()
            await asyncio.gather(one.life, return_exceptions=True)


def failing_at(node: Node, place: str) -> dict[str, str]:
    """The environment of a plugin that dies once at that place, from when the marker exists."""
    return {"CHV_FAILPOINT": f"{place}:{node.base / 'marker'}"}


# ---------------------------------------------------------------------------------------------------------------------
# the plugin


async def test_a_plugin_killed_five_times_in_a_row_costs_the_machine_nothing(node: Node) -> None:
    async with service(node) as one:
        for _ in range(5):
            await kill_plugin(one.host)
            await until_ticks_on(one.host)
            assert one.unharmed()
        assert node.keeper == one.keeper
        assert node.processes() == {"keeper": [one.keeper.pid], "vmm": [one.vmm.pid], "launcher": []}
        assert await one.stop() == GRACEFUL
        assert "power button" in one.host.console()
        assert kinds(one.host) == ["machine started", "cores", "power button"]


async def test_no_descendant_of_the_plugin_holds_its_stdout_or_stderr(node: Node) -> None:
    async with service(node) as one:
        plugin = await one.host.supervisor.running()
        theirs = set(open_files(plugin.pid))
        # What the plugin and this process, which plays the agent, have both ends of.
        pipes = {file for file in open_files(os.getpid()) if file.startswith("pipe:") and file in theirs}
        assert len(pipes) == 2
        for who in (one.keeper, one.vmm):
            assert not pipes.intersection(open_files(who.pid))


SAME_ID = [place for place in failpoint.PLACES if place.startswith("start.")] + ["child.keeper"]


@pytest.mark.parametrize("place", SAME_ID)
async def test_a_plugin_that_dies_in_start_task_fails_no_task_and_orphans_nothing(fake_node: Node, place: str) -> None:
    (fake_node.base / "marker").touch()
    async with service(fake_node, env=failing_at(fake_node, place)) as one:
        assert not (fake_node.base / "marker").exists()
        assert one.host.supervisor.launches == 4
        assert fake_node.processes() == {"keeper": [one.keeper.pid], "vmm": [one.vmm.pid], "launcher": []}
        await until_ticks_on(one.host)
        await until_told(one.host, "cores")
        assert kinds(one.host) == ["machine started", "cores"]
        assert await one.stop() == GRACEFUL
        assert shown(one.host)[2:] == [
            "Started: Task started by client",
            "Killing: Sent interrupt. Waiting 30s before force killing",
            "Terminated: Exit Code: 0",
            "Killed: Task successfully killed",
        ]


async def test_a_keeper_that_dies_as_it_starts_the_vmm_costs_one_start(fake_node: Node) -> None:
    (fake_node.base / "marker").touch()
    async with service(fake_node, attempts=1, env=failing_at(fake_node, "child.vmm")) as one:
        assert not (fake_node.base / "marker").exists()
        assert fake_node.processes() == {"keeper": [one.keeper.pid], "vmm": [one.vmm.pid], "launcher": []}
        failures = [line for line in shown(one.host) if line.startswith("Driver Failure")]
        assert len(failures) == 1
        assert "keeper" in failures[0]
        assert await one.stop() == GRACEFUL


async def test_a_plugin_that_dies_in_a_probe_comes_back_healthy(fake_node: Node) -> None:
    (fake_node.base / "marker").touch()
    async with service(fake_node, env=failing_at(fake_node, "child.tool")) as one:
        assert not (fake_node.base / "marker").exists()
        assert await one.stop() == GRACEFUL


async def test_a_plugin_that_dies_as_it_runs_a_tool_for_a_start_fails_no_task(fake_node: Node, guest: object) -> None:
    job = fake_node.job(boot=f'image = "{fake_node.guest}/disk.qcow2"')
    async with fake_node.host(job, env=failing_at(fake_node, "child.tool")) as host:
        (fake_node.base / "marker").touch()
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        assert not (fake_node.base / "marker").exists()
        assert host.supervisor.launches == 4
        host.kill()
        assert await life == GRACEFUL


# ---------------------------------------------------------------------------------------------------------------------
# the keeper


async def test_a_keeper_that_is_killed_is_replaced_within_two_seconds(node: Node) -> None:
    async with service(node) as one:
        clock = asyncio.get_running_loop()
        kill(one.keeper)
        killed = clock.time()
        await until(lambda: node.run.keeper.exists() and node.keeper != one.keeper, "another keeper")
        assert clock.time() - killed < 2.0
        await until_told(one.host, "keeper replaced")
        before = ticks(one.host)[-1]
        await until(lambda: ticks(one.host)[-1] > before + 3, "the console to go on")
        seen = ticks(one.host)
        # The bytes that the keeper had in its hands are gone with it, and no more.
        assert seen == sorted(set(seen))
        assert len(seen) >= seen[-1] - 2
        assert one.unharmed()
        assert await one.stop() == GRACEFUL
        assert "power button" in one.host.console()
        assert kinds(one.host) == ["machine started", "cores", "keeper replaced", "power button"]


@pytest.mark.parametrize("order", ["plugin first", "keeper first"])
async def test_plugin_and_keeper_killed_together_cost_the_machine_nothing(fake_node: Node, order: str) -> None:
    async with service(fake_node) as one:
        plugin = await one.host.supervisor.running()
        if order == "plugin first":
            plugin.kill()
            kill(one.keeper)
        else:
            kill(one.keeper)
            plugin.kill()
        await one.host.supervisor.running(other_than=plugin)
        await until_told(one.host, "keeper replaced")
        before = ticks(one.host)[-1]
        await until(lambda: ticks(one.host)[-1] > before + 3, "the console to go on")
        assert one.unharmed()
        assert len(fake_node.processes()["keeper"]) == 1
        assert await one.stop() == GRACEFUL
        assert kinds(one.host).count("keeper replaced") == 1


async def test_a_plugin_that_dies_as_it_starts_another_keeper_leaves_one_keeper(fake_node: Node) -> None:
    async with service(fake_node, env=failing_at(fake_node, "child.adopt")) as one:
        (fake_node.base / "marker").touch()
        plugin = await one.host.supervisor.running()
        kill(one.keeper)
        async with asyncio.timeout(20):
            await one.host.supervisor.running(other_than=plugin)
        await until_told(one.host, "keeper replaced")
        await until(lambda: fake_node.run.keeper.exists() and process.alive(fake_node.keeper), "another keeper")
        assert fake_node.processes()["keeper"] == [fake_node.keeper.pid]
        assert one.unharmed()
        assert await one.stop() == GRACEFUL
        assert kinds(one.host).count("keeper replaced") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("sleep=2 exit=7", 7, ""),
        ("sleep=2 poweroff", 0, ""),
        ("sleep=2 panic", 1, "guest panic: Kernel panic - not syncing: sysrq triggered crash"),
    ],
)
async def test_the_cause_of_the_end_is_right_after_a_keeper_was_replaced(
    fake_node: Node, words: str, code: int, message: str
) -> None:
    async with service(fake_node, words) as one:
        kill(one.keeper)
        await until_told(one.host, "keeper replaced")
        assert await one.life == ExitResult(exit_code=code, message=message)


# ---------------------------------------------------------------------------------------------------------------------
# the VMM


async def test_a_killed_vmm_fails_the_task_with_that_signal_and_the_restart_policy_applies(node: Node) -> None:
    async with service(node, attempts=1) as one:
        kill(one.vmm)
        await until_says(one.host, READY, count=2)
        assert node.vmm != one.vmm
        assert await one.stop() == GRACEFUL
        assert shown(one.host)[2:6] == [
            "Started: Task started by client",
            'Terminated: Exit Code: 137, Signal: 9, Exit Message: "the VMM was killed by SIGKILL"',
            "Restarting: Task restarting in 0s",
            "Started: Task started by client",
        ]


# ---------------------------------------------------------------------------------------------------------------------
# the agent


@pytest.mark.parametrize("crash", [True, False], ids=["killed", "stopped"])
async def test_an_agent_that_comes_back_finds_its_machine_without_a_config(fake_node: Node, crash: bool) -> None:
    async with service(fake_node) as one:
        one.life.cancel()
        await asyncio.gather(one.life, return_exceptions=True)
        await one.host.agent_down(crash=crash)
        assert process.alive(one.vmm)
        assert process.alive(one.keeper)
        await one.host.agent_up()
        await one.host.recover(with_config=False)
        await until_ticks_on(one.host)
        assert fake_node.vmm == one.vmm
        waiting = asyncio.create_task(one.host.wait())
        one.host.kill()
        assert await waiting == GRACEFUL
        await one.host.destroy()


@pytest.mark.parametrize(
    ("end", "result"),
    [
        ("exit", ExitResult(exit_code=7)),
        ("signal", ExitResult(exit_code=139, signal=11, message="the VMM was killed by SIGSEGV")),
        ("unseen", ExitResult(exit_code=1, message="the machine ended while nobody watched, cause unknown")),
    ],
)
async def test_an_end_that_nobody_watched_is_reported_afterwards(fake_node: Node, end: str, result: ExitResult) -> None:
    async with service(fake_node, "sleep=3 exit=7" if end == "exit" else "") as one:
        one.life.cancel()
        await asyncio.gather(one.life, return_exceptions=True)
        await one.host.agent_down(crash=True)
        if end == "unseen":
            kill(one.keeper)
            kill(one.vmm)
        elif end == "signal":
            assert process.send_signal(one.vmm, signal.SIGSEGV)
        assert await asyncio.to_thread(process.wait_gone, one.vmm, 20.0)
        await one.host.agent_up()
        await one.host.recover(with_config=False)
        assert await one.host.wait() == result
        await one.host.destroy()


@pytest.mark.parametrize("damage", ["handle", "record", "record gone"])
async def test_destroy_with_the_old_id_ends_the_machine_of_a_refused_recover(fake_node: Node, damage: str) -> None:
    async with service(fake_node) as one:
        one.life.cancel()
        await asyncio.gather(one.life, return_exceptions=True)
        await one.host.agent_down(crash=True)
        assert one.host.handle is not None
        (record,) = fake_node.layout.machines.glob("*/*/machine.json")
        match damage:
            case "handle":
                one.host.handle.driver_state = b"\x00garbage"
            case "record":
                record.write_text('{"version": 1, "id"')
            case _:
                record.unlink()
        await one.host.agent_up()
        with pytest.raises(RpcError, match="FailedPrecondition"):
            await one.host.recover()
        assert process.alive(one.vmm)
        await (await one.host.client()).destroy_task(one.host.task_id)
        assert not process.alive(one.vmm)
        assert not process.alive(one.keeper)
        # Nomad goes on with a new start of the same task.
        await one.host.start()
        await until_says(one.host, READY, count=2)
        assert fake_node.processes() == {"keeper": [fake_node.keeper.pid], "vmm": [fake_node.vmm.pid], "launcher": []}


async def test_a_new_start_ends_what_an_old_one_left_when_nobody_destroyed_it(fake_node: Node) -> None:
    async with service(fake_node) as one:
        one.life.cancel()
        await asyncio.gather(one.life, return_exceptions=True)
        await one.host.agent_down(crash=True)
        await one.host.agent_up()
        await one.host.start()
        await until_says(one.host, READY, count=2)
        assert not process.alive(one.vmm)
        assert fake_node.processes() == {"keeper": [fake_node.keeper.pid], "vmm": [fake_node.vmm.pid], "launcher": []}


def test_every_failpoint_is_tested_here() -> None:
    others = {"child.vmm", "child.helper", "child.tool", "child.far", "child.adopt", *failpoint.LINKS}
    assert set(failpoint.PLACES) == {*SAME_ID, *others}


async def test_the_plugin_is_killed_while_the_guest_shuts_down(fake_node: Node) -> None:
    async with service(fake_node, "slow-stop=3") as one:
        one.host.kill()
        await until_says(one.host, "power button")
        await kill_plugin(one.host)
        assert await one.life == GRACEFUL
        assert "forced off" not in kinds(one.host)
        assert told(one.host).count("power button pressed") == 1


async def test_a_vmm_that_ends_while_its_keeper_hangs_is_noticed(fake_node: Node) -> None:
    async with service(fake_node) as one:
        assert process.send_signal(fake_node.keeper, signal.SIGSTOP)
        assert process.send_signal(fake_node.vmm, signal.SIGKILL)
        async with asyncio.timeout(30):
            result = await one.life
        assert result.exit_code == 1
        assert "cause unknown" in result.message


async def test_a_stop_keeps_its_time_when_neither_guest_nor_keeper_reacts(fake_node: Node) -> None:
    async with service(fake_node, "ignore-acpi tick") as one:
        assert process.send_signal(fake_node.keeper, signal.SIGSTOP)
        client = await one.host.client()
        began = asyncio.get_running_loop().time()
        await client.stop_task(one.host.task_id, timeout_s=2)
        assert asyncio.get_running_loop().time() - began < 2 + 5
        result = (await client.wait_task(one.host.task_id)).result
        assert result.exit_code == 137
        assert "forced off: the guest did not power off within 2 s" in (await one.life).message


async def test_a_keeper_that_hears_late_of_a_stop_tells_of_its_force(fake_node: Node) -> None:
    async with service(fake_node, "ignore-acpi tick") as one:
        assert process.send_signal(fake_node.keeper, signal.SIGSTOP)
        client = await one.host.client()
        stop = asyncio.create_task(client.stop_task(one.host.task_id, timeout_s=5))
        await asyncio.sleep(1.5)  # it has not heard the first time
        assert process.send_signal(fake_node.keeper, signal.SIGCONT)
        await stop
        result = (await client.wait_task(one.host.task_id)).result
        assert result.exit_code == 137
        assert "forced off: the guest did not power off within 5 s" in (await one.life).message
