"""A job that pins Cloud Hypervisor, from its file to its end, and what becomes of jobs where that cannot run them.

The VMM is the fake one, which boots guests by QEMU. Jobs that do not pin it get it only with KVM: tests/lab has those.
"""

import asyncio
import re
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import StartFailedError
from tests.guest import build
from tests.integration.nodes import READY, Node, told, until_says, until_told

FAKE = Path(__file__).parent.parent / "fakes" / "cloud-hypervisor"
# A plugin that finds no KVM that works, on whatever host.
WITHOUT_KVM = """#!/bin/sh
if [ -z "$HIDDEN" ]; then HIDDEN=1 exec unshare --mount "$0" "$@"; fi
if [ -e /dev/kvm ]; then mount --bind /dev/null /dev/kvm || exit 1; fi
exec {chv} "$@"
"""


@pytest.fixture
def ch_node(fake_node: Node) -> Node:
    """Its machines run as we do: the fake's Python may lie where no other user can walk to."""
    fake_node.hypervisor = "auto"
    fake_node.block = f'cloud_hypervisor {{\n binary = "{FAKE}"\n }}'
    fake_node.write_agent_file()
    return fake_node


@pytest.fixture
def without_kvm(ch_node: Node) -> Node:
    """The same, but what plays Cloud Hypervisor counts as a real one, and the plugin finds no KVM that works."""
    hiding = ch_node.base / "without-kvm"
    hiding.write_text(WITHOUT_KVM.format(chv=ch_node.chv))
    hiding.chmod(0o755)
    ch_node.chv = hiding
    ch_node.env = {"CHV_ENABLE_FAKE": "0"}
    return ch_node


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


@pytest.mark.parametrize(
    ("boot", "config", "why"),
    [
        ('image = "{guest}/disk.qcow2"', "", "has no firmware file to boot a disk with"),
        ('kernel = "{guest}/vmlinuz"', 'network_interface {\n network = "user0"\n }', "has no user-mode network"),
    ],
    ids=["firmware", "network"],
)
async def test_a_job_that_pins_it_and_needs_what_it_lacks_fails_for_that_reason(
    ch_node: Node, boot: str, config: str, why: str
) -> None:
    pinned = f'hypervisor = "cloud-hypervisor"\n {config}'
    path = ch_node.job(boot=boot.format(guest=ch_node.guest), config=pinned)
    async with ch_node.host(path) as host:
        with pytest.raises(StartFailedError) as failed:
            await host.start()
        assert f"no hypervisor here can run this machine (cloud-hypervisor: {why})" in str(failed.value)
        assert not failed.value.recoverable
        assert ch_node.runs() == []


async def test_without_kvm_a_job_runs_on_qemu_and_its_event_says_why(without_kvm: Node) -> None:
    async with without_kvm.host(without_kvm.job("exit=3")) as host:
        assert await host.run() == ExitResult(exit_code=3)
        (started,) = [text for text in told(host) if text.startswith("machine started")]
        assert re.fullmatch(r"machine started: qemu with tcg: no usable KVM \([^()]+\), pid \d+", started)


async def test_without_kvm_a_job_that_pins_it_fails_for_that_reason(without_kvm: Node) -> None:
    async with without_kvm.host(job(without_kvm)) as host:
        with pytest.raises(StartFailedError) as failed:
            await host.start()
        why = r"no usable hypervisor \(cloud-hypervisor: no usable KVM \([^()]+\)\) \(look at `chv doctor`\)"
        assert re.search(why, str(failed.value))
        assert without_kvm.runs() == []
