"""How a task ends, and what the restart policy makes of it: batch and service jobs on the embedded host."""

import asyncio
import re
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from tests.integration.nodes import Node, kinds, shown, until

PANIC = "Kernel panic - not syncing: sysrq triggered crash"


def types(host: DevHost) -> list[str]:
    return [event.type for event in host.events if event.type != "Driver"][2:]  # after Received and Task Setup


def in_mode_delay(path: Path, *, interval_s: int) -> Path:
    path.write_text(path.read_text().replace('mode     = "fail"', f'mode     = "delay"\n interval = "{interval_s}s"'))
    return path


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ("poweroff", ExitResult()),
        ("exit=0", ExitResult()),
        ("exit=7", ExitResult(exit_code=7)),
        ("exit=255", ExitResult(exit_code=255)),
        ("panic", ExitResult(exit_code=1, message=f"guest panic: {PANIC}")),
    ],
)
async def test_a_batch_job_ends_as_its_real_guest_says(node: Node, words: str, result: ExitResult) -> None:
    async with node.host(node.job(words)) as host:
        assert await host.run() == result
        assert types(host) == ["Started", "Terminated", *([] if result.successful else ["Not Restarting"])]


async def test_a_restart_after_a_failure_has_the_same_disks_and_is_the_same_instance(node: Node) -> None:
    disk = 'disk {\n name = "data"\n serial = "data"\n size = "8MiB"\n }\n user_data = "#cloud-config\\n"'
    async with node.host(node.job("read=data write=data:kept exit=7", config=disk, attempts=1)) as host:
        assert await host.run() == ExitResult(exit_code=7)
        assert types(host) == ["Started", "Terminated", "Restarting", "Started", "Terminated", "Not Restarting"]
        lines = host.console().splitlines()
        assert [line for line in lines if line.startswith("read data")] == ["read data", "read data kept"]
        assert re.findall(r"^seed instance-id (\S+)", host.console(), re.MULTILINE) == [f"{host.alloc.id}-vm"] * 2


@pytest.mark.parametrize(("type_", "ends"), [("batch", ["Terminated"]), ("service", ["Terminated", "Restarting"])])
async def test_success_is_the_end_of_a_batch_job_and_not_of_a_service(
    fake_node: Node, type_: str, ends: list[str]
) -> None:
    async with fake_node.host(fake_node.job("exit=0", type=type_, attempts=1)) as host:
        assert await host.run() == ExitResult()
        assert types(host)[: 1 + len(ends)] == ["Started", *ends]


async def test_mode_delay_goes_on_in_the_next_interval(fake_node: Node) -> None:
    job = in_mode_delay(fake_node.job("exit=7", attempts=1), interval_s=12)
    async with fake_node.host(job) as host:
        life = asyncio.create_task(host.run())
        await until(lambda: types(host).count("Started") == 3, "a start in the next interval", host=host)
        at = [event.at for event in host.events if event.type == "Started"]
        assert at[2] - at[0] >= 11.0
        await until(lambda: types(host).count("Terminated") == 3, "its end", host=host)
        host.kill()
        assert await life == ExitResult(exit_code=7)
        assert any("Exceeded allowed attempts, applying a delay" in one for one in shown(host))


async def test_a_normal_start_leaves_room_for_what_comes_after(node: Node) -> None:
    """Nomad keeps ten events of a task, with four of its own."""
    config = """network_interface {
          network = "user0"
        }
        hostname = "web-1"
        disk {
          name       = "data"
          size       = "8MiB"
          persistent = true
        }"""
    async with node.host(node.job("exit=0", config=config)) as host:
        assert await host.run() == ExitResult()
        assert sorted(set(kinds(host)) - {"lint"}) == ["cores", "disk created", "machine started"]
        assert len(kinds(host)) <= 6
