"""The services of proto/chv/device.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from driver._pb import device_pb2

class DevicePluginStub:
    def __init__(self, channel: Any) -> None: ...
    Fingerprint: Any  # unary_stream, of grpc or grpc.aio
    Reserve: Any  # unary_unary, of grpc or grpc.aio
    Stats: Any  # unary_stream, of grpc or grpc.aio

class DevicePluginServicer:
    def Fingerprint(self, request: device_pb2.FingerprintRequest, context: Any, /) -> AsyncIterator[device_pb2.FingerprintResponse]: ...
    async def Reserve(self, request: device_pb2.ReserveRequest, context: Any, /) -> device_pb2.ReserveResponse: ...
    def Stats(self, request: device_pb2.StatsRequest, context: Any, /) -> AsyncIterator[device_pb2.StatsResponse]: ...

def add_DevicePluginServicer_to_server(servicer: DevicePluginServicer, server: Any) -> None: ...
