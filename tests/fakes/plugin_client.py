"""Drives a real plugin process over gRPC, without an agent: its directories, its launch, and tasks whose guest is fake.

The calls themselves are those of `driver.devhost.client`. The fake guest obeys the words that are listed in
tests/guest/README.md.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from driver._pb import driver_pb2 as pb
from driver.devhost.client import PluginClient
from driver.devhost.pluginproc import LogLine, PluginProcess
from vmlib import process
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.paths import Layout, RunPaths
from vmlib.process import Identity
from vmlib.settings import HostSettings

# All that the driver looks at in a kernel, and the fake hypervisor boots anything. Every machine gets a copy.
_KERNEL = b"\x7fELF"
_QUIET = ("trace", "debug", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The directories of one node. `base` must be short: sockets lie below it."""

    base: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.base / "data", self.base / "run")

    @property
    def images(self) -> Path:
        return self.base / "images"

    @property
    def allocs(self) -> Path:
        return self.base / "allocs"

    def make(self) -> None:
        for path in (self.layout.data_dir, self.layout.run_dir, self.images, self.allocs):
            path.mkdir(parents=True, exist_ok=True)
        (self.images / "kernel").write_bytes(_KERNEL)

    def plugin_config(self) -> bytes:
        """The plugin block, as SetConfig carries it."""
        return msgspec.msgpack.encode(
            {
                "data_dir": str(self.layout.data_dir),
                "run_dir": str(self.layout.run_dir),
                "image_paths": [str(self.images)],
            }
        )

    def vmms(self) -> list[Identity]:
        """Those that live."""
        runs = self.layout.runs.iterdir() if self.layout.runs.exists() else ()
        found = (process.load_identity(RunPaths(path).vmm) for path in runs)
        return [who for who in found if who is not None and process.alive(who)]

    def end_machines(self) -> None:
        """End what still runs and remove what the machines left, whatever became of the plugin."""
        machines = Machines(HostSettings(layout=self.layout), lambda _: (Fake(), "by the test"), attach)
        for mark in machines.marks():
            machines.remove(mark.name)
        reap()


@contextlib.contextmanager
def place_at(base: Path) -> Iterator[Place]:
    """Directories in which no machine is left when the block ends; the directories themselves stay."""
    place = Place(base=base)
    place.make()
    try:
        yield place
    finally:
        place.end_machines()


@dataclass(slots=True)
class Plugin:
    """One running plugin process, configured for `place`."""

    place: Place
    process: PluginProcess
    log: list[LogLine]

    @property
    def client(self) -> PluginClient:
        return self.process.client

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        """For a channel of somebody else's."""
        return f"{self.process.line.network}:{self.process.line.address}"

    def complaints(self) -> list[str]:
        """What the plugin logged as a warning or worse."""
        return [str(line) for line in self.log if line.level not in _QUIET]

    async def kill(self) -> None:
        """SIGKILL; its machines go on."""
        self.process.kill()
        await self.process.forget()


@contextlib.asynccontextmanager
async def plugin_at(chv: Path, place: Place, *, env: Mapping[str, str] | None = None) -> AsyncIterator[Plugin]:
    """Launch the executable as the agent does and configure it; ended with the block, killed or not.

    `env` is more of its environment.
    """
    log: list[LogLine] = []
    process = await PluginProcess.launch(
        [str(chv)], on_log=log.append, env={"CHV_ENABLE_FAKE": "1", "TMPDIR": str(place.base), **(env or {})}
    )
    try:
        await process.client.set_config(place.plugin_config())
        yield Plugin(place, process, log)
    finally:
        if process.returncode is None:
            await process.stop(driver_shutdown=True)


@dataclass(slots=True)
class FakeTask:
    """A task of an alloc of its own, with the fake guest told `words`; nothing of it exists before `make`."""

    place: Place
    words: str = ""
    name: str = "fake"
    alloc_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    start: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # another one for each start
    options: Mapping[str, object] = field(default_factory=dict)  # more of its config

    @property
    def id(self) -> str:
        return f"{self.alloc_id}/{self.name}/{self.start}"

    @property
    def alloc_dir(self) -> Path:
        return self.place.allocs / self.alloc_id

    def fifo(self, stream: str) -> Path:
        return self.alloc_dir / "alloc/logs" / f".{self.name}.{stream}.fifo"

    def make(self) -> None:
        """The alloc's directory with the two FIFOs, as the agent makes them."""
        for part in ("alloc/logs", f"{self.name}/local", f"{self.name}/secrets"):
            (self.alloc_dir / part).mkdir(parents=True, exist_ok=True)
        for stream in ("stdout", "stderr"):
            if not self.fifo(stream).exists():
                os.mkfifo(self.fifo(stream), 0o600)

    def remove(self) -> None:
        shutil.rmtree(self.alloc_dir, ignore_errors=True)

    @contextlib.contextmanager
    def reading(self, stream: str) -> Iterator[int]:
        """The log reader's end of a FIFO, not blocking."""
        fd = os.open(self.fifo(stream), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def config(self) -> pb.TaskConfig:
        """All that StartTask carries."""
        options = {
            "kernel": str(self.place.images / "kernel"),
            "cmdline": f"console=ttyS0 {self.words}".strip(),
            "placement": "shared",
            "hypervisor": "fake",
            **self.options,
        }
        return pb.TaskConfig(
            id=self.id,
            name=self.name,
            alloc_id=self.alloc_id,
            alloc_dir=str(self.alloc_dir),
            job_id="fakes",
            job_name="fakes",
            task_group_name="fakes",
            namespace="default",
            stdout_path=str(self.fifo("stdout")),
            stderr_path=str(self.fifo("stderr")),
            msgpack_driver_config=msgspec.msgpack.encode(options),
            resources=pb.Resources(
                allocated_resources=pb.AllocatedTaskResources(
                    cpu=pb.AllocatedCpuResources(cpu_shares=100), memory=pb.AllocatedMemoryResources(memory_mb=64)
                )
            ),
        )
