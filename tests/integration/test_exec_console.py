"""`alloc exec ALLOC console`: the serial console of a machine without an agent, over a keeper that is killed."""

import asyncio

import pytest

from driver.devhost.client import RpcError
from driver.devhost.events import ExitResult
from tests.integration.exec_calls import Call
from tests.integration.nodes import READY, Node, kill, until_says


@pytest.mark.parametrize("tty", [True, False])
async def test_the_console_is_typed_into_over_a_killed_keeper_and_ends_with_the_machine(
    fake_node: Node, tty: bool
) -> None:
    async with fake_node.host(fake_node.job("echo", config="agent = false")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        call = Call(await host.client(), host.task_id, ["console"], tty=tty)
        call.type(b"hello\r")  # before it hears that it is attached
        await call.step()
        await call.until(b"echo: hello\r\n")
        kill(fake_node.keeper)
        while b"attached again" not in call.err:
            assert await call.step() is None
        call.type(b"once more\r")
        await call.until(b"echo: once more\r\n")
        await (await host.client()).signal_task(host.task_id, "SIGTERM")
        assert await call.end() == 0
        line_end = b"\r\n" if tty else b"\n"
        assert bytes(call.err).endswith(b"chv: the machine has ended" + line_end)
        assert await life == ExitResult()
        with pytest.raises(RpcError):
            await Call(await host.client(), host.task_id, ["console"]).end()


async def test_of_two_who_type_one_does_until_he_leaves(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job("echo")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        client = await host.client()
        first = Call(client, host.task_id, ["console"], tty=True)
        await first.step()
        second = Call(client, host.task_id, ["console"], tty=True)
        await second.step()
        assert b"Ctrl-] leaves it; nomad alloc exec types, you watch until that one leaves" in second.err
        second.type(b"not heard\r")
        first.type(b"heard\r")
        await second.until(b"echo: heard")
        first.type(b"\x1d")
        assert await first.end() == 0
        await second.until(b"you type now")
        second.type(b"now\r")
        await second.until(b"echo: now")
        assert b"not heard" not in second.out
        await second.answers.aclose()
        host.kill()
        await life


async def test_a_caller_that_is_gone_leaves_the_console(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job("tick")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        for _ in range(20):  # more than may watch at once
            call = Call(await host.client(), host.task_id, ["console"])
            await call.step()
            await call.until(b"tick")
            await call.answers.aclose()
        host.kill()
        await life
