"""The guest agents of the known tasks: a link to each, and what tasks and people want of them."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from driver.agent_link import AgentLink, Command, News
from driver.config_task import AGENT_WAIT_S
from driver.errors import AgentLostError, NoAgentError, UnimplementedError
from driver.guest_news import GuestNews, Tell
from driver.keeper_stream import Stream, open_stream
from driver.offload import Offload
from driver.signals import understood
from driver.store import Task
from vmlib.errors import HostError, LaunchError, VmError
from vmlib.guest.facts import HOOKS
from vmlib.guest.report import plain
from vmlib.guest.session import Exited, Lost, Ready, Said

log = logging.getLogger(__name__)

_AFTER_RESUME_S = 15.0  # for an agent that was given up while its machine was paused
_ENVIRONMENT_S = 20.0
_MOST_ENVIRONMENT = 3 << 20  # bytes
_SIGNAL_S = 45.0  # the agent gives hooks 30
_LAST_WORDS = 2000  # bytes of hooks
_BUG_S = 15.0

# Of exec: a longer one does not fit into the websocket's close frame, see NO_AGENT_BYTES.
NO_AGENT = "no guest agent (agent = false, or not Linux): use SSH, or the command `console`"
SILENT = "the guest agent does not answer (cloud-init, python3?): use SSH or `console`"
# Nomad hands our text on in a websocket's close frame, which has room for 123 bytes, of which its own words take 39:
# "rpc error: code = Unimplemented desc = ". A longer text arrives as `unexpected EOF`.
NO_AGENT_BYTES = 123 - 39


@dataclass(slots=True, eq=False)
class _Tended:
    task: Task
    news: GuestNews
    dropped: asyncio.Future[None]
    link: AgentLink = field(init=False)
    here: asyncio.Event = field(default_factory=asyncio.Event)  # while there is a session
    environment: asyncio.Future[None] | None = None  # its way into the guest
    running: asyncio.Task[None] | None = None


class Agents:
    """Holds nothing that cannot be found again from records and run directories."""

    def __init__(self, offload: Offload, tell: Tell) -> None:
        """`tell` is as GuestNews has it."""
        self._offload = offload
        self._tell = tell
        self._tended: dict[str, _Tended] = {}
        self._behind: set[asyncio.Future[None]] = set()
        self._closed = False

    def add(self, task: Task) -> None:
        """Keep a link to a task's agent until the task ends; nothing for a machine that has none."""
        if self._closed or not task.machine.record.agent or task.id in self._tended or task.ended.done():
            return
        tended = _Tended(task, GuestNews(task, self._offload, self._tell), asyncio.get_running_loop().create_future())
        tended.link = AgentLink(partial(_channel, task), partial(self._hear, tended))
        self._tended[task.id] = tended
        tended.running = asyncio.create_task(self._tend(tended), name=f"agent {task.id}")
        task.ended.add_done_callback(lambda _: self.drop(task.id))

    def drop(self, task_id: str) -> None:
        """Let go of it; who waits for the agent hears of that."""
        tended = self._tended.pop(task_id, None)
        if tended is None:
            return
        if tended.running is not None:
            tended.running.cancel()
        tended.news.end()
        if not tended.dropped.done():
            tended.dropped.set_result(None)

    def close(self) -> None:
        """Let go of all, and of those that come later."""
        self._closed = True
        for task_id in list(self._tended):
            self.drop(task_id)

    async def _tend(self, tended: _Tended) -> None:
        await tended.news.load()
        while True:
            try:
                await tended.link.run()
            except Exception:  # the top of a background task: its machine would have no agent any more
                log.exception("link to the guest agent failed task=%s", tended.task.id)
            await asyncio.sleep(_BUG_S)

    # -- what others want ----------------------------------------------------------------------------------------

    async def wait_for(self, task: Task) -> None:
        """Until the agent of a task that was started has answered. Raises LaunchError when it will not."""
        tended = self._tended.get(task.id)
        if tended is not None:
            await self._appears(tended, AGENT_WAIT_S)
        if task.ended.done():
            ended = task.ended.result()
            why = ended.message or f"exit code {ended.exit_code}"
            raise LaunchError(f"the machine ended before its guest agent answered: {why}")
        if tended is None or tended.dropped.done():
            raise LaunchError("the task was destroyed before its guest agent answered")
        if not tended.here.is_set():
            raise LaunchError(
                f'wait_for = "agent": no guest agent has answered within {AGENT_WAIT_S:.0f} s',
                hint="it needs cloud-init and python3 in the guest, and the guest's boot is in alloc logs",
            )
        await self._settled(tended)

    async def start(self, task: Task, wanted: Mapping[str, Any]) -> Command:
        """Have the agent of a task do something. Raises NoAgentError, HostError, SpecError; all of them are short."""
        if task.ended.done():
            raise HostError("the machine has ended")
        if not task.machine.record.agent:
            raise NoAgentError(NO_AGENT)
        tended = self._tended.get(task.id)
        if tended is None or tended.link.report is None:
            raise NoAgentError(SILENT)
        await self._settled(tended)
        return tended.link.start(wanted)

    async def signal(self, task: Task, name: str, *, wake: Callable[[], Awaitable[bool]]) -> None:
        """Run what the guest has for a signal, to its end. Raises VmError with what to do.

        `wake` resumes a paused machine, which could not hear it otherwise, and says whether it was one.
        """
        resumed = task.machine.record.agent and await wake()
        if resumed and (tended := self._tended.get(task.id)) is not None:
            await self._appears(tended, _AFTER_RESUME_S)
        try:
            command = await self.start(task, {"op": "signal", "name": name})
        except NoAgentError as exc:
            why = "which does not answer" if task.machine.record.agent else "and this machine has none"
            raise UnimplementedError(
                f"signal {name}: is for the guest agent, {why}; it runs what is executable in {HOOKS}/{name}.d/ of the "
                f"guest; without it: {understood()}"
            ) from exc
        words = b""
        try:
            async with asyncio.timeout(_SIGNAL_S):
                await command.end_input()
                while isinstance(event := await command.read(), Said):
                    words = (words + event.data)[-_LAST_WORDS:]
        except TimeoutError:
            raise AgentLostError(f"signal {name}: the guest has not come to an end with it in time") from None
        finally:
            command.cancel()
        if event.error:
            where = "" if HOOKS in event.error else f" of {HOOKS}/{name}.d/"
            raise UnimplementedError(
                f"signal {name}: {event.error.removeprefix(f'{name}: ')}",
                hint=f"executables{where} are run at this signal, as root",
            )
        if event.code:
            lines = words.decode(errors="replace").strip().splitlines()
            said = f": {plain(lines[-1])}" if lines else ""
            raise VmError(f"signal {name}: what the guest has for it failed with exit code {event.code}{said}")

    async def _appears(self, tended: _Tended, timeout_s: float) -> None:
        """Until the agent answers, the machine ends, or the time is over."""
        here = asyncio.ensure_future(tended.here.wait())
        try:
            await asyncio.wait(
                (here, tended.task.ended, tended.dropped), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            here.cancel()

    async def _settled(self, tended: _Tended) -> None:
        """A command shall not be there before its environment is."""
        if tended.environment is not None:
            await asyncio.wait((tended.environment, tended.dropped), return_when=asyncio.FIRST_COMPLETED)

    # -- what the agent says -------------------------------------------------------------------------------------

    def _hear(self, tended: _Tended, news: News) -> None:
        match news:
            case Lost(why):
                log.info("guest agent lost task=%s: %s", tended.task.id, why)
                tended.here.clear()
                return
            case Ready(report):
                log.info("guest agent ready task=%s python=%s", tended.task.id, report.python)
                # A task that the agent has not told us of again has none that is known.
                if tended.task.config.env:
                    tended.environment = self._background(self._set_environment(tended))
                tended.here.set()
        tended.news.take(news.report)

    async def _set_environment(self, tended: _Tended) -> None:
        """So that /run/nomad/env is what Nomad says now. Never raises: the guest has the seed's as well."""
        config = tended.task.config
        environment = {**config.device_env, **config.env}
        data = json.dumps(environment).encode()
        if not environment:
            return
        if len(data) > _MOST_ENVIRONMENT:
            log.warning("environment not renewed in the guest task=%s: it has %d bytes", tended.task.id, len(data))
            return
        why = ""
        try:
            async with asyncio.timeout(_ENVIRONMENT_S):
                command = tended.link.start({"op": "environment"})
                try:
                    await command.write(data)
                    await command.end_input()
                    while not isinstance(event := await command.read(), Exited):
                        pass
                    why = event.error
                finally:
                    command.cancel()
        except AgentLostError:
            return  # the next session begins with it
        except VmError as exc:
            why = str(exc)
        except TimeoutError:
            why = "the guest does not take it"
        if why:
            log.warning("environment not renewed in the guest task=%s: %s", tended.task.id, why)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        self._behind.add(done := asyncio.ensure_future(work))
        done.add_done_callback(self._behind.discard)
        return done


async def _channel(task: Task) -> Stream:
    stream, _ = await open_stream(task.machine.run.control, "agent")
    return stream
