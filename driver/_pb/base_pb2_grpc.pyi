"""The services of proto/chv/base.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from driver._pb import base_pb2

class BasePluginStub:
    def __init__(self, channel: Any) -> None: ...
    PluginInfo: Any  # unary_unary, of grpc or grpc.aio
    ConfigSchema: Any  # unary_unary, of grpc or grpc.aio
    SetConfig: Any  # unary_unary, of grpc or grpc.aio

class BasePluginServicer:
    async def PluginInfo(self, request: base_pb2.PluginInfoRequest, context: Any, /) -> base_pb2.PluginInfoResponse: ...
    async def ConfigSchema(self, request: base_pb2.ConfigSchemaRequest, context: Any, /) -> base_pb2.ConfigSchemaResponse: ...
    async def SetConfig(self, request: base_pb2.SetConfigRequest, context: Any, /) -> base_pb2.SetConfigResponse: ...

def add_BasePluginServicer_to_server(servicer: BasePluginServicer, server: Any) -> None: ...
