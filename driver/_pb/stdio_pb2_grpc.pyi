"""The services of proto/chv/stdio.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2
from driver._pb import stdio_pb2

class GRPCStdioStub:
    def __init__(self, channel: Any) -> None: ...
    StreamStdio: Any  # unary_stream, of grpc or grpc.aio

class GRPCStdioServicer:
    def StreamStdio(self, request: empty_pb2.Empty, context: Any, /) -> AsyncIterator[stdio_pb2.StdioData]: ...

def add_GRPCStdioServicer_to_server(servicer: GRPCStdioServicer, server: Any) -> None: ...
