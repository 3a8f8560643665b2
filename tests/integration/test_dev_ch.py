"""A job that pins Cloud Hypervisor, from its file to its end. The VMM is the fake one, which boots guests by QEMU."""

import asyncio
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from tests.guest import build
from tests.integration.nodes import READY, Node, told, until_says, until_told

FAKE = Path(__file__).parent.parent / "fakes" / "cloud-hypervisor"


@pytest.fixture
def ch_node(fake_node: Node) -> Node:
    """Its machines run as we do: the fake's Python may lie where no other user can walk to."""
    fake_node.hypervisor = "auto"
    fake_node.block = f'cloud_hypervisor {{\n binary = "{FAKE}"\n }}'
    fake_node.write_agent_file()
    return fake_node


def job(node: Node, words: str = "") -> Path:
    kernel = f'kernel = "{node.guest}/vmlinuz"\n initrd = "{node.guest}/initrd.img"'
    boot = f'{kernel}\n cmdline = "{build.CMDLINE} {words}"'
    path = node.job(boot=boot, config='hypervisor = "cloud-hypervisor"')
    # For the QEMU inside, of which the limit of a Cloud Hypervisor knows nothing.
    path.write_text(path.read_text().replace("memory = 128", "memory = 128\n memory_max = 1024"))
    return path


async def test_a_job_runs_there_and_its_event_says_why(ch_node: Node) -> None:
    async with ch_node.host(job(ch_node, "exit=3")) as host:
        assert await host.run() == ExitResult(exit_code=3)
        (started,) = [text for text in told(host) if text.startswith("machine started")]
        assert "cloud-hypervisor: pinned by the job" in started
        assert READY in host.console()


async def test_a_job_is_paused_resumed_and_stopped(ch_node: Node) -> None:
    async with ch_node.host(job(ch_node)) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        client = await host.client()
        await client.signal_task(host.task_id, "SIGSTOP")
        await until_told(host, "paused")
        await client.signal_task(host.task_id, "SIGCONT")
        await until_told(host, "resumed")
        host.kill()
        assert await life == ExitResult()
        assert "power button" in host.console()
