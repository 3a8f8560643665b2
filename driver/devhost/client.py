"""Every RPC of a driver plugin as one method, and its failures in Nomad's words."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from driver._pb import (
    base_pb2,
    base_pb2_grpc,
    broker_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    driver_pb2_grpc,
    hclspec_pb2,
    recoverable_error_pb2,
    status_pb2,
    stdio_pb2,
    stdio_pb2_grpc,
)
from driver._pb import driver_pb2 as pb

Answer = TypeVar("Answer", bound=Message)

API_VERSION = "v0.1.0"
_DETAILS_KEY = "grpc-status-details-bin"
_GO_NAMES = {grpc.StatusCode.CANCELLED: "Canceled", grpc.StatusCode.OK: "OK"}
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class RpcError(Exception):
    """A call that was answered with a status other than OK. The text is Nomad's."""

    def __init__(self, code: grpc.StatusCode, details: str, *, recoverable: bool) -> None:
        super().__init__(f"rpc error: code = {go_name(code)} desc = {details}")
        self.code = code
        self.details = details
        self.recoverable = recoverable


def go_name(code: grpc.StatusCode) -> str:
    """`FailedPrecondition`, as Go writes it."""
    return _GO_NAMES.get(code) or "".join(word.capitalize() for word in code.name.split("_"))


def rpc_error(exc: grpc.aio.AioRpcError) -> RpcError:
    return RpcError(exc.code(), exc.details() or "", recoverable=is_recoverable(exc.trailing_metadata()))


def is_recoverable(metadata: Any) -> bool:
    """Whether the trailing metadata carries the detail that makes Nomad try again."""
    for key, value in metadata or ():
        if key == _DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                found = recoverable_error_pb2.RecoverableError()
                if detail.Is(found.DESCRIPTOR) and detail.Unpack(found) and found.recoverable:
                    return True
    return False


def duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


class PluginClient:
    """Calls one plugin process. Raises RpcError for every status but OK."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._base = base_pb2_grpc.BasePluginStub(self.channel)
        self._driver = driver_pb2_grpc.DriverStub(self.channel)
        self._controller = controller_pb2_grpc.GRPCControllerStub(self.channel)
        self._stdio = stdio_pb2_grpc.GRPCStdioStub(self.channel)
        self._broker = broker_pb2_grpc.GRPCBrokerStub(self.channel)

    async def close(self) -> None:
        await self.channel.close(None)

    # -- base ------------------------------------------------------------------------------------------------------

    async def plugin_info(self) -> base_pb2.PluginInfoResponse:
        return await _unary(self._base.PluginInfo, base_pb2.PluginInfoRequest(), base_pb2.PluginInfoResponse)

    async def config_schema(self) -> hclspec_pb2.Spec | None:
        answer = await _unary(self._base.ConfigSchema, base_pb2.ConfigSchemaRequest(), base_pb2.ConfigSchemaResponse)
        return answer.spec if answer.HasField("spec") else None

    async def set_config(self, config: bytes, nomad: base_pb2.NomadConfig | None = None) -> None:
        request = base_pb2.SetConfigRequest(msgpack_config=config, nomad_config=nomad, plugin_api_version=API_VERSION)
        await _unary(self._base.SetConfig, request, base_pb2.SetConfigResponse)

    # -- the driver itself -----------------------------------------------------------------------------------------

    async def init(self) -> None:
        await _unary(self._driver.Init, pb.InitRequest(), pb.InitResponse)

    async def shutdown_driver(self, *, timeout_s: float = 2.0) -> None:
        await _unary(self._driver.Shutdown, pb.ShutdownRequest(), pb.ShutdownResponse, timeout_s)

    async def shutdown(self, *, timeout_s: float = 2.0) -> None:
        """GRPCController: the process is to end."""
        await _unary(self._controller.Shutdown, controller_pb2.Empty(), controller_pb2.Empty, timeout_s)

    async def task_config_schema(self) -> hclspec_pb2.Spec:
        return (
            await _unary(self._driver.TaskConfigSchema, pb.TaskConfigSchemaRequest(), pb.TaskConfigSchemaResponse)
        ).spec

    async def capabilities(self) -> pb.DriverCapabilities:
        return (await _unary(self._driver.Capabilities, pb.CapabilitiesRequest(), pb.CapabilitiesResponse)).capabilities

    def fingerprint(self) -> AsyncGenerator[pb.FingerprintResponse, None]:
        return _stream(self._driver.Fingerprint(pb.FingerprintRequest()))

    def task_events(self) -> AsyncGenerator[pb.DriverTaskEvent, None]:
        return _stream(self._driver.TaskEvents(pb.TaskEventsRequest()))

    def stdio(self) -> AsyncGenerator[stdio_pb2.StdioData, None]:
        return _stream(self._stdio.StreamStdio(empty_pb2.Empty()))

    def broker(self) -> AsyncGenerator[Any, None]:
        return _stream(self._broker.StartStream())

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def start_task(self, config: pb.TaskConfig) -> pb.StartTaskResponse:
        return await _unary(self._driver.StartTask, pb.StartTaskRequest(task=config), pb.StartTaskResponse)

    async def recover_task(self, handle: pb.TaskHandle) -> None:
        await _unary(self._driver.RecoverTask, pb.RecoverTaskRequest(handle=handle), pb.RecoverTaskResponse)

    async def wait_task(self, task_id: str) -> pb.WaitTaskResponse:
        return await _unary(self._driver.WaitTask, pb.WaitTaskRequest(task_id=task_id), pb.WaitTaskResponse)

    async def stop_task(self, task_id: str, *, timeout_s: float = 5.0, signal: str = "") -> None:
        request = pb.StopTaskRequest(task_id=task_id, timeout=duration(timeout_s), signal=signal)
        await _unary(self._driver.StopTask, request, pb.StopTaskResponse)

    async def destroy_task(self, task_id: str, *, force: bool = True) -> None:
        await _unary(
            self._driver.DestroyTask, pb.DestroyTaskRequest(task_id=task_id, force=force), pb.DestroyTaskResponse
        )

    async def inspect_task(self, task_id: str) -> pb.InspectTaskResponse:
        return await _unary(self._driver.InspectTask, pb.InspectTaskRequest(task_id=task_id), pb.InspectTaskResponse)

    def task_stats(self, task_id: str, *, interval_s: float = 1.0) -> AsyncGenerator[pb.TaskStats, None]:
        request = pb.TaskStatsRequest(task_id=task_id, collection_interval=duration(interval_s))
        return _stats(self._driver.TaskStats(request))

    async def signal_task(self, task_id: str, signal: str) -> None:
        await _unary(
            self._driver.SignalTask, pb.SignalTaskRequest(task_id=task_id, signal=signal), pb.SignalTaskResponse
        )

    async def exec_task(self, task_id: str, command: list[str], *, timeout_s: float = 30.0) -> pb.ExecTaskResponse:
        request = pb.ExecTaskRequest(task_id=task_id, command=command, timeout=duration(timeout_s))
        return await _unary(self._driver.ExecTask, request, pb.ExecTaskResponse)

    def exec_task_streaming(
        self, requests: AsyncIterator[pb.ExecTaskStreamingRequest]
    ) -> AsyncGenerator[pb.ExecTaskStreamingResponse, None]:
        return _stream(self._driver.ExecTaskStreaming(requests))


async def _unary(method: Any, request: Message, answer: type[Answer], timeout_s: float | None = None) -> Answer:
    try:
        found = await method(request, timeout=timeout_s)
        assert isinstance(found, answer)
        return found
    except grpc.aio.AioRpcError as exc:
        raise rpc_error(exc) from exc
    except asyncio.CancelledError as exc:
        # A channel that was closed beneath a call cancels it; our own task was not asked to stop.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RpcError(grpc.StatusCode.CANCELLED, "grpc: the client connection is closing", recoverable=False) from exc


async def _stream(call: Any) -> AsyncGenerator[Any, None]:
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError as exc:
        raise rpc_error(exc) from exc
    finally:
        call.cancel()


async def _stats(call: Any) -> AsyncGenerator[pb.TaskStats, None]:
    async with contextlib.aclosing(_stream(call)) as answers:
        async for answer in answers:
            yield answer.stats
