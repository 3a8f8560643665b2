"""The services of proto/chv/controller.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from driver._pb import controller_pb2


class GRPCControllerStub:
    """Calls plugin.GRPCController over a channel."""

    def __init__(self, channel):
        self.Shutdown = channel.unary_unary(
            "/plugin.GRPCController/Shutdown",
            request_serializer=controller_pb2.Empty.SerializeToString,
            response_deserializer=controller_pb2.Empty.FromString,
        )


class GRPCControllerServicer:
    """Answers plugin.GRPCController; what is not overridden is UNIMPLEMENTED."""

    async def Shutdown(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Shutdown is not implemented")


def add_GRPCControllerServicer_to_server(servicer, server):
    handlers = {
        "Shutdown": grpc.unary_unary_rpc_method_handler(
            servicer.Shutdown,
            request_deserializer=controller_pb2.Empty.FromString,
            response_serializer=controller_pb2.Empty.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plugin.GRPCController", handlers),))
