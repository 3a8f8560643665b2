"""Tasks on the fake Cloud Hypervisor through a real plugin process: words that begin with `chfake.` are for the VMM."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from driver._pb import driver_pb2 as pb
from driver.devhost.pluginproc import LogLine, PluginProcess
from tests.fakes.ch.install import install
from tests.fakes.plugin_client import FakeTask, Place, Plugin


@dataclass(frozen=True, slots=True, kw_only=True)
class ChPlace(Place):
    """A node on which the fake VMM, whose guest is played, is the operator's `cloud_hypervisor.binary`."""

    @property
    def binary(self) -> Path:
        return self.base / "fake" / "cloud-hypervisor"

    def make(self) -> None:
        # Explicit: a dataclass with slots is another class than the one that `super()` would look for.
        Place.make(self)
        (self.base / "tmp").mkdir(exist_ok=True)
        self.binary.parent.mkdir(exist_ok=True)
        install(self.binary.parent, guest="light")

    def plugin_config(self) -> bytes:
        block = msgspec.msgpack.decode(Place.plugin_config(self))
        return msgspec.msgpack.encode(block | {"cloud_hypervisor": {"binary": str(self.binary)}})


@dataclass(slots=True)
class ChTask(FakeTask):
    """A task that pins Cloud Hypervisor."""

    def config(self) -> pb.TaskConfig:
        config = FakeTask.config(self)
        options = msgspec.msgpack.decode(config.msgpack_driver_config) | {"hypervisor": "cloud-hypervisor"}
        config.msgpack_driver_config = msgspec.msgpack.encode(options)
        config.resources.allocated_resources.memory.memory_mb = 128
        return config


@contextlib.asynccontextmanager
async def ch_plugin_at(chv: Path, place: ChPlace, **limits_s: float) -> AsyncIterator[Plugin]:
    """A plugin process of `limited_plugin`, configured; ended with the block, killed or not."""
    log: list[LogLine] = []
    environment = {
        "CHV_ENABLE_FAKE": "1",
        "CHV_TEST_LIMITS": json.dumps(limits_s),
        "TMPDIR": str(place.base / "tmp"),
    }
    process = await PluginProcess.launch([str(chv)], on_log=log.append, env=environment)
    try:
        await process.client.set_config(place.plugin_config())
        yield Plugin(place, process, log)
    finally:
        if process.returncode is None:
            await process.stop(driver_shutdown=True)
