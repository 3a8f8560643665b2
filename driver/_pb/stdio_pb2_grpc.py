"""The services of proto/chv/stdio.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from google.protobuf import empty_pb2
from driver._pb import stdio_pb2


class GRPCStdioStub:
    """Calls plugin.GRPCStdio over a channel."""

    def __init__(self, channel):
        self.StreamStdio = channel.unary_stream(
            "/plugin.GRPCStdio/StreamStdio",
            request_serializer=empty_pb2.Empty.SerializeToString,
            response_deserializer=stdio_pb2.StdioData.FromString,
        )


class GRPCStdioServicer:
    """Answers plugin.GRPCStdio; what is not overridden is UNIMPLEMENTED."""

    async def StreamStdio(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "StreamStdio is not implemented")


def add_GRPCStdioServicer_to_server(servicer, server):
    handlers = {
        "StreamStdio": grpc.unary_stream_rpc_method_handler(
            servicer.StreamStdio,
            request_deserializer=empty_pb2.Empty.FromString,
            response_serializer=stdio_pb2.StdioData.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plugin.GRPCStdio", handlers),))
