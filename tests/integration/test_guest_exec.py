"""What Nomad asks for inside a guest, through plugin and keeper: a real guest under QEMU with the real agent."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from driver.devhost.client import RpcError
from driver.devhost.errors import PluginError
from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from tests.guest.build import CMDLINE, Guest
from tests.integration.exec_calls import Call
from tests.integration.nodes import PATIENCE_S, Node, kill, kill_plugin, kinds, told, until, until_told

BOOT_S = 240.0  # an emulated CPU that others need as well

pytestmark = pytest.mark.timeout(600)


def agent_job(
    node: Node, guest: Guest, words: str = "agent", *, config: str = 'wait_for = "agent"', env: str = ""
) -> Path:
    """A job whose guest has Python, and the agent by its seed."""
    boot = f'kernel = "{guest.kernel}"\ninitrd = "{guest.initrd_python}"\ncmdline = "{CMDLINE} {words}"'
    path = node.job(boot=boot, config=config, task=f"env {{\n{env}\n}}" if env else "")
    path.write_text(path.read_text().replace("memory = 128", "memory = 256"))
    return path


async def run(host: DevHost, *argv: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
    call = Call(await host.client(), host.task_id, list(argv))
    call.type(data)
    call.end_input()
    code = await call.end()
    return code, bytes(call.out), bytes(call.err)


async def sh(host: DevHost, script: str) -> str:
    """What a script says that comes to a good end."""
    code, out, err = await run(host, "/bin/sh", "-c", script)
    assert (code, err) == (0, b""), (code, out, err)
    return out.decode().strip()


@contextlib.asynccontextmanager
async def started(node: Node, job: Path) -> AsyncIterator[tuple[DevHost, "asyncio.Task[ExitResult]"]]:
    """The embedded host once StartTask has answered, and the task's life."""
    async with node.host(job) as host:
        life = asyncio.create_task(host.run(), name="life")
        try:
            await until(lambda: host.handle is not None or life.done(), "the start", host=host, timeout_s=BOOT_S)
            yield host, life
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


def rss_kib(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


async def test_a_guest_is_used_as_a_container_would_be(node: Node, guest: Guest) -> None:
    """One machine for all of it, because a boot takes long."""
    async with started(node, agent_job(node, guest, env='GREETING = "it\'s \\"5 $\\" `now`"')) as (host, life):
        (ready,) = [text for text in told(host) if text.startswith("agent ready")]
        assert re.fullmatch(r"agent ready: booted in \d+ s", ready)
        await commands(host)
        await input_and_output(host)
        await terminals(host)
        await many_at_once(host)
        await cancelled(host)
        await signals(host, node)
        await console(host)
        shown = json.loads((await asyncio.to_thread(node.command, "inspect", "--json", host.alloc.id)).stdout)["guest"]
        assert shown["memory"]["total_bytes"] > 200 << 20
        assert len(shown["load"]) == 3
        assert shown["uptime_s"] > 0
        assert shown["addresses"] == []
        assert shown["age_s"] < 60
        assert kinds(host).count("agent ready") == 1
        call = Call(await host.client(), host.task_id, ["poweroff", "-f"])
        with pytest.raises(RpcError, match="the machine has ended"):
            await call.end()
        assert await life == ExitResult()


async def commands(host: DevHost) -> None:
    assert await run(host, "/bin/sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    assert (await run(host, "/bin/sh", "-c", "kill -9 $$"))[0] == 137
    assert await run(host, "nothing") == (127, b"", b"chv: nothing: not found in the guest\n")
    assert await sh(host, 'printf %s "$GREETING"; id -u') == 'it\'s "5 $" `now`0'
    assert await sh(host, '. /run/nomad/env; printf %s "$GREETING$NOMAD_JOB_NAME"') == 'it\'s "5 $" `now`job'
    assert await sh(host, "stat -c %a /run/nomad/env") == "600"
    client = await host.client()
    script = await client.exec_task(host.task_id, ["/bin/sh", "-c", "echo out; echo err >&2; exit 5"])
    assert (script.stdout, script.stderr, script.result.exit_code) == (b"out\n", b"err\n", 5)
    with pytest.raises(RpcError, match=r"DeadlineExceeded desc = 'sleep' was ended: it took longer than 1 s"):
        await client.exec_task(host.task_id, ["sleep", "4321"], timeout_s=1)
    await until_not_running(host, "sleep 4321")
    with pytest.raises(RpcError, match="InvalidArgument desc = no command"):
        await client.exec_task(host.task_id, [])


async def until_not_running(host: DevHost, command: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while await sh(host, f"ps -o args | grep -cx '{command}' || true") != "0":
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)


async def input_and_output(host: DevHost) -> None:
    data = os.urandom(2_000_000)
    code, out, _ = await run(host, "sha256sum", data=data)
    assert (code, out.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())
    assert await run(host, "cat", data=data) == (0, data, b"")
    # A caller that does not read holds up the guest, and fills no memory here.
    pid = (await host.supervisor.running()).pid
    before = rss_kib(pid)
    call = Call(await host.client(), host.task_id, ["/bin/sh", "-c", "head -c 60000000 /dev/zero"])
    await call.step()
    await asyncio.sleep(3.0)
    assert rss_kib(pid) - before < 8 << 10
    await call.answers.aclose()


async def terminals(host: DevHost) -> None:
    call = Call(await host.client(), host.task_id, ["/bin/sh"], tty=True, size=(33, 101))
    call.type(b"stty size; tty\r")
    await call.until(b"33 101\r\n/dev/pts/")
    call.resize(44, 120)
    call.type(b"sleep 1; stty size\r")
    await call.until(b"44 120\r\n")
    call.type(b"sleep 600; echo interrupted with $?\r")
    await call.until(b"sleep 600")
    await asyncio.sleep(1.0)
    call.type(b"\x03exit 5\r")
    assert await call.end() == 5
    assert bytes(call.err) == b""


async def many_at_once(host: DevHost) -> None:
    async def cat(number: int) -> tuple[int, bytes, bytes]:
        return await run(host, "/bin/sh", "-c", f"cat; sleep 1; exit {number}", data=b"%d" % number * 5000)

    found = await asyncio.gather(*map(cat, range(10)))
    assert found == [(number, b"%d" % number * 5000, b"") for number in range(10)]


async def cancelled(host: DevHost) -> None:
    call = Call(await host.client(), host.task_id, ["/bin/sh", "-c", "echo here; exec sleep 1234"])
    await call.until(b"here\n")
    await call.answers.aclose()
    await until_not_running(host, "sleep 1234")


async def signals(host: DevHost, node: Node) -> None:
    client = await host.client()
    with pytest.raises(RpcError, match=r"SIGHUP: the guest has no executable in /etc/chv/signals/SIGHUP.d/") as no:
        await client.signal_task(host.task_id, "SIGHUP")
    assert not no.value.recoverable
    await sh(
        host,
        "for n in SIGHUP SIGUSR1; do mkdir -p /etc/chv/signals/$n.d; done;"
        "cd /etc/chv/signals; printf '#!/bin/sh\\necho seen >>/run/seen\\n' >SIGHUP.d/a;"
        "printf '#!/bin/sh\\necho no luck >&2; exit 9\\n' >SIGUSR1.d/a; chmod +x */a",
    )
    await client.signal_task(host.task_id, "hup")
    with pytest.raises(RpcError, match=r"signal SIGUSR1: what the guest has for it failed .*/SIGUSR1.d/a: exit code 9"):
        await client.signal_task(host.task_id, "SIGUSR1")
    await client.signal_task(host.task_id, "SIGSTOP")
    await until_told(host, "paused")
    await client.signal_task(host.task_id, "SIGHUP")  # resumes it first
    assert kinds(host)[-1] == "resumed"
    assert await sh(host, "cat /run/seen") == "seen\nseen"
    kill(node.keeper)
    await until_told(host, "keeper replaced")
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:  # another keeper, another connection, the same guest
        with contextlib.suppress(RpcError):
            assert await sh(host, "cat /run/seen") == "seen\nseen"
            break
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)


async def console(host: DevHost) -> None:
    for tty in (True, False):
        call = Call(await host.client(), host.task_id, ["console"], tty=tty, size=(24, 80) if tty else None)
        await call.step()
        leaves = ", Ctrl-] leaves it\r\n" if tty else "\n"
        assert bytes(call.err) == f"chv: console of {host.alloc.id}/vm{leaves}".encode()
        await sh(host, f"echo said on the console {tty} >/dev/console")
        await call.until(f"said on the console {tty}".encode())
        if tty:
            call.type(b"x\x1dy")
            assert await call.end() == 0
        else:
            await call.answers.aclose()


async def test_the_next_plugin_and_the_next_boot(node: Node, guest: Guest) -> None:
    """`agent ready` once for each boot, and a command finds the guest again in both cases."""
    async with started(node, agent_job(node, guest, env='A = "1"')) as (host, _):
        boot = await sh(host, "cat /proc/sys/kernel/random/boot_id")
        await sh(host, "rm /run/nomad/env")
        await kill_plugin(host)
        await until_runs(host)
        assert await sh(host, "cat /proc/sys/kernel/random/boot_id; grep A= /run/nomad/env") == f'{boot}\nA="1"'
        assert kinds(host).count("agent ready") == 1
        call = Call(await host.client(), host.task_id, ["/bin/sh", "-c", "echo here; reboot -f; sleep 100"])
        await call.until(b"here")
        with pytest.raises(RpcError, match="the guest agent"):
            await call.end()
        await until(lambda: kinds(host).count("agent ready") == 2, "the next boot", host=host, timeout_s=BOOT_S)
        await until_runs(host)
        assert await sh(host, "cat /proc/sys/kernel/random/boot_id") != boot


async def until_runs(host: DevHost) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        with contextlib.suppress(RpcError):
            await sh(host, "true")
            return
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)


async def test_a_machine_that_ends_before_its_agent_makes_the_start_fail(node: Node, guest: Guest) -> None:
    async with started(node, agent_job(node, guest, "exit=7")) as (_, life):
        with pytest.raises(PluginError, match="the machine ended before its guest agent answered: exit code 7"):
            await life
        assert node.runs() == []
