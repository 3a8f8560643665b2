"""The Driver service of Nomad: one short method for each RPC, blocking work off the loop."""

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
import grpc.aio

from driver import links, task_shown, translate
from driver._pb import base_pb2, driver_pb2_grpc
from driver._pb import driver_pb2 as pb
from driver.agents import Agents
from driver.config_plugin import decode_plugin_config
from driver.config_task import decode_task_config
from driver.decode import Complaints
from driver.errors import NotFoundError, UnimplementedError, rpc
from driver.events import EventHub
from driver.execs import Execs
from driver.fingerprint import fingerprint
from driver.handle import Handle
from driver.keys import task_spec
from driver.link_watch import LinkWatch
from driver.namespaces import processes_in
from driver.node import Node
from driver.offload import LaneName, Offload
from driver.signals import asks_to_stop, full_name, short_time, signal_action, stops_at_once, understood
from driver.state import capabilities, exit_result, fingerprint_response, task_event, task_stats, task_status
from driver.stats import host_mhz, mhz_of
from driver.store import Store, Task
from driver.ticker import Ticker
from driver.watch import CoresWatch
from vmlib.cores.service import Notice
from vmlib.disk.nfs import exports_of
from vmlib.errors import HostError, HypervisorError, SpecError, VmError
from vmlib.ladder import ladder, sentence
from vmlib.meter import Meter
from vmlib.resolvers import host_name_servers

log = logging.getLogger(__name__)

_REPROBE_S = 30.0
_EARLIER_SIGNAL_S = 5.0  # for the VMM to answer it
_ANNOUNCE_AGAIN_S = 1.0  # to a keeper that did not hear, which takes as long
_LAST_WORDS_S = 2.0  # for a keeper to tell the end of a VMM that is gone
_TASK_ID = re.compile(r"(?P<alloc>[^/]+)/(?P<task>.+)/(?P<start>[0-9a-f]{8})", re.DOTALL)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[object, object]


class TaskDriver(driver_pb2_grpc.DriverServicer):
    """Everything it knows can be found again from disk and keepers, so it may be killed between any two lines."""

    def __init__(self) -> None:
        self.offload = Offload()
        self.node = Node(self.offload)
        self.events = EventHub()
        self.store = Store(self.events, self.offload, on_event=self._on_keeper_event)
        self.watch = CoresWatch(self._look_at_cores, self._tell_notice, self.node.watched)
        self.links = LinkWatch(self.offload, lambda task, text, kind: self.store.tell(task, text, kind=kind))
        self.ticker: Ticker[pb.TaskStatsResponse] = Ticker(lambda work: self.offload("stats", work))
        self.agents = Agents(self.offload, lambda task, text, kind: self.store.tell(task, text, kind=kind))
        self.execs = Execs(self.agents, self._known)
        self._starting: dict[str, asyncio.Task[Task]] = {}
        self._unwanted: set[str] = set()  # tasks that are to be destroyed as soon as they have started
        self._notes: set[asyncio.Future[None]] = set()
        self._parent = os.getppid()
        self._host_fd: int | None = None
        self._farewell: asyncio.Task[None] | None = None

    async def configure(self, msgpack_config: bytes, nomad: base_pb2.NomadConfig | None) -> None:
        """SetConfig. The same bytes get the same verdict on every launch."""
        self.node.configure(decode_plugin_config(msgpack_config or b"\x80"), nomad)
        self.node.mhz = mhz_of(nomad) or host_mhz()

    # -- what we are ---------------------------------------------------------------------------------------------

    @rpc
    async def Init(self, request: pb.InitRequest, context: Context) -> pb.InitResponse:
        return pb.InitResponse()

    @rpc
    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        await self.node.last_sweep()
        return pb.ShutdownResponse()

    @rpc
    async def TaskConfigSchema(
        self, request: pb.TaskConfigSchemaRequest, context: Context
    ) -> pb.TaskConfigSchemaResponse:
        return pb.TaskConfigSchemaResponse(spec=task_spec())

    @rpc
    async def Capabilities(self, request: pb.CapabilitiesRequest, context: Context) -> pb.CapabilitiesResponse:
        return pb.CapabilitiesResponse(capabilities=capabilities())

    @rpc
    async def Fingerprint(
        self, request: pb.FingerprintRequest, context: Context
    ) -> AsyncIterator[pb.FingerprintResponse]:
        # Only the launch that serves tasks is asked for this; the ones that only check the config must not sweep.
        self.node.start_sweeping()
        self.watch.start()
        self.links.start()
        self._end_with_embedded_host()
        last = fingerprint(self.node.quick_facts())
        yield fingerprint_response(last)
        while True:
            try:
                now = fingerprint(await self.node.facts())
            except Exception:  # this stream must never end: Nomad would ask again a thousand times a second
                log.exception("probe failed")
                now = last
            if now != last:
                last = now
                yield fingerprint_response(now)
            await asyncio.sleep(_REPROBE_S)

    def _end_with_embedded_host(self) -> None:
        """Unlike an agent it never comes back for its machines: when it is killed, they go, and so do we."""
        if self.node.owner != "dev" or self._host_fd is not None:
            return
        loop = asyncio.get_running_loop()
        self._host_fd = os.pidfd_open(self._parent)
        loop.add_reader(self._host_fd, self._on_host_gone, loop)

    def _on_host_gone(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._host_fd is not None
        loop.remove_reader(self._host_fd)
        self._farewell = loop.create_task(self._leave(), name="farewell")

    async def _leave(self) -> None:
        log.warning("the embedded host is gone: ending its %d machines", len(self.store))
        self.agents.close()  # no start waits for one any more
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        for task in self.store.tasks():
            self._let_go(task)
        machines = [task.machine for task in self.store.tasks()]
        await asyncio.gather(*(self.offload("stop", one.destroy) for one in machines), return_exceptions=True)
        os.kill(os.getpid(), signal.SIGTERM)

    @rpc
    async def TaskEvents(self, request: pb.TaskEventsRequest, context: Context) -> AsyncIterator[pb.DriverTaskEvent]:
        async for event in self.events.stream():
            yield task_event(event)

    async def _look_at_cores(self) -> list[Notice]:
        return await self.node.repair_cores()

    def _tell_notice(self, notice: Notice) -> None:
        task = self.store.get(notice.machine_id)
        if task is not None:
            self.store.tell(task, notice.text, kind=notice.kind)
        else:
            # Another plugin's, or one that the agent has not told us of yet: its keeper tells whoever asks.
            self._notes.add(note := asyncio.ensure_future(self.offload("keep", self.node.note, notice)))
            note.add_done_callback(self._notes.discard)
        log.info("%s machine=%s", notice.text, notice.machine_id)

    def _on_keeper_event(self, kind: str) -> None:
        if kind == "rebooted":  # some VMMs make their vCPU threads anew
            self.watch.wake()

    # -- a task's life -------------------------------------------------------------------------------------------

    @rpc
    async def StartTask(self, request: pb.StartTaskRequest, context: Context) -> pb.StartTaskResponse:
        config = request.task
        starting = self._starting.get(config.id)
        task = self.store.get(config.id)
        if task is None or starting is not None:  # a task that waits for its guest is known already
            if starting is None:
                starting = asyncio.create_task(self._start(config), name=f"start {config.id}")
                self._starting[config.id] = starting
                starting.add_done_callback(lambda _: self._starting.pop(config.id, None))
            # A caller that goes away must not leave a machine that nobody knows of.
            task = await asyncio.shield(starting)
        return pb.StartTaskResponse(
            result=pb.StartTaskResponse.SUCCESS, handle=self._task_handle(task), network_override=task.network
        )

    async def _start(self, config: pb.TaskConfig) -> Task:
        complaints = Complaints()
        options = decode_task_config(config.msgpack_driver_config, complaints)
        topology = await self.offload("keep", self.node.core_settings().topology)
        spec = translate.machine_spec(
            config,
            options,
            self.node.config,
            owner=self.node.owner,
            complaints=complaints,
            topology=topology,
            smt=self.node.config.cores.smt,
            in_namespace=await self.offload("keep", processes_in, config.network_isolation_spec.path),
            host_dns=await self.offload("keep", host_name_servers),
        )
        machines = self.node.machines()
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(self.store.announce, config, text, "image")

        await self.offload("image", machines.bring_images, spec, tell)
        machine = await self.offload("remote" if exports_of(spec) else "start", self.node.start, spec)
        network = links.network_override(config, spec.nics, machine.record.nics)
        task = self.store.add(config, machine, network)
        for notice in machine.notices:
            self._tell_notice(notice)
        self.watch.wake()
        record = machine.record
        self.store.tell(
            task,
            f"machine started: {record.reason}, pid {record.vmm_pid}",
            kind="machine started",
            hypervisor=record.hypervisor,
            pid=str(record.vmm_pid),
        )
        try:
            view = await self.offload("keep", machines.cores.view, machine.id, record.vcpus)
        except (OSError, VmError) as exc:  # it runs: a start that fails now would leave it to nobody
            log.warning("cores not known machine=%s: %s", machine.id, exc)
            view = None
        if view is not None:
            pins = dict(enumerate(view.entry.placement.vcpus))
            self.store.tell(
                task,
                view.described,
                kind="cores",
                level=view.entry.level,
                **{f"vcpu{vcpu}": str(cpu) for vcpu, cpu in pins.items()},
            )
        self.links.add(task, fresh=True)
        level = "shared" if view is None else view.entry.level
        if found := translate.lints(config, options, spec.nics, level=level, mhz_floor=self.node.mhz_floor):
            self.store.tell(task, f"lint: {'; '.join(found)}", kind="lint")
        self.agents.add(task)
        if options.wait_for == "agent" and config.id not in self._unwanted:
            try:
                await self.agents.wait_for(task)
            except VmError:
                await self._take_back(task)
                raise
        return task

    def _let_go(self, task: Task) -> None:
        """Before its machine is taken back."""
        self.agents.drop(task.id)
        self.links.drop(task.id)

    async def _take_back(self, task: Task) -> None:
        self._let_go(task)
        await self.offload("stop", task.machine.destroy)
        await self.store.forget(task.id)
        self.watch.wake()

    def _task_handle(self, task: Task) -> pb.TaskHandle:
        return pb.TaskHandle(
            version=1, config=task.config, state=pb.RUNNING, driver_state=self.node.handle(task.machine).encode()
        )

    @rpc
    async def RecoverTask(self, request: pb.RecoverTaskRequest, context: Context) -> pb.RecoverTaskResponse:
        config = request.handle.config
        if self.store.get(config.id) is None:
            handle = Handle.decode(request.handle.driver_state)
            # Reads two small files in the data directory: neither the VMM, its disks nor a network is touched.
            machine = await self.offload("recover", self.node.machines(handle.layout).recover, handle.name, config.id)
            if self.store.get(config.id) is None:  # a second call may have been faster
                task = self.store.add(config, machine)
                self.links.add(task, fresh=False)
                self.agents.add(task)
                if handle.layout != self.node.layout:  # the operator has changed data_dir since
                    try:
                        await self.offload("recover", self.node.cores.adopt, handle.layout.ledger, machine.id)
                    except (OSError, VmError) as exc:  # a refusal now would end a machine that is well
                        log.warning("cores not taken over machine=%s: %s", machine.id, exc)
                self.watch.wake()
        return pb.RecoverTaskResponse()

    @rpc
    async def WaitTask(self, request: pb.WaitTaskRequest, context: Context) -> pb.WaitTaskResponse:
        record = await asyncio.shield(self._known(request.task_id).ended)
        return pb.WaitTaskResponse(result=exit_result(record), err=record.message)

    @rpc
    async def StopTask(self, request: pb.StopTaskRequest, context: Context) -> pb.StopTaskResponse:
        task = self.store.get(request.task_id)
        timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
        if task is None:
            task = await self._find_again(request.task_id)
        if task is None:
            return pb.StopTaskResponse()
        at_once = stops_at_once(request.signal)
        if not at_once and not asks_to_stop(request.signal):
            log.warning(
                "kill_signal %s means no stop to a machine, pressing its power button task=%s", request.signal, task.id
            )
        async with task.stopping:
            await self._stop(task, timeout_s, at_once=at_once)
        return pb.StopTaskResponse()

    async def _stop(self, task: Task, timeout_s: float, *, at_once: bool) -> None:
        advice = "" if at_once else short_time(timeout_s)
        # A dev agent that is stopped asks for this and ends us at once.
        if at_once:
            timeout_s = 0.0
        # A keeper that hangs costs no time: it is told while the guest is asked, and then nothing more.
        announced = asyncio.create_task(self._announce_stop(task, timeout_s), name=f"announce {task.id}")
        steps: list[asyncio.Task[None]] = []
        heard, forced = True, ""
        for rung in ladder(timeout_s):
            if task.ended.done() or not task.machine.running():
                break
            if at_once and not rung.forced:
                continue
            # Nothing is gained by a second press while the first one has no answer, and each would hold a thread.
            if rung.forced or all(step.done() for step in steps):
                # A VMM or a keeper that does not answer gets no more time than one that does.
                lane: LaneName = "ask" if rung.asks else "stop"
                if rung.forced:
                    heard, forced = await announced, sentence(rung, timeout_s, advice=advice)
                climb = functools.partial(task.machine.climb, rung, timeout_s, advice=advice, heard=heard)
                steps.append(asyncio.create_task(self.offload(lane, climb)))
            await asyncio.wait((task.ended,), timeout=rung.wait_s)
        heard = await announced
        if not task.ended.done():
            await asyncio.gather(*steps)
            await asyncio.wait((task.ended,), timeout=_LAST_WORDS_S if heard else 0.0)
        if not task.ended.done() and not task.machine.running():
            # Its keeper hangs, or it would have told the end.
            settle = functools.partial(task.machine.settle, patience_s=_LAST_WORDS_S if heard else 0.0, forced=forced)
            record = await self.offload("stop", settle)
            if record is not None and not task.ended.done():
                task.ended.set_result(record)
        if not task.ended.done():
            raise HostError(f"machine of task {task.id} survives SIGKILL", hint="look at its VMM's state in ps")

    async def _announce_stop(self, task: Task, timeout_s: float) -> bool:
        """Until the keeper hears, which may be the next one, but no longer than the guest has; whether it did."""
        clock = asyncio.get_running_loop()
        stop_by = clock.time() + timeout_s
        while not await self.offload("stop", task.machine.announce_stop, max(0.0, stop_by - clock.time())):
            if clock.time() + 2 * _ANNOUNCE_AGAIN_S > stop_by:
                return False
            await asyncio.wait((task.ended,), timeout=_ANNOUNCE_AGAIN_S)
            if task.ended.done() or not task.machine.running():
                return False
        return True

    @rpc
    async def DestroyTask(self, request: pb.DestroyTaskRequest, context: Context) -> pb.DestroyTaskResponse:
        if (starting := self._starting.get(request.task_id)) is not None:
            self._unwanted.add(request.task_id)
            self.agents.drop(request.task_id)  # so that it does not wait for one
            await asyncio.gather(starting, return_exceptions=True)
            self._unwanted.discard(request.task_id)
        task = self.store.get(request.task_id)
        if task is None:
            await self._destroy_unknown(request.task_id)
            return pb.DestroyTaskResponse()
        if not task.ended.done() and not request.force:
            raise SpecError(f"task {task.id} still runs", hint="stop it first, or use force")
        await self._take_back(task)
        return pb.DestroyTaskResponse()

    async def _find_again(self, task_id: str) -> Task | None:
        """A task that was not recovered may still have its machine, which has a right to its time."""
        if (name := _machine_name(task_id)) is None:
            return None
        if refusal := await self.offload("recover", self.node.refusal):
            raise HostError(refusal)
        machine = await self.offload("recover", self.node.machines().find, name)
        if machine is None or machine.id != task_id:
            return None
        alloc_id, task_name, _ = task_id.split("/", 2)
        return self.store.get(task_id) or self.store.add(
            pb.TaskConfig(id=task_id, alloc_id=alloc_id, name=task_name), machine
        )

    async def _destroy_unknown(self, task_id: str) -> None:
        """After a refused RecoverTask this is all that keeps the old machine from running beside the new one."""
        if (name := _machine_name(task_id)) is not None:
            await self.offload("stop", self.node.machines().destroy, name, task_id)

    # -- looking at a task ---------------------------------------------------------------------------------------

    @rpc
    async def InspectTask(self, request: pb.InspectTaskRequest, context: Context) -> pb.InspectTaskResponse:
        task = self._known(request.task_id)
        return pb.InspectTaskResponse(
            task=task_status(task.id, task.config.name, task.started_at, task.exit_record),
            driver=pb.TaskDriverStatus(attributes=await self.offload("keep", task_shown.attributes, task.machine)),
        )

    @rpc
    async def TaskStats(self, request: pb.TaskStatsRequest, context: Context) -> AsyncIterator[pb.TaskStatsResponse]:
        task = self._known(request.task_id)
        interval_s = max(0.1, request.collection_interval.seconds + request.collection_interval.nanos / 1e9)
        meter = Meter(task.machine.counter().read)

        def take() -> pb.TaskStatsResponse | None:
            used = meter.take()
            return None if used is None else task_stats(task.id, used, mhz=self.node.mhz)

        with self.ticker.stream(take, interval_s) as answers:
            task.ended.add_done_callback(answers.end)
            try:
                async for answer in answers:
                    yield answer
            finally:
                task.ended.remove_done_callback(answers.end)
        # A stream that ends is called again at once; this one waits until the task is forgotten.
        await task.forgotten.wait()

    # -- doing something to a task -------------------------------------------------------------------------------

    @rpc
    async def SignalTask(self, request: pb.SignalTaskRequest, context: Context) -> pb.SignalTaskResponse:
        task = self._known(request.task_id)
        machine = task.machine
        match signal_action(request.signal):
            case "power button":
                await self._ask(task, machine.press_power_button)
            case "pause":
                await self._ask(task, machine.pause)
            case "resume":
                await self._ask(task, machine.resume)
            case "kill":
                await self.offload("stop", machine.kill)
            case "agent":
                name = full_name(request.signal)
                await self.agents.signal(task, name, wake=lambda: self._ask(task, machine.resume_if_paused))
            case None:
                raise SpecError(f"signal {request.signal}: means nothing to a machine, expected one of {understood()}")
        return pb.SignalTaskResponse()

    async def _ask(self, task: Task, question: Callable[[], T]) -> T:
        """One after the other: a VMM that hangs holds one thread, however often it is signalled."""
        try:
            async with asyncio.timeout(_EARLIER_SIGNAL_S):
                await task.asking.acquire()
        except TimeoutError:
            raise HypervisorError("the VMM has not answered an earlier signal yet") from None
        try:
            return await self.offload("ask", question)
        finally:
            task.asking.release()

    @rpc
    async def ExecTask(self, request: pb.ExecTaskRequest, context: Context) -> pb.ExecTaskResponse:
        return await self.execs.run(request)

    @rpc
    async def ExecTaskStreaming(
        self, requests: AsyncIterator[pb.ExecTaskStreamingRequest], context: Context
    ) -> AsyncIterator[pb.ExecTaskStreamingResponse]:
        async with contextlib.aclosing(self.execs.stream(requests)) as answers:
            async for answer in answers:
                yield answer

    @rpc
    async def CreateNetwork(self, request: pb.CreateNetworkRequest, context: Context) -> pb.CreateNetworkResponse:
        raise UnimplementedError("chv makes no networks for groups: Nomad does that")

    @rpc
    async def DestroyNetwork(self, request: pb.DestroyNetworkRequest, context: Context) -> pb.DestroyNetworkResponse:
        raise UnimplementedError("chv makes no networks for groups: Nomad does that")

    def _known(self, task_id: str) -> Task:
        task = self.store.get(task_id)
        if task is None:
            raise NotFoundError(f"task {task_id}: not known to this driver")
        return task


def build() -> TaskDriver:
    """The one driver of this process; needs a running loop."""
    return TaskDriver()


def _machine_name(task_id: str) -> str | None:
    """None for what is no id of a task of Nomad's."""
    parts = _TASK_ID.fullmatch(task_id)
    return None if parts is None else translate.machine_name(parts["alloc"], parts["task"])
