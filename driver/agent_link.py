"""The connection to one machine's guest agent, on the loop: kept for as long as the machine lives, and its commands."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from driver.errors import AgentLostError, NoAgentError
from driver.keeper_stream import Stream
from vmlib.errors import HypervisorError, SpecError
from vmlib.guest.report import Report
from vmlib.guest.session import Exited, Lost, Noted, Ready, Room, Said, Session

log = logging.getLogger(__name__)

_READ = 1 << 16
_AGAIN_S, _LONGEST_AGAIN_S = 0.5, 15.0  # between connections
_STEADY_S = 30.0  # one that lasted as long was a good one
# Of what the guest does not take. All that its streams may hold has room in here, escaped.
_MOST_UNSENT = 16 << 20

News = Ready | Noted | Lost


class Command:
    """Something that the agent does for a caller. Its output is taken from the guest as fast as the caller reads."""

    def __init__(self, link: "AgentLink", number: int) -> None:
        self._link = link
        self._number = number
        self._said: deque[Said | Exited] = deque()
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._why_lost: Exception | None = None
        self._over = False  # nothing more can be sent

    async def read(self) -> Said | Exited:
        """What it says next, and at last how it ended. Raises AgentLostError when that will never be known."""
        while not self._said:
            if self._why_lost is not None:
                raise self._why_lost
            self._more.clear()
            await self._more.wait()
        event = self._said.popleft()
        if isinstance(event, Exited):
            return event
        pieces, size = [event.data], len(event.data)
        while self._said and size < _READ:  # many small ones would each be a message to the caller
            more = self._said[0]
            if isinstance(more, Exited) or more.channel != event.channel:
                break
            pieces.append(more.data)
            size += len(more.data)
            self._said.popleft()
        if not self._over:
            self._link.took(self._number, size)
        return Said(event.stream, event.channel, b"".join(pieces))

    async def write(self, data: bytes) -> None:
        """Input, as fast as the guest takes it; what nobody takes any more is lost."""
        while data and not self._over:
            self._room.clear()
            data = data[self._link.send(self._number, data) :]
            if data:
                await self._room.wait()
        await self._link.drain()

    async def end_input(self) -> None:
        if not self._over:
            self._link.end_input(self._number)
            await self._link.drain()

    async def resize(self, rows: int, cols: int) -> None:
        if not self._over:
            self._link.resize(self._number, rows, cols)
            await self._link.drain()

    def cancel(self) -> None:
        """Have it ended in the guest, unless it has ended. To be called by everybody who has started one."""
        if not self._over:
            self._over = True
            self._link.cancel(self._number)

    def fail(self, why: Exception) -> None:
        """Whoever reads gets this once all that was said is read."""
        if not self._over:
            self.cancel()
            self._why_lost = why
            self._wake()

    def hear(self, event: Said | Exited | Room | Lost) -> None:
        match event:
            case Said():
                self._said.append(event)
            case Exited():
                self._over = True
                self._said.append(event)
            case Lost(why):
                self._over = True
                self._why_lost = AgentLostError(why)
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._room.set()


class AgentLink:
    """Connects, again after each loss, and keeps the session alive. Holds one task of the loop and no thread."""

    def __init__(self, connect: Callable[[], Awaitable[Stream]], hear: Callable[[News], None]) -> None:
        """`connect` may raise HypervisorError; `hear` gets what concerns the guest as a whole."""
        self._connect = connect
        self._hear = hear
        self._session: Session | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._commands: dict[int, Command] = {}

    @property
    def report(self) -> Report | None:
        """None while the agent does not answer."""
        return None if self._session is None else self._session.report

    def start(self, wanted: Mapping[str, Any]) -> Command:
        """Have the agent do something. Raises NoAgentError, SpecError for what it cannot be told."""
        session = self._session
        if session is None or session.report is None:
            raise NoAgentError("the guest agent does not answer")
        if session.is_full():
            raise NoAgentError("the guest runs as many commands as its agent takes: try again later")
        try:
            number = session.open(wanted)
        except ValueError as exc:
            raise SpecError(f"the command is too long: {exc}") from exc
        command = self._commands[number] = Command(self, number)
        self._flush()
        return command

    async def run(self) -> None:
        """For ever; to be cancelled."""
        loop = asyncio.get_running_loop()
        pause = _AGAIN_S
        while True:
            began = loop.time()
            try:
                reader, writer = await self._connect()
            except HypervisorError as exc:
                log.debug("guest channel not reached: %s", exc)
            else:
                await self._serve(reader, writer)
                if loop.time() - began > _STEADY_S:
                    pause = _AGAIN_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_AGAIN_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        loop = asyncio.get_running_loop()
        session = self._session = Session(loop.time())
        self._writer = writer
        try:
            session.begin()
            self._flush()
            # Never waits for the guest to read: what it says could not reach us then, nor make it read on.
            while writer.transport.get_write_buffer_size() < _MOST_UNSENT:
                if session.rest_s:
                    await asyncio.sleep(session.rest_s)
                data = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(session.due()):
                        data = await reader.read(_READ)
                if data == b"":
                    return
                now = loop.time()
                for event in [*session.feed(data or b"", now), *session.tick(now)]:
                    self._deliver(event)
                self._flush()
        except OSError as exc:
            log.debug("guest channel lost: %s", exc)
        finally:
            self._session = self._writer = None
            writer.close()
            if session.report is not None:
                self._deliver(Lost("the connection to the guest agent was lost"))

    def _deliver(self, event: Ready | Noted | Lost | Said | Room | Exited) -> None:
        match event:
            case Said(number, _, _) | Room(number) | Exited(number, _, _, _):
                command = self._commands.get(number)
                if command is not None:
                    command.hear(event)
                    if isinstance(event, Exited):
                        del self._commands[number]
                return
            case Lost():
                commands, self._commands = self._commands, {}
                for command in commands.values():
                    command.hear(event)
        self._hear(event)

    # -- for commands --------------------------------------------------------------------------------------------

    def took(self, number: int, count: int) -> None:
        if self._session is not None:
            self._session.took(number, count)
            self._flush()

    def send(self, number: int, data: bytes) -> int:
        """So many bytes were taken."""
        if self._session is None:
            return len(data)
        count = self._session.send(number, data)
        self._flush()
        return count

    def end_input(self, number: int) -> None:
        if self._session is not None:
            self._session.end_input(number)
            self._flush()

    def resize(self, number: int, rows: int, cols: int) -> None:
        if self._session is not None:
            self._session.resize(number, rows, cols)
            self._flush()

    def cancel(self, number: int) -> None:
        self._commands.pop(number, None)
        if self._session is not None:
            self._session.cancel(number)
            self._flush()

    async def drain(self) -> None:
        """Until the connection has taken most of what was sent: for whoever could send without an end."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    def _flush(self) -> None:
        assert self._session is not None
        assert self._writer is not None
        if data := self._session.outgoing():
            self._writer.write(data)
