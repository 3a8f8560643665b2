"""Commands in a guest, by its agent, for Nomad: `alloc exec`, and the scripts of templates and checks."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from driver import exec_console
from driver._pb import driver_pb2 as pb
from driver.agents import Agents
from driver.errors import AgentLostError, CommandTimeoutError
from driver.exec_caller import Caller
from driver.store import Task
from vmlib.errors import HostError, SpecError
from vmlib.guest.session import Exited
from vmlib.guest.wire import STDERR, STDOUT

Answer = pb.ExecTaskStreamingResponse

CONSOLE = ["console"]  # as a command: the serial console
_SIZE_S = 0.25  # for a terminal's first size
_KEPT = 1 << 20  # bytes of each output of a script; Nomad shows a few lines of it
_ENDING_S = 1.0  # for a machine's end to be known, when its agent is gone


class Execs:
    """What ExecTask and ExecTaskStreaming do."""

    def __init__(self, agents: Agents, known: Callable[[str], Task]) -> None:
        """`known` finds a task by its id, or raises."""
        self._agents = agents
        self._known = known

    async def run(self, request: pb.ExecTaskRequest) -> pb.ExecTaskResponse:
        """A command to its end, within the caller's time. Raises CommandTimeoutError."""
        task = self._known(request.task_id)
        timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
        command = await self._agents.start(task, _wanted(task, request.command))
        kept = {STDOUT: _Kept(), STDERR: _Kept()}
        try:
            async with asyncio.timeout(timeout_s if timeout_s > 0 else None), _explained(task):
                await command.end_input()
                while not isinstance(event := await command.read(), Exited):
                    kept[event.channel].add(event.data)
        except TimeoutError:
            raise CommandTimeoutError(
                f"{request.command[0][:64]!r} was ended: it took longer than {timeout_s:g} s"
            ) from None
        finally:
            command.cancel()
        kept[STDERR].add(_complaint(event, b"\n"))
        return pb.ExecTaskResponse(
            stdout=kept[STDOUT].text(),
            stderr=kept[STDERR].text(),
            result=pb.ExitResult(exit_code=event.code, signal=event.signal),
        )

    async def stream(self, requests: AsyncIterator[pb.ExecTaskStreamingRequest]) -> AsyncGenerator[Answer, None]:
        """A command with its caller at both ends of it, or the console. What is said last is the exit code."""
        first = await anext(requests, None)
        if first is None:
            return
        task = self._known(first.setup.task_id)
        tty = first.setup.tty
        caller = Caller(requests, first)
        try:
            if list(first.setup.command) == CONSOLE:
                answers = exec_console.attach(task, caller, tty=tty)
            else:
                answers = self._command(task, caller, first.setup.command, tty=tty)
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield answer
        finally:
            await caller.close()

    async def _command(
        self, task: Task, caller: Caller, argv: Sequence[str], *, tty: bool
    ) -> AsyncGenerator[Answer, None]:
        wanted = _wanted(task, argv)
        if tty:
            wanted["tty"] = True
            if (size := await caller.first_size(_SIZE_S)) is not None:
                wanted["rows"], wanted["cols"] = size
        command = await self._agents.start(task, wanted)
        typing = asyncio.create_task(caller.type_into(command), name="exec input")
        try:
            async with _explained(task):
                # The agent gets credit for what is read here only, so a caller that does not read holds up the command.
                while not isinstance(event := await command.read(), Exited):
                    if event.data:
                        yield _output(event.channel, event.data)
            if complaint := _complaint(event, b"\r\n" if tty else b"\n"):
                yield _output(STDERR, complaint)
            yield finished(event.code, event.signal)
        finally:
            command.cancel()
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)


class _Kept:
    """The beginning of an output, and how much more there was."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._more = 0

    def add(self, data: bytes) -> None:
        room = _KEPT - len(self._data)
        self._data += data[:room]
        self._more += len(data[room:]) if room < len(data) else 0

    def text(self) -> bytes:
        return bytes(self._data) + (f"\nchv: {self._more} bytes more\n".encode() if self._more else b"")


def finished(code: int, signal: int = 0) -> Answer:
    """The last answer; Nomad shows the exit code alone, which is 128 + n for signal n by then."""
    return Answer(exited=True, result=pb.ExitResult(exit_code=code, signal=signal))


def _wanted(task: Task, argv: Sequence[str]) -> dict[str, object]:
    if not argv or not argv[0]:
        raise SpecError("no command")
    return {"op": "exec", "argv": list(argv), "user": task.config.user}


def _output(channel: int, data: bytes) -> Answer:
    said = pb.ExecTaskStreamingIOOperation(data=data)
    return Answer(stderr=said) if channel == STDERR else Answer(stdout=said)


def _complaint(ended: Exited, line_end: bytes) -> bytes:
    """What a command that could not be run says in its own place."""
    return f"chv: {ended.error}".encode() + line_end if ended.error else b""


@contextlib.asynccontextmanager
async def _explained(task: Task) -> AsyncIterator[None]:
    """An agent that is gone may be gone because its machine is."""
    try:
        yield
    except AgentLostError:
        await asyncio.wait((task.ended,), timeout=_ENDING_S)
        if task.ended.done():
            raise HostError("the machine has ended") from None
        raise
