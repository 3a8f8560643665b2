"""The BasePlugin service, the same for every plugin of ours: who we are, what our block looks like, and its content."""

from collections.abc import Awaitable, Callable
from typing import Any

from driver import __version__
from driver._pb import base_pb2 as pb
from driver._pb import base_pb2_grpc, hclspec_pb2
from driver.errors import rpc

API_VERSIONS = ("v0.1.0",)

Configure = Callable[[bytes, pb.NomadConfig | None], Awaitable[None]]


class BasePlugin(base_pb2_grpc.BasePluginServicer):
    """`configure` gets the block's content as MessagePack (empty when there is none) and what the agent says of itself.

    The agent launches a plugin three times and sends the block to two of them, twice to the first and there without a
    word of itself. So `configure` has to take the same values any number of times and to judge them alike each time: by
    what stands there, never by the state of the node. A SpecError from it stops the agent from starting, with its text.
    """

    def __init__(self, *, name: str, spec: hclspec_pb2.Spec, configure: Configure, kind: int = pb.DRIVER) -> None:
        self._name = name
        self._spec = spec
        self._configure = configure
        self._kind = kind

    @rpc
    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Any) -> pb.PluginInfoResponse:
        return pb.PluginInfoResponse(
            type=self._kind, plugin_api_versions=API_VERSIONS, plugin_version=__version__, name=self._name
        )

    @rpc
    async def ConfigSchema(self, request: pb.ConfigSchemaRequest, context: Any) -> pb.ConfigSchemaResponse:
        return pb.ConfigSchemaResponse(spec=self._spec)

    @rpc
    async def SetConfig(self, request: pb.SetConfigRequest, context: Any) -> pb.SetConfigResponse:
        nomad = request.nomad_config if request.HasField("nomad_config") else None
        await self._configure(request.msgpack_config, nomad)
        return pb.SetConfigResponse()
