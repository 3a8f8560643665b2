"""The services of proto/chv/controller.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from driver._pb import controller_pb2

class GRPCControllerStub:
    def __init__(self, channel: Any) -> None: ...
    Shutdown: Any  # unary_unary, of grpc or grpc.aio

class GRPCControllerServicer:
    async def Shutdown(self, request: controller_pb2.Empty, context: Any, /) -> controller_pb2.Empty: ...

def add_GRPCControllerServicer_to_server(servicer: GRPCControllerServicer, server: Any) -> None: ...
