"""The services of proto/chv/broker.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import AsyncIterator
from typing import Any

from driver._pb import broker_pb2

class GRPCBrokerStub:
    def __init__(self, channel: Any) -> None: ...
    StartStream: Any  # stream_stream, of grpc or grpc.aio

class GRPCBrokerServicer:
    def StartStream(self, request: AsyncIterator[broker_pb2.ConnInfo], context: Any, /) -> AsyncIterator[broker_pb2.ConnInfo]: ...

def add_GRPCBrokerServicer_to_server(servicer: GRPCBrokerServicer, server: Any) -> None: ...
