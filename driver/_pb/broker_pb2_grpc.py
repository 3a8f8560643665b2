"""The services of proto/chv/broker.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from driver._pb import broker_pb2


class GRPCBrokerStub:
    """Calls plugin.GRPCBroker over a channel."""

    def __init__(self, channel):
        self.StartStream = channel.stream_stream(
            "/plugin.GRPCBroker/StartStream",
            request_serializer=broker_pb2.ConnInfo.SerializeToString,
            response_deserializer=broker_pb2.ConnInfo.FromString,
        )


class GRPCBrokerServicer:
    """Answers plugin.GRPCBroker; what is not overridden is UNIMPLEMENTED."""

    async def StartStream(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "StartStream is not implemented")


def add_GRPCBrokerServicer_to_server(servicer, server):
    handlers = {
        "StartStream": grpc.stream_stream_rpc_method_handler(
            servicer.StartStream,
            request_deserializer=broker_pb2.ConnInfo.FromString,
            response_serializer=broker_pb2.ConnInfo.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plugin.GRPCBroker", handlers),))
