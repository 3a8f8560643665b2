"""The embedded host: one job on this machine, from the launch of the plugin to the end of the task."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import grpc

from driver._pb import driver_pb2 as pb
from driver.devhost import agentfile, events, hclspec
from driver.devhost.alloc import Alloc, allocate
from driver.devhost.artifacts import bring
from driver.devhost.client import PluginClient, RpcError
from driver.devhost.environment import config_variables
from driver.devhost.errors import ArtifactError, DevHostError, PluginError, SchemaError
from driver.devhost.events import Event, ExitResult
from driver.devhost.job import Job
from driver.devhost.logmon import Logmon
from driver.devhost.node import this_node
from driver.devhost.pluginproc import LogLine, PluginProcess
from driver.devhost.restarts import Ending, Restarts
from driver.devhost.supervisor import Supervisor, owner_environment

log = logging.getLogger(__name__)

HEALTHY_S = 15.0
STATS_S = 1.0
_START_SETTLES_S = 30.0
_EXIT_GRACE_S = 3.0  # how long the agent waits for a plugin to be dead after UNAVAILABLE
_STOP_AGAIN_S = (5, 20, 80, 120, 120)


class PluginGoneError(Exception):
    """The plugin died in the middle of a call: another one comes."""


class StartFailedError(Exception):
    """StartTask did not start anything."""

    def __init__(self, text: str, *, recoverable: bool) -> None:
        super().__init__(text)
        self.recoverable = recoverable


class DevHost:
    """Use as an async context manager: entering launches the plugin and makes the alloc, leaving stops and removes.

    `run` is a task's whole life. The parts of it (`start`, `wait`, `destroy`, …) are for whoever wants to go step by
    step, and `client` is for single calls.
    """

    def __init__(
        self,
        job: Job,
        *,
        plugin_argv: Sequence[str],
        agent_file: Path | None = None,
        alloc_parent: Path | None = None,
        meta: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        keep: bool = False,
        on_event: Callable[[Event], None] = lambda _: None,
        on_output: Callable[[str, bytes], None] = lambda *_: None,
        on_log: Callable[[LogLine], None] = lambda _: None,
    ) -> None:
        self.job = job
        self.keep = keep
        self.events: list[Event] = []
        self.stats: list[pb.TaskStats] = []
        self.inspected: pb.InspectTaskResponse | None = None
        self.handle: pb.TaskHandle | None = None
        self.result: ExitResult | None = None
        self._on_event = on_event
        self._on_output = on_output
        self._alloc_parent = alloc_parent
        self._alloc: Alloc | None = None
        self._logmon: Logmon | None = None
        self._stats_task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[pb.StartTaskResponse] | None = None
        self._starting_id = ""
        self._kill = asyncio.Event()
        self._down = False
        node = this_node(datacenter=job.datacenter, meta={**agentfile.client_meta(agent_file), **(meta or {})})
        withheld = agentfile.withheld_cores(agent_file, {cpu.id for cpu in node.cpus})
        self.supervisor = Supervisor(
            plugin_argv,
            node.withholding(withheld),
            driver=job.task.driver,
            agent_file=agent_file,
            env={**owner_environment(), **(env or {})},
            on_log=on_log,
            on_task_event=self._driver_event,
        )

    # -- the host itself ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.supervisor.start()
            found = await self.supervisor.healthy(timeout_s=HEALTHY_S)
            if found.health != "healthy":
                raise PluginError(f"driver {self.job.task.driver} is {found.health}: {found.text}")
            node = self.supervisor.node
            node = replace(node, attributes={**node.attributes, **found.attributes})
            self._alloc = allocate(self.job, node, self._alloc_parent)
            if self.job.task.logs:
                self._logmon = Logmon(self.alloc.paths, self._on_output)
                self._logmon.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """The end of everything: a task that still runs is destroyed, the alloc's directory goes unless it is kept."""
        await self._stop_stats()
        if not self._down:
            await self._settle_start()
            if self.handle is not None and self.result is None:
                await self._destroy_quietly()
        if self._logmon is not None:
            await self._logmon.finish()
        # Before the plugin ends: what it keeps for an alloc, it keeps for as long as this directory is there.
        if self._alloc is not None and not self.keep:
            self._alloc.paths.remove()
            if self._alloc_parent is None:
                self._alloc.paths.root.parent.rmdir()
        if not self._down:
            await self.supervisor.stop()

    @property
    def alloc(self) -> Alloc:
        assert self._alloc is not None, "the host was not entered"
        return self._alloc

    @property
    def started(self) -> bool:
        """Whether there is a life of a task that `kill` could end."""
        return bool(self.events)

    @property
    def logmon(self) -> Logmon:
        assert self._logmon is not None, "the task has no logs"
        return self._logmon

    @property
    def task_id(self) -> str:
        assert self.handle is not None, "no task was started"
        return self.handle.config.id

    async def client(self) -> PluginClient:
        """For single calls to the plugin that runs now."""
        return (await self.supervisor.running()).client

    def console(self, stream: str = "stdout") -> str:
        """All that the task has written."""
        path = self.alloc.paths.log(stream)
        return path.read_text(errors="replace") if path.exists() else ""

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(event)

    # -- a task's whole life ------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """What `nomad alloc stop` does: the running task is stopped, and `run` comes to its end."""
        if not self._kill.is_set():
            self.emit(events.killing(self.job.task.kill_timeout_s))
            self._kill.set()

    async def kill_now(self) -> None:
        """A second, harder word to a task that takes its time, also to start."""
        if self._starting is not None:
            await (await self.client()).destroy_task(self._starting_id)
        elif self.handle is not None and self.result is None:
            await (await self.client()).signal_task(self.task_id, "SIGKILL")

    async def run(self) -> ExitResult:
        """From `Received` to the last end that the restart policy leaves. Raises DevHostError when it never started."""
        self._say(events.RECEIVED)
        self._say(events.BUILDING)
        await self._bring_artifacts()
        restarts = Restarts(policy=self.job.task.restart, batch=self.job.type == "batch", since=time.monotonic())
        while True:
            failure: DevHostError | None = None
            if self._kill.is_set():
                return self._killed()
            try:
                await self.start()
            except StartFailedError as exc:
                failure = PluginError(str(exc))
                ending = Ending(kind="start failed", recoverable=exc.recoverable)
            except SchemaError as exc:
                failure = exc
                ending = Ending(kind="start failed")
            else:
                result = await self.wait()
                await self.destroy()
                ending = Ending(kind="killed" if self._kill.is_set() else "exited", successful=result.successful)
            restarts, verdict = restarts.after(ending, now=time.monotonic(), luck=random.random())
            match verdict.action:
                case "killed":
                    return self._killed()
                case "complete":
                    return self.result or ExitResult()
                case "give up":
                    self.emit(Event(type="Not Restarting", message=verdict.reason))
                    if failure is not None:
                        raise failure
                    return self.result or ExitResult(exit_code=1)
            self.emit(events.restarting(verdict.reason, verdict.delay_s))
            await self._pause(verdict.delay_s)

    async def _bring_artifacts(self) -> None:
        artifacts = self.job.task.artifacts
        if not artifacts:
            return
        self._say(events.DOWNLOADING)
        for artifact in artifacts:
            try:
                await asyncio.to_thread(
                    bring, artifact, task_dir=self.alloc.paths.task_dir, job_dir=self.job.path.absolute().parent
                )
            except ArtifactError as exc:
                self.emit(Event(type="Failed Artifact Download", message=str(exc)))
                raise

    def _killed(self) -> ExitResult:
        self._say(events.KILLED)
        return self.result or ExitResult()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._kill.wait()

    # -- its parts ----------------------------------------------------------------------------------------------------

    def encode_config(self) -> bytes:
        """The task's config as the plugin's schema makes it. Raises SchemaError."""
        variables = config_variables(self.alloc.env, self.alloc.node)
        return hclspec.encode(self.supervisor.task_spec, self.job.task.config, variables)

    async def start(self) -> pb.TaskHandle:
        """StartTask, once more with the same id when the plugin dies in the middle.

        Raises StartFailedError, and SchemaError when the config does not fit.
        """
        plugin = await self.supervisor.running()
        try:
            config = self.alloc.task_config(self.alloc.new_task_id(), self.encode_config())
        except SchemaError as exc:
            count = len(exc.complaints)
            shown = "".join(f"\n\t* {text}" for text in exc.complaints)
            head = "1 error occurred:" if count == 1 else f"{count} errors occurred:"
            self.emit(Event(type="Failed Validation", message=f"{head}{shown}"))
            raise
        self.handle = self.result = None
        self._starting_id = config.id
        # What was asked for comes into being even when nobody waits for the answer any more: see `_settle_start`.
        self._starting = asyncio.create_task(self._start_rpc(plugin, config), name="start task")
        try:
            answer = await asyncio.shield(self._starting)
        except (RpcError, PluginError) as exc:
            self._starting = None
            self.emit(Event(type="Driver Failure", message=str(exc)))
            raise StartFailedError(str(exc), recoverable=isinstance(exc, RpcError) and exc.recoverable) from exc
        if not answer.HasField("handle") or not answer.handle.HasField("config"):
            raise PluginError("StartTask answered without a handle that can be recovered")
        self.handle, self._starting = answer.handle, None
        self._say(events.STARTED)
        self._stats_task = asyncio.create_task(self._follow_stats(config.id), name="task stats")
        return answer.handle

    async def _start_rpc(self, plugin: PluginProcess, config: pb.TaskConfig) -> pb.StartTaskResponse:
        try:
            answer: pb.StartTaskResponse = await self._call(plugin, plugin.client.start_task(config))
        except PluginGoneError:
            plugin = await self.supervisor.running(other_than=plugin)
            answer = await plugin.client.start_task(config)
        return answer

    async def _settle_start(self) -> None:
        """A start that was left in the middle: its task has to be known before it can be destroyed."""
        if self._starting is not None:
            await asyncio.wait((self._starting,), timeout=_START_SETTLES_S)
            if not self._starting.done():  # it waits for its guest
                with contextlib.suppress(RpcError, PluginError):
                    await (await self.client()).destroy_task(self._starting_id)
            if self._starting.done() and not self._starting.cancelled() and self._starting.exception() is None:
                self.handle = self._starting.result().handle
            self._starting = None

    async def wait(self) -> ExitResult:
        """Until the task is over, over deaths of the plugin; `kill` stops it. Emits `Terminated`."""
        while True:
            plugin = await self.supervisor.running()
            try:
                self.result = await self._wait_once(plugin)
            except PluginGoneError:
                if not await self._recovered(plugin):
                    # No Terminated event: nobody knows how it ended, only that it did.
                    self.result = ExitResult(message="plugin has shut down")
                    return self.result
            else:
                self.emit(events.terminated(self.result))
                return self.result

    async def _recovered(self, dead: PluginProcess) -> bool:
        """Whether the next plugin took the task over. What it would not take is destroyed."""
        try:
            await self.supervisor.running(other_than=dead)
            await self.recover()
        except (RpcError, PluginError) as exc:
            log.info("task lost: %s", exc)
            await self._destroy_quietly()
            return False
        return True

    async def recover(self, *, with_config: bool = True) -> None:
        """RecoverTask with the last handle; `with_config` False is what an agent knows after its own restart."""
        assert self.handle is not None
        handle = pb.TaskHandle.FromString(self.handle.SerializeToString())
        if not with_config or self._forgot_config:
            handle.config.msgpack_driver_config = b""
        plugin = await self.supervisor.running()
        await plugin.client.recover_task(handle)
        await self._stop_stats()
        self._stats_task = asyncio.create_task(self._follow_stats(self.task_id), name="task stats")

    async def destroy(self) -> None:
        """DestroyTask(force); its failure is nobody's business, as on Nomad."""
        if self.handle is not None:
            await self.inspect()
            await self._destroy_quietly()
        await self._stop_stats()

    async def inspect(self) -> pb.InspectTaskResponse | None:
        """InspectTask, which Nomad has and never uses. None when the plugin refuses."""
        try:
            self.inspected = await (await self.client()).inspect_task(self.task_id)
        except (RpcError, PluginError) as exc:
            log.debug("inspect: %s", exc)
            return None
        return self.inspected

    # -- an agent that ends and begins --------------------------------------------------------------------------------

    _forgot_config = False

    async def agent_down(self, *, crash: bool) -> None:
        """The agent stops with its plugin, or both are killed. The task is nobody's until `agent_up`."""
        self._down = True
        await self._stop_stats()
        if self._logmon is not None:
            self._logmon.close()
        await (self.supervisor.crash() if crash else self.supervisor.stop())

    async def agent_up(self) -> None:
        """The agent starts again: three launches, and whoever waits for the task recovers it, without its config."""
        self._forgot_config = True
        if self._logmon is not None:
            self._logmon.open()
        await self.supervisor.start()
        self._down = False

    # -- inside -------------------------------------------------------------------------------------------------------

    def _say(self, words: tuple[str, str]) -> None:
        self.emit(Event(type=words[0], message=words[1]))

    def _driver_event(self, event: pb.DriverTaskEvent) -> None:
        self.emit(Event(type="Driver", message=event.message, details=dict(event.annotations)))

    async def _call(self, plugin: PluginProcess, call: Any) -> Any:
        """One RPC. UNAVAILABLE or a cancelled call may be the plugin's death: then PluginGoneError."""
        try:
            return await call
        except RpcError as exc:
            died = exc.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            if died and await plugin.exits_within(_EXIT_GRACE_S):
                raise PluginGoneError from exc
            raise

    async def _wait_once(self, plugin: PluginProcess) -> ExitResult:
        waiting = asyncio.create_task(self._wait_rpc(plugin), name="wait task")
        killed = asyncio.create_task(self._kill.wait(), name="kill")
        try:
            await asyncio.wait((waiting, killed), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await self._stop(plugin, waiting)
            return await waiting
        finally:
            for task in (waiting, killed):
                task.cancel()
            await asyncio.gather(waiting, killed, return_exceptions=True)

    async def _wait_rpc(self, plugin: PluginProcess) -> ExitResult:
        try:
            answer = await self._call(plugin, plugin.client.wait_task(self.task_id))
        except RpcError as exc:
            return ExitResult(message=str(exc))
        result = answer.result
        return ExitResult(
            exit_code=result.exit_code, signal=result.signal, oom_killed=result.oom_killed, message=answer.err
        )

    async def _stop(self, plugin: PluginProcess, waiting: "asyncio.Task[ExitResult]") -> None:
        """One more WaitTask, then StopTask, which is asked for again when it fails."""
        task = self.job.task
        second = asyncio.create_task(self._wait_rpc(plugin), name="second wait")
        await asyncio.sleep(0)  # its call goes out before the next one
        try:
            for pause_s in _STOP_AGAIN_S:
                try:
                    stop = plugin.client.stop_task(self.task_id, timeout_s=task.kill_timeout_s, signal=task.kill_signal)
                    await self._call(plugin, stop)
                    break
                except RpcError as exc:
                    log.info("stop: %s", exc)
                    await asyncio.wait((waiting,), timeout=pause_s)
                    if waiting.done():
                        break
            await second
        finally:
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)

    async def _destroy_quietly(self) -> None:
        try:
            plugin = await self.supervisor.running()
            await self._call(plugin, plugin.client.destroy_task(self.task_id))
        except (RpcError, PluginError, PluginGoneError) as exc:
            log.debug("destroy: %s", exc)

    async def _follow_stats(self, task_id: str) -> None:
        while True:
            try:
                client = await self.client()
                async for sample in client.task_stats(task_id, interval_s=STATS_S):
                    self.stats.append(sample)
                    del self.stats[:-100]
            except RpcError as exc:
                log.debug("stats: %s", exc)
            except PluginError:
                return
            await asyncio.sleep(STATS_S)

    async def _stop_stats(self) -> None:
        if self._stats_task is not None:
            self._stats_task.cancel()
            await asyncio.gather(self._stats_task, return_exceptions=True)
            self._stats_task = None
