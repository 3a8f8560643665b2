"""Keeps one driver plugin running as the agent does: three launches, streams, a relaunch after its death."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver._pb import base_pb2, hclspec_pb2
from driver._pb import driver_pb2 as pb
from driver.devhost import agentfile
from driver.devhost.client import API_VERSION, RpcError
from driver.devhost.errors import PluginError
from driver.devhost.node import Node
from driver.devhost.pluginproc import OnLog, PluginProcess

log = logging.getLogger(__name__)

RELAUNCH_S = 0.01
# The agent asks again at once; a plugin with such a fault should not take a whole CPU of a person's machine.
STREAM_AGAIN_S = 0.02
CLIENT_PORTS = (14000, 14512)
_HEALTH = {
    pb.FingerprintResponse.UNDETECTED: "undetected",
    pb.FingerprintResponse.UNHEALTHY: "unhealthy",
    pb.FingerprintResponse.HEALTHY: "healthy",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What the driver last said of itself and the node."""

    health: str  # undetected | unhealthy | healthy
    text: str
    attributes: Mapping[str, str]


def fingerprint_of(answer: pb.FingerprintResponse) -> Fingerprint:
    return Fingerprint(
        health=_HEALTH.get(answer.health, "undetected"),
        text=answer.err or answer.health_description,
        attributes={name: _shown(value) for name, value in answer.attributes.items()},
    )


class Supervisor:
    """`driver` is the name that jobs use. Tasks' events go to `on_task_event`, the plugin's log to `on_log`."""

    def __init__(
        self,
        argv: Sequence[str],
        node: Node,
        *,
        driver: str,
        agent_file: Path | None,
        env: Mapping[str, str],
        on_log: OnLog,
        on_task_event: Callable[[pb.DriverTaskEvent], None],
    ) -> None:
        self.argv = argv
        self.node = node
        self.driver = driver
        self.agent_file = agent_file
        self.env = env
        self.on_log = on_log
        self.on_task_event = on_task_event
        self.task_spec = hclspec_pb2.Spec()
        self.plugin: PluginProcess | None = None
        self.fingerprint: Fingerprint | None = None
        self.launches = 0
        self._config: bytes | None = None  # None: the plugin has no schema for its block
        self._changed = asyncio.Condition()
        self._failure: PluginError | None = None
        self._background: list[asyncio.Task[None]] = []

    # -- the start and the end of an agent ---------------------------------------------------------------------------

    async def start(self) -> None:
        """All three launches. Raises PluginError, as the agent then does not start."""
        try:
            async with self._launched() as plugin:
                info = await plugin.client.plugin_info()
                spec = await plugin.client.config_schema()
            self._check(info)
            if spec is not None:
                self._config = agentfile.plugin_config_msgpack(self.agent_file, spec)
                async with self._launched() as plugin:
                    await plugin.client.set_config(self._config)
                    await plugin.client.set_config(self._config)
            await self._dispense()
        except RpcError as exc:
            raise PluginError(f"plugin {self.argv[0]}: {exc}") from exc

    async def stop(self) -> None:
        """The agent ends and ends its plugin."""
        await self._cancel_background()
        if self.plugin is not None:
            await self.plugin.stop(driver_shutdown=True)
            await self._tell(None)

    async def crash(self) -> None:
        """Agent and plugin are killed in one moment: no farewell of any kind."""
        await self._cancel_background()
        if self.plugin is not None:
            self.plugin.kill()
            await self.plugin.forget()
            await self._tell(None)

    # -- for those who use the plugin ---------------------------------------------------------------------------------

    async def running(self, *, other_than: PluginProcess | None = None) -> PluginProcess:
        """The plugin, once it is up. Raises PluginError when it does not come back."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or (self.plugin is not None and self.plugin is not other_than)
            )
        if self._failure is not None:
            raise self._failure
        assert self.plugin is not None
        return self.plugin

    async def healthy(self, *, timeout_s: float) -> Fingerprint:
        """The fingerprint once it is healthy, or what it is at the end of the time. Raises PluginError without any."""

        def settled() -> bool:
            return self._failure is not None or (self.fingerprint is not None and self.fingerprint.health == "healthy")

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(settled)
        if self._failure is not None:
            raise self._failure
        if self.fingerprint is None:
            raise PluginError(f"plugin {self.argv[0]}: no fingerprint within {timeout_s:g} s")
        return self.fingerprint

    # -- inside -------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _launched(self) -> AsyncIterator[PluginProcess]:
        plugin = await self._launch()
        try:
            yield plugin
        finally:
            await plugin.stop(driver_shutdown=False)

    async def _launch(self) -> PluginProcess:
        self.launches += 1
        return await PluginProcess.launch(self.argv, on_log=self.on_log, env=self.env)

    async def _dispense(self) -> None:
        """The launch that is kept."""
        self._failure = None
        plugin = await self._launch()
        try:
            if self._config is not None:
                await plugin.client.set_config(self._config, self._nomad_config())
            with contextlib.suppress(RpcError):  # older plugins do not know it
                await plugin.client.init()
            self.task_spec = await plugin.client.task_config_schema()
            await plugin.client.capabilities()
        except BaseException:  # also ^C: nobody else knows of it yet
            await plugin.stop(driver_shutdown=False)
            raise
        self._background += [
            asyncio.create_task(self._again(plugin, self._follow_fingerprint), name="fingerprint"),
            asyncio.create_task(self._again(plugin, self._follow_events), name="task events"),
            asyncio.create_task(self._watch(plugin), name="plugin watch"),
        ]
        await self._tell(plugin)

    async def _watch(self, plugin: PluginProcess) -> None:
        """After the plugin's death: another one, at once."""
        code = await asyncio.shield(plugin.exited)
        log.info("plugin exited pid=%d code=%d", plugin.pid, code)
        await self._tell(None)
        await plugin.forget()
        await asyncio.sleep(RELAUNCH_S)
        try:
            await self._dispense()
        except (PluginError, RpcError) as exc:
            self._failure = PluginError(f"plugin {self.argv[0]}: {exc}")
            await self._tell(None)

    async def _again(self, plugin: PluginProcess, follow: Callable[[PluginProcess], Any]) -> None:
        """A stream that ends while its process lives is asked for again."""
        while not plugin.exited.done():
            try:
                await follow(plugin)
            except RpcError as exc:
                log.debug("stream ended: %s", exc)
            await asyncio.sleep(STREAM_AGAIN_S)

    async def _follow_fingerprint(self, plugin: PluginProcess) -> None:
        async for answer in plugin.client.fingerprint():
            self.fingerprint = fingerprint_of(answer)
            async with self._changed:
                self._changed.notify_all()

    async def _follow_events(self, plugin: PluginProcess) -> None:
        async for event in plugin.client.task_events():
            self.on_task_event(event)

    async def _tell(self, plugin: PluginProcess | None) -> None:
        self.plugin = plugin
        async with self._changed:
            self._changed.notify_all()

    async def _cancel_background(self) -> None:
        tasks = [task for task in self._background if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._background.clear()

    def _check(self, info: base_pb2.PluginInfoResponse) -> None:
        if info.type != base_pb2.DRIVER:
            raise PluginError(f"plugin {self.argv[0]}: it is no driver (type {info.type})")
        if API_VERSION not in info.plugin_api_versions:
            raise PluginError(
                f"plugin {self.argv[0]}: API versions {list(info.plugin_api_versions)}, need {API_VERSION}"
            )
        if info.name != self.driver:
            raise PluginError(f"plugin {self.argv[0]}: its driver is {info.name!r}, the job asks for {self.driver!r}")

    def _nomad_config(self) -> base_pb2.NomadConfig:
        low, high = CLIENT_PORTS
        driver = base_pb2.NomadDriverConfig(ClientMinPort=low, ClientMaxPort=high, Topology=self.node.topology())
        return base_pb2.NomadConfig(driver=driver)


def _shown(value: Any) -> str:
    """An attribute as `${attr.x}` gives it."""
    match value.WhichOneof("value"):
        case "bool_val":
            return "true" if value.bool_val else "false"
        case "int_val":
            return f"{value.int_val}{value.unit}"
        case "float_val":
            return f"{value.float_val:g}{value.unit}"
    return str(value.string_val)


def owner_environment() -> dict[str, str]:
    """Tells the plugin that its machines are ours, so that a Nomad agent's plugin beside it leaves them alone."""
    return {"CHV_OWNER": os.environ.get("CHV_OWNER", "dev")}
