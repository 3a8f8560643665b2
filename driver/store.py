"""The tasks that this plugin process knows, and the watch over each: a connection to its keeper, not a thread."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from driver._pb import driver_pb2 as pb
from driver.events import EventHub, TaskEvent
from driver.offload import Offload
from vmlib.errors import HypervisorError
from vmlib.kinds import EventKind
from vmlib.record import ExitRecord
from vmlib.running import Machine

log = logging.getLogger(__name__)

_MAX_MESSAGE = 1 << 20
_KEEPER_S = 5.0  # for a keeper to tell the end of its VMM
_RETRY_S = 0.5  # between attempts to find out what became of a keeper
_FOLLOW_AGAIN_S = 0.05  # a keeper that lives and does not talk to us is no reason for a busy loop


@dataclass(slots=True, eq=False)
class Task:
    """One task of Nomad's and its machine."""

    config: pb.TaskConfig
    machine: Machine
    ended: asyncio.Future[ExitRecord]
    started_at: float  # seconds since the epoch
    network: pb.NetworkOverride | None = None  # what StartTask answers of the guest's address
    watches: tuple[asyncio.Task[None], ...] = ()
    stopping: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)  # its VMM something for SignalTask
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def exit_record(self) -> ExitRecord | None:
        return self.ended.result() if self.ended.done() else None


class Store:
    """Tasks by id. Everything in here can be lost: it is found again from disk and keepers."""

    def __init__(self, events: EventHub, offload: Offload, on_event: Callable[[str], None] = lambda _: None) -> None:
        """`on_event` hears the kind of everything that a keeper tells."""
        self._on_event = on_event
        self._tasks: dict[str, Task] = {}
        self._events = events
        self._offload = offload

    def get(self, task_id: str) -> Task | None:
        return self._tasks.get(task_id)

    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, config: pb.TaskConfig, machine: Machine, network: pb.NetworkOverride | None = None) -> Task:
        """Know a task from now on, and watch its machine to its end."""
        ended = asyncio.get_running_loop().create_future()
        task = Task(config, machine, ended, machine.record.started_at, network)
        self._tasks[config.id] = task
        task.watches = (
            asyncio.create_task(self._watch(task), name=f"watch {config.id}"),
            asyncio.create_task(self._look_out(task), name=f"look out {config.id}"),
        )
        return task

    async def forget(self, task_id: str) -> None:
        """Stop watching; WaitTask calls that are still open get an answer."""
        task = self._tasks.pop(task_id, None)
        if task is None:
            return
        for watch in task.watches:
            watch.cancel()
        await asyncio.gather(*task.watches, return_exceptions=True)
        if not task.ended.done():
            record = task.machine.exit_record()
            task.ended.set_result(record or _destroyed(task))
        task.forgotten.set()

    def tell(self, task: Task, message: str, *, kind: EventKind, **annotations: str) -> None:
        """Send an event of ours about a task."""
        self._publish(task.config, message, time.time(), {"kind": kind, **annotations})

    def announce(self, config: pb.TaskConfig, message: str, kind: EventKind) -> None:
        """Send an event of ours about a task that is on its way, and not known here yet."""
        self._publish(config, message, time.time(), {"kind": kind})

    def _publish(self, config: pb.TaskConfig, message: str, at: float, annotations: dict[str, str]) -> None:
        self._events.publish(
            TaskEvent(
                task_id=config.id,
                alloc_id=config.alloc_id,
                task_name=config.name,
                message=message,
                at=at,
                annotations=annotations,
            )
        )

    async def _look_out(self, task: Task) -> None:
        """A keeper that hangs tells nobody that its VMM has ended; the kernel does."""
        while task.machine.running():
            try:
                await _end_of(task.machine.vmm_identity.pid)
            except ProcessLookupError:
                break
        await asyncio.wait((task.ended,), timeout=_KEEPER_S)
        if not task.ended.done():
            await self._settle(task)

    async def _watch(self, task: Task) -> None:
        """Follow the keeper; when it is gone, find out why, and have another one take its place."""
        while not task.ended.done():
            try:
                await self._follow(task)
            except (OSError, ValueError, TypeError) as exc:  # a keeper that is killed may leave half a line
                log.debug("keeper not reached task=%s: %s", task.id, exc)
            if task.ended.done():
                return
            await self._settle(task)

    async def _settle(self, task: Task) -> None:
        """Find out whether a machine has ended; one that has not gets a keeper again."""
        try:
            record = await self._offload("keep", task.machine.settle)
        except Exception as exc:  # the top of a background task: without it WaitTask would never answer
            expected = isinstance(exc, HypervisorError | OSError)
            log.warning("machine has no keeper task=%s: %s", task.id, exc, exc_info=None if expected else exc)
            await asyncio.sleep(_RETRY_S)
            return
        if record is None:
            await asyncio.sleep(_FOLLOW_AGAIN_S)
        elif not task.ended.done():
            task.ended.set_result(record)

    async def _follow(self, task: Task) -> None:
        """Take what the keeper says until it says no more. Raises OSError when it cannot be reached."""
        reader, writer = await asyncio.open_unix_connection(str(task.machine.run.control), limit=_MAX_MESSAGE)
        try:
            writer.write(b'{"op": "subscribe"}\n')
            while line := await reader.readline():
                match json.loads(line):
                    case {"event": {"seq": int(seq), "kind": str(kind), "text": str(text), "at": at}}:
                        self._publish(task.config, text, float(at), {"kind": kind})
                        self._on_event(kind)
                        writer.write(json.dumps({"op": "ack", "seq": seq}).encode() + b"\n")
                    case {"exit": dict(record)}:
                        ended = ExitRecord.from_message(record)
                        if not task.ended.done():  # StopTask may have been faster
                            task.ended.set_result(ended)
                        return
        finally:
            writer.close()


async def _end_of(pid: int) -> None:
    """Wait for the end of a process without a thread. Raises ProcessLookupError when there is none."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    fd = os.pidfd_open(pid)
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _destroyed(task: Task) -> ExitRecord:
    return ExitRecord(id=task.id, at=time.time(), exit_code=137, signal=9, message="the task was destroyed")
