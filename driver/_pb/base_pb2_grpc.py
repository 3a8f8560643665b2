"""The services of proto/chv/base.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from driver._pb import base_pb2


class BasePluginStub:
    """Calls hashicorp.nomad.plugins.base.proto.BasePlugin over a channel."""

    def __init__(self, channel):
        self.PluginInfo = channel.unary_unary(
            "/hashicorp.nomad.plugins.base.proto.BasePlugin/PluginInfo",
            request_serializer=base_pb2.PluginInfoRequest.SerializeToString,
            response_deserializer=base_pb2.PluginInfoResponse.FromString,
        )
        self.ConfigSchema = channel.unary_unary(
            "/hashicorp.nomad.plugins.base.proto.BasePlugin/ConfigSchema",
            request_serializer=base_pb2.ConfigSchemaRequest.SerializeToString,
            response_deserializer=base_pb2.ConfigSchemaResponse.FromString,
        )
        self.SetConfig = channel.unary_unary(
            "/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig",
            request_serializer=base_pb2.SetConfigRequest.SerializeToString,
            response_deserializer=base_pb2.SetConfigResponse.FromString,
        )


class BasePluginServicer:
    """Answers hashicorp.nomad.plugins.base.proto.BasePlugin; what is not overridden is UNIMPLEMENTED."""

    async def PluginInfo(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "PluginInfo is not implemented")

    async def ConfigSchema(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ConfigSchema is not implemented")

    async def SetConfig(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "SetConfig is not implemented")


def add_BasePluginServicer_to_server(servicer, server):
    handlers = {
        "PluginInfo": grpc.unary_unary_rpc_method_handler(
            servicer.PluginInfo,
            request_deserializer=base_pb2.PluginInfoRequest.FromString,
            response_serializer=base_pb2.PluginInfoResponse.SerializeToString,
        ),
        "ConfigSchema": grpc.unary_unary_rpc_method_handler(
            servicer.ConfigSchema,
            request_deserializer=base_pb2.ConfigSchemaRequest.FromString,
            response_serializer=base_pb2.ConfigSchemaResponse.SerializeToString,
        ),
        "SetConfig": grpc.unary_unary_rpc_method_handler(
            servicer.SetConfig,
            request_deserializer=base_pb2.SetConfigRequest.FromString,
            response_serializer=base_pb2.SetConfigResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hashicorp.nomad.plugins.base.proto.BasePlugin", handlers),))
