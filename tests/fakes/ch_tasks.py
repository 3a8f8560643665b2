"""Tasks on the fake Cloud Hypervisor through a real plugin process: words that begin with `chfake.` are for the VMM."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from driver._pb import driver_pb2 as pb
from tests.fakes.ch.install import install
from tests.fakes.plugin_client import FakeTask, Place, Plugin, plugin_at

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChPlace(Place):
    """A node on which the fake VMM, whose guest is played, is the operator's `cloud_hypervisor.binary`."""

    networks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # blocks of the plugin's

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
        more = {"cloud_hypervisor": {"binary": str(self.binary)}, "network": self.networks}
        return msgspec.msgpack.encode(block | more)


@dataclass(slots=True)
class ChTask(FakeTask):
    """A task that pins Cloud Hypervisor, and says some more in its config."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> pb.TaskConfig:
        config = FakeTask.config(self)
        options = msgspec.msgpack.decode(config.msgpack_driver_config) | {"hypervisor": "cloud-hypervisor"}
        config.msgpack_driver_config = msgspec.msgpack.encode(options | dict(self.options))
        config.resources.allocated_resources.memory.memory_mb = 128
        return config


@contextlib.asynccontextmanager
async def ch_plugin_at(chv: Path, place: ChPlace, **limits_s: float) -> AsyncIterator[Plugin]:
    """A plugin process of `limited_plugin`, configured; ended with the block, killed or not."""
    env = {"CHV_TEST_LIMITS": json.dumps(limits_s), "TMPDIR": str(place.base / "tmp")}
    async with plugin_at(chv, place, env=env) as plugin:
        yield plugin


async def until_says(fd: int, text: str) -> None:
    """Reads a log's other end until the guest has said so."""
    seen = ""
    async with asyncio.timeout(PATIENCE_S):
        while text not in seen:
            try:
                seen += os.read(fd, 1 << 16).decode(errors="replace")
            except BlockingIOError:
                await asyncio.sleep(0.02)
