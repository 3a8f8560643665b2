"""A job that pins Cloud Hypervisor, from its file to its end, and what becomes of jobs where that cannot run them.

The VMM is the fake one, which boots guests by QEMU. Jobs that do not pin it get it only with KVM: tests/lab has those.
"""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from driver.devhost.events import ExitResult
from driver.devhost.host import StartFailedError
from tests.guest import build
from tests.integration.nodes import READY, Node, kinds, told, until_says, until_told
from tests.integration.test_ch_guest import fake_in

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
    fake_node.block = f'cloud_hypervisor {{\n binary = "{fake_in(fake_node.base / "fake")}"\n }}'
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


async def test_its_console_reboot_and_nmi_are_those_of_every_machine(ch_node: Node) -> None:
    async with ch_node.host(job(ch_node, "echo")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        client = await host.client()

        def command(*words: str) -> "subprocess.CompletedProcess[str]":
            return ch_node.command(*words, host.alloc.id)

        assert (await asyncio.to_thread(command, "nmi")).returncode == 0
        await until_says(host, "NMI received")
        for ups, pause in ((2, False), (3, True)):
            if pause:
                await client.signal_task(host.task_id, "SIGSTOP")
                await until_told(host, "paused")
            done = await asyncio.to_thread(command, "reboot")
            assert (done.returncode, done.stderr) == (0, "")
            await until_says(host, READY, count=ups)
            assert kinds(host).count("rebooted") == ups - 1
        assert kinds(host)[2:] == ["rebooted", "paused", "resumed", "rebooted"]
        assert {text for text in told(host) if text.startswith("rebooted")} == {"rebooted from outside"}
        assert await asyncio.to_thread(talk, ch_node, host.alloc.id) == b"echo: hello"
        host.kill()
        assert await life == ExitResult()


def talk(node: Node, alloc: str) -> bytes:
    """Type a line in a pipe, and return what the guest answers."""
    with subprocess.Popen(
        [node.chv, "console", alloc],
        env={**os.environ, **node.environment, "CHV_CONFIG": str(node.agent_file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write(b"hello\n")
        one.stdin.flush()
        said = next(line for line in one.stdout if b"echo:" in line)
        one.terminate()
    return said.strip()


async def test_a_reboot_of_a_machine_that_shall_not_reboot_is_its_end(ch_node: Node) -> None:
    path = job(ch_node)
    path.write_text(path.read_text().replace("hypervisor =", 'on_reboot = "exit"\n hypervisor ='))
    async with ch_node.host(path) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        done = await asyncio.to_thread(ch_node.command, "reboot", host.alloc.id)
        assert (done.returncode, done.stderr) == (0, "")
        assert await life == ExitResult()
        assert "rebooted" not in kinds(host)


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
