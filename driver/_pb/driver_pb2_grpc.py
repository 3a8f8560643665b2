"""The services of proto/chv/driver.proto. Made by proto/generate.py; never edited by hand."""

import grpc

from driver._pb import driver_pb2


class DriverStub:
    """Calls hashicorp.nomad.plugins.drivers.proto.Driver over a channel."""

    def __init__(self, channel):
        self.Init = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/Init",
            request_serializer=driver_pb2.InitRequest.SerializeToString,
            response_deserializer=driver_pb2.InitResponse.FromString,
        )
        self.TaskConfigSchema = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/TaskConfigSchema",
            request_serializer=driver_pb2.TaskConfigSchemaRequest.SerializeToString,
            response_deserializer=driver_pb2.TaskConfigSchemaResponse.FromString,
        )
        self.Capabilities = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/Capabilities",
            request_serializer=driver_pb2.CapabilitiesRequest.SerializeToString,
            response_deserializer=driver_pb2.CapabilitiesResponse.FromString,
        )
        self.Fingerprint = channel.unary_stream(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/Fingerprint",
            request_serializer=driver_pb2.FingerprintRequest.SerializeToString,
            response_deserializer=driver_pb2.FingerprintResponse.FromString,
        )
        self.RecoverTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/RecoverTask",
            request_serializer=driver_pb2.RecoverTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.RecoverTaskResponse.FromString,
        )
        self.StartTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/StartTask",
            request_serializer=driver_pb2.StartTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.StartTaskResponse.FromString,
        )
        self.WaitTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/WaitTask",
            request_serializer=driver_pb2.WaitTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.WaitTaskResponse.FromString,
        )
        self.StopTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/StopTask",
            request_serializer=driver_pb2.StopTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.StopTaskResponse.FromString,
        )
        self.DestroyTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/DestroyTask",
            request_serializer=driver_pb2.DestroyTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.DestroyTaskResponse.FromString,
        )
        self.InspectTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/InspectTask",
            request_serializer=driver_pb2.InspectTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.InspectTaskResponse.FromString,
        )
        self.TaskStats = channel.unary_stream(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/TaskStats",
            request_serializer=driver_pb2.TaskStatsRequest.SerializeToString,
            response_deserializer=driver_pb2.TaskStatsResponse.FromString,
        )
        self.TaskEvents = channel.unary_stream(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/TaskEvents",
            request_serializer=driver_pb2.TaskEventsRequest.SerializeToString,
            response_deserializer=driver_pb2.DriverTaskEvent.FromString,
        )
        self.Shutdown = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/Shutdown",
            request_serializer=driver_pb2.ShutdownRequest.SerializeToString,
            response_deserializer=driver_pb2.ShutdownResponse.FromString,
        )
        self.SignalTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/SignalTask",
            request_serializer=driver_pb2.SignalTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.SignalTaskResponse.FromString,
        )
        self.ExecTask = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/ExecTask",
            request_serializer=driver_pb2.ExecTaskRequest.SerializeToString,
            response_deserializer=driver_pb2.ExecTaskResponse.FromString,
        )
        self.ExecTaskStreaming = channel.stream_stream(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/ExecTaskStreaming",
            request_serializer=driver_pb2.ExecTaskStreamingRequest.SerializeToString,
            response_deserializer=driver_pb2.ExecTaskStreamingResponse.FromString,
        )
        self.CreateNetwork = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/CreateNetwork",
            request_serializer=driver_pb2.CreateNetworkRequest.SerializeToString,
            response_deserializer=driver_pb2.CreateNetworkResponse.FromString,
        )
        self.DestroyNetwork = channel.unary_unary(
            "/hashicorp.nomad.plugins.drivers.proto.Driver/DestroyNetwork",
            request_serializer=driver_pb2.DestroyNetworkRequest.SerializeToString,
            response_deserializer=driver_pb2.DestroyNetworkResponse.FromString,
        )


class DriverServicer:
    """Answers hashicorp.nomad.plugins.drivers.proto.Driver; what is not overridden is UNIMPLEMENTED."""

    async def Init(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Init is not implemented")

    async def TaskConfigSchema(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "TaskConfigSchema is not implemented")

    async def Capabilities(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Capabilities is not implemented")

    async def Fingerprint(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Fingerprint is not implemented")

    async def RecoverTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "RecoverTask is not implemented")

    async def StartTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "StartTask is not implemented")

    async def WaitTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "WaitTask is not implemented")

    async def StopTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "StopTask is not implemented")

    async def DestroyTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "DestroyTask is not implemented")

    async def InspectTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "InspectTask is not implemented")

    async def TaskStats(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "TaskStats is not implemented")

    async def TaskEvents(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "TaskEvents is not implemented")

    async def Shutdown(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Shutdown is not implemented")

    async def SignalTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "SignalTask is not implemented")

    async def ExecTask(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ExecTask is not implemented")

    async def ExecTaskStreaming(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ExecTaskStreaming is not implemented")

    async def CreateNetwork(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "CreateNetwork is not implemented")

    async def DestroyNetwork(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "DestroyNetwork is not implemented")


def add_DriverServicer_to_server(servicer, server):
    handlers = {
        "Init": grpc.unary_unary_rpc_method_handler(
            servicer.Init,
            request_deserializer=driver_pb2.InitRequest.FromString,
            response_serializer=driver_pb2.InitResponse.SerializeToString,
        ),
        "TaskConfigSchema": grpc.unary_unary_rpc_method_handler(
            servicer.TaskConfigSchema,
            request_deserializer=driver_pb2.TaskConfigSchemaRequest.FromString,
            response_serializer=driver_pb2.TaskConfigSchemaResponse.SerializeToString,
        ),
        "Capabilities": grpc.unary_unary_rpc_method_handler(
            servicer.Capabilities,
            request_deserializer=driver_pb2.CapabilitiesRequest.FromString,
            response_serializer=driver_pb2.CapabilitiesResponse.SerializeToString,
        ),
        "Fingerprint": grpc.unary_stream_rpc_method_handler(
            servicer.Fingerprint,
            request_deserializer=driver_pb2.FingerprintRequest.FromString,
            response_serializer=driver_pb2.FingerprintResponse.SerializeToString,
        ),
        "RecoverTask": grpc.unary_unary_rpc_method_handler(
            servicer.RecoverTask,
            request_deserializer=driver_pb2.RecoverTaskRequest.FromString,
            response_serializer=driver_pb2.RecoverTaskResponse.SerializeToString,
        ),
        "StartTask": grpc.unary_unary_rpc_method_handler(
            servicer.StartTask,
            request_deserializer=driver_pb2.StartTaskRequest.FromString,
            response_serializer=driver_pb2.StartTaskResponse.SerializeToString,
        ),
        "WaitTask": grpc.unary_unary_rpc_method_handler(
            servicer.WaitTask,
            request_deserializer=driver_pb2.WaitTaskRequest.FromString,
            response_serializer=driver_pb2.WaitTaskResponse.SerializeToString,
        ),
        "StopTask": grpc.unary_unary_rpc_method_handler(
            servicer.StopTask,
            request_deserializer=driver_pb2.StopTaskRequest.FromString,
            response_serializer=driver_pb2.StopTaskResponse.SerializeToString,
        ),
        "DestroyTask": grpc.unary_unary_rpc_method_handler(
            servicer.DestroyTask,
            request_deserializer=driver_pb2.DestroyTaskRequest.FromString,
            response_serializer=driver_pb2.DestroyTaskResponse.SerializeToString,
        ),
        "InspectTask": grpc.unary_unary_rpc_method_handler(
            servicer.InspectTask,
            request_deserializer=driver_pb2.InspectTaskRequest.FromString,
            response_serializer=driver_pb2.InspectTaskResponse.SerializeToString,
        ),
        "TaskStats": grpc.unary_stream_rpc_method_handler(
            servicer.TaskStats,
            request_deserializer=driver_pb2.TaskStatsRequest.FromString,
            response_serializer=driver_pb2.TaskStatsResponse.SerializeToString,
        ),
        "TaskEvents": grpc.unary_stream_rpc_method_handler(
            servicer.TaskEvents,
            request_deserializer=driver_pb2.TaskEventsRequest.FromString,
            response_serializer=driver_pb2.DriverTaskEvent.SerializeToString,
        ),
        "Shutdown": grpc.unary_unary_rpc_method_handler(
            servicer.Shutdown,
            request_deserializer=driver_pb2.ShutdownRequest.FromString,
            response_serializer=driver_pb2.ShutdownResponse.SerializeToString,
        ),
        "SignalTask": grpc.unary_unary_rpc_method_handler(
            servicer.SignalTask,
            request_deserializer=driver_pb2.SignalTaskRequest.FromString,
            response_serializer=driver_pb2.SignalTaskResponse.SerializeToString,
        ),
        "ExecTask": grpc.unary_unary_rpc_method_handler(
            servicer.ExecTask,
            request_deserializer=driver_pb2.ExecTaskRequest.FromString,
            response_serializer=driver_pb2.ExecTaskResponse.SerializeToString,
        ),
        "ExecTaskStreaming": grpc.stream_stream_rpc_method_handler(
            servicer.ExecTaskStreaming,
            request_deserializer=driver_pb2.ExecTaskStreamingRequest.FromString,
            response_serializer=driver_pb2.ExecTaskStreamingResponse.SerializeToString,
        ),
        "CreateNetwork": grpc.unary_unary_rpc_method_handler(
            servicer.CreateNetwork,
            request_deserializer=driver_pb2.CreateNetworkRequest.FromString,
            response_serializer=driver_pb2.CreateNetworkResponse.SerializeToString,
        ),
        "DestroyNetwork": grpc.unary_unary_rpc_method_handler(
            servicer.DestroyNetwork,
            request_deserializer=driver_pb2.DestroyNetworkRequest.FromString,
            response_serializer=driver_pb2.DestroyNetworkResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hashicorp.nomad.plugins.drivers.proto.Driver", handlers),))
