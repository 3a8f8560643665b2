"""`nomad alloc exec -t ALLOC console`: a machine's serial console by its keeper, with an agent or without."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from driver._pb import driver_pb2 as pb
from driver.exec_caller import Caller
from driver.keeper_stream import Stream, open_stream
from driver.store import Task
from vmlib.errors import HostError, HypervisorError
from vmlib.guest.report import plain

Answer = pb.ExecTaskStreamingResponse

_LEAVE = b"\x1d"  # Ctrl-]
_READ = 1 << 16
_WHO = "nomad alloc exec"
_AGAIN_S, _RETRY_S = 10.0, 0.2  # for another keeper to take the place of one that is gone
_ENDING_S = 5.0  # for the end of a machine to be known


class _Typist:
    """What is typed goes to whichever connection there is."""

    def __init__(self, *, tty: bool) -> None:
        self.left = False  # the caller has pressed the key
        self.why: Exception | None = None
        self._tty = tty
        self._writer: asyncio.StreamWriter | None = None

    def onto(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        if self.left or self.why is not None:
            writer.close()

    async def write(self, data: bytes) -> None:
        before, key, _ = data.partition(_LEAVE) if self._tty else (data, b"", b"")
        self.left = self.left or bool(key)
        if self._writer is None:
            return
        with contextlib.suppress(OSError):
            self._writer.write(before)
            await self._writer.drain()
        if key:
            self._writer.close()

    async def end_input(self) -> None:
        """Who types no more still reads."""

    async def resize(self, rows: int, cols: int) -> None:
        """A serial line has no size."""

    def fail(self, why: Exception) -> None:
        self.why = why
        if self._writer is not None:
            self._writer.close()


async def attach(task: Task, caller: Caller, *, tty: bool) -> AsyncGenerator[Answer, None]:
    """The console until the caller leaves or the machine ends; the answers of an exec of exit code 0."""
    if task.ended.done():
        raise HostError("the machine has ended")
    typist = _Typist(tty=tty)
    (reader, writer), answer = await _open(task, tty=tty)
    typist.onto(writer)  # before the caller hears that it is attached, and types
    end = "\r\n" if tty else "\n"
    typing = asyncio.create_task(caller.type_into(typist), name="console input")
    try:
        leaves = ", Ctrl-] leaves it" if tty else ""
        yield _say(f"console of {task.machine.record.name}{leaves}{_whose(answer)}", end)
        while True:
            with contextlib.suppress(OSError):  # a keeper that is gone
                while data := await reader.read(_READ):
                    yield Answer(stdout=pb.ExecTaskStreamingIOOperation(data=data))
            writer.close()
            if typist.why is not None:
                raise typist.why
            if typist.left:
                break
            again = await _again(task, tty=tty)
            if again is None:
                yield _say("the machine has ended", end)
                break
            reader, writer = again
            typist.onto(writer)
            yield _say("attached again: the keeper was replaced, or this was not read for long", end)
        yield Answer(exited=True, result=pb.ExitResult())
    finally:
        writer.close()
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)


async def _open(task: Task, *, tty: bool) -> tuple[Stream, dict[str, object]]:
    return await open_stream(task.machine.run.control, "console", write=True, take=False, who=_WHO, notices=tty)


async def _again(task: Task, *, tty: bool) -> Stream | None:
    """The console of a machine whose keeper let go of us; None at the machine's end. Raises HypervisorError."""
    deadline = asyncio.get_running_loop().time() + _AGAIN_S
    while not task.ended.done():
        if not task.machine.running():
            await asyncio.wait((task.ended,), timeout=_ENDING_S)
            return None
        try:
            stream, _ = await _open(task, tty=tty)
        except HypervisorError:
            if asyncio.get_running_loop().time() > deadline:
                raise HypervisorError("the keeper is gone, and no other one has come") from None
            await asyncio.sleep(_RETRY_S)
        else:
            return stream
    return None


def _whose(answer: dict[str, object]) -> str:
    writer = plain(answer.get("writer"), 100)
    return "" if answer.get("writes") is not False else f"; {writer} types, you watch until that one leaves"


def _say(text: str, end: str) -> Answer:
    return Answer(stderr=pb.ExecTaskStreamingIOOperation(data=f"chv: {text}{end}".encode()))
