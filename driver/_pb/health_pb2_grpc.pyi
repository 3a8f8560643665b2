"""The services of proto/chv/health.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from driver._pb import health_pb2

class HealthStub:
    def __init__(self, channel: Any) -> None: ...
    Check: Any  # unary_unary, of grpc or grpc.aio
    List: Any  # unary_unary, of grpc or grpc.aio
    Watch: Any  # unary_stream, of grpc or grpc.aio

class HealthServicer:
    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any, /) -> health_pb2.HealthCheckResponse: ...
    async def List(self, request: health_pb2.HealthListRequest, context: Any, /) -> health_pb2.HealthListResponse: ...
    def Watch(self, request: health_pb2.HealthCheckRequest, context: Any, /) -> AsyncIterator[health_pb2.HealthCheckResponse]: ...

def add_HealthServicer_to_server(servicer: HealthServicer, server: Any) -> None: ...
