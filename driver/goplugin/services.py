"""The gRPC services that every plugin has beside its own: controller, stdio, broker, health."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import empty_pb2

from driver._pb import (
    broker_pb2,
    broker_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    stdio_pb2,
    stdio_pb2_grpc,
)

log = logging.getLogger(__name__)

# The name under which the host asks for the plugin's health; "" is gRPC's own for the server as a whole.
HEALTH_NAMES = ("plugin", "")

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
_UNKNOWN = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Controller(controller_pb2_grpc.GRPCControllerServicer):
    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    async def Shutdown(self, request: controller_pb2.Empty, context: Any) -> controller_pb2.Empty:
        self._stop()  # the answer still goes out: the server waits for calls in flight
        return controller_pb2.Empty()


class Stdio(stdio_pb2_grpc.GRPCStdioServicer):
    async def StreamStdio(self, request: empty_pb2.Empty, context: Any) -> AsyncIterator[stdio_pb2.StdioData]:
        """There is nothing to send: what is printed here leads nowhere. The stream stays until it is cancelled."""
        await asyncio.Event().wait()
        yield stdio_pb2.StdioData()  # never reached; makes this a stream


class Broker(broker_pb2_grpc.GRPCBrokerServicer):
    async def StartStream(
        self, requests: AsyncIterator[broker_pb2.ConnInfo], context: Any
    ) -> AsyncIterator[broker_pb2.ConnInfo]:
        """We open no connections of our own, so whatever is said here needs no answer."""
        answers: list[broker_pb2.ConnInfo] = []
        async for offer in requests:
            log.debug("host offers a connection that nobody uses service_id=%d", offer.service_id)
        for answer in answers:
            yield answer


class Health(health_pb2_grpc.HealthServicer):
    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if request.service not in HEALTH_NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service {request.service!r}: not known")
        return _SERVING

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(HEALTH_NAMES, _SERVING))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield _SERVING if request.service in HEALTH_NAMES else _UNKNOWN
        await asyncio.Event().wait()


def register(server: Any, stop: Callable[[], None]) -> None:
    """Add all of them; `stop` is called when the host wants the process to end."""
    controller_pb2_grpc.add_GRPCControllerServicer_to_server(Controller(stop), server)
    stdio_pb2_grpc.add_GRPCStdioServicer_to_server(Stdio(), server)
    broker_pb2_grpc.add_GRPCBrokerServicer_to_server(Broker(), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
