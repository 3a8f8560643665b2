"""The services of proto/chv/device.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from driver._pb import device_pb2


class DevicePluginStub:
    """Calls hashicorp.nomad.plugins.device.DevicePlugin over a channel."""

    def __init__(self, channel):
        self.Fingerprint = channel.unary_stream(
            "/hashicorp.nomad.plugins.device.DevicePlugin/Fingerprint",
            request_serializer=device_pb2.FingerprintRequest.SerializeToString,
            response_deserializer=device_pb2.FingerprintResponse.FromString,
        )
        self.Reserve = channel.unary_unary(
            "/hashicorp.nomad.plugins.device.DevicePlugin/Reserve",
            request_serializer=device_pb2.ReserveRequest.SerializeToString,
            response_deserializer=device_pb2.ReserveResponse.FromString,
        )
        self.Stats = channel.unary_stream(
            "/hashicorp.nomad.plugins.device.DevicePlugin/Stats",
            request_serializer=device_pb2.StatsRequest.SerializeToString,
            response_deserializer=device_pb2.StatsResponse.FromString,
        )


class DevicePluginServicer:
    """Answers hashicorp.nomad.plugins.device.DevicePlugin; what is not overridden is UNIMPLEMENTED."""

    async def Fingerprint(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Fingerprint is not implemented")

    async def Reserve(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Reserve is not implemented")

    async def Stats(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Stats is not implemented")


def add_DevicePluginServicer_to_server(servicer, server):
    handlers = {
        "Fingerprint": grpc.unary_stream_rpc_method_handler(
            servicer.Fingerprint,
            request_deserializer=device_pb2.FingerprintRequest.FromString,
            response_serializer=device_pb2.FingerprintResponse.SerializeToString,
        ),
        "Reserve": grpc.unary_unary_rpc_method_handler(
            servicer.Reserve,
            request_deserializer=device_pb2.ReserveRequest.FromString,
            response_serializer=device_pb2.ReserveResponse.SerializeToString,
        ),
        "Stats": grpc.unary_stream_rpc_method_handler(
            servicer.Stats,
            request_deserializer=device_pb2.StatsRequest.FromString,
            response_serializer=device_pb2.StatsResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hashicorp.nomad.plugins.device.DevicePlugin", handlers),))
