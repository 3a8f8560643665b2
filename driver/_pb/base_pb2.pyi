"""The messages of proto/chv/base.proto. Made by proto/generate.py; never edited by hand."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.internal.containers import (
    MessageMap,
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
    ScalarMap,
)
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from driver._pb import base_pb2
from driver._pb import hclspec_pb2

DESCRIPTOR: FileDescriptor

PluginType: EnumTypeWrapper
UNKNOWN: int
DRIVER: int
DEVICE: int

CoreGrade: EnumTypeWrapper
Performance: int
Efficiency: int

class PluginInfoRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class PluginInfoResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    type: int
    @property
    def plugin_api_versions(self) -> RepeatedScalarFieldContainer[str]: ...
    plugin_version: str
    name: str
    def __init__(
        self,
        *,
        type: int | None = ...,
        plugin_api_versions: Iterable[str] | None = ...,
        plugin_version: str | None = ...,
        name: str | None = ...,
    ) -> None: ...

class ConfigSchemaRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class ConfigSchemaResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def spec(self) -> hclspec_pb2.Spec: ...
    def __init__(self, *, spec: hclspec_pb2.Spec | None = ...) -> None: ...

class SetConfigRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    msgpack_config: bytes
    @property
    def nomad_config(self) -> NomadConfig: ...
    plugin_api_version: str
    def __init__(
        self,
        *,
        msgpack_config: bytes | None = ...,
        nomad_config: NomadConfig | None = ...,
        plugin_api_version: str | None = ...,
    ) -> None: ...

class NomadConfig(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def driver(self) -> NomadDriverConfig: ...
    def __init__(self, *, driver: NomadDriverConfig | None = ...) -> None: ...

class NomadDriverConfig(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    ClientMaxPort: int
    ClientMinPort: int
    @property
    def Topology(self) -> ClientTopology: ...
    def __init__(
        self,
        *,
        ClientMaxPort: int | None = ...,
        ClientMinPort: int | None = ...,
        Topology: ClientTopology | None = ...,
    ) -> None: ...

class ClientTopology(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def node_ids(self) -> RepeatedScalarFieldContainer[int]: ...
    @property
    def distances(self) -> ClientTopologySLIT: ...
    @property
    def cores(self) -> RepeatedCompositeFieldContainer[ClientTopologyCore]: ...
    override_total_compute: int
    override_withold_compute: int
    def __init__(
        self,
        *,
        node_ids: Iterable[int] | None = ...,
        distances: ClientTopologySLIT | None = ...,
        cores: Iterable[ClientTopologyCore] | None = ...,
        override_total_compute: int | None = ...,
        override_withold_compute: int | None = ...,
    ) -> None: ...

class ClientTopologySLIT(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    dimension: int
    @property
    def values(self) -> RepeatedScalarFieldContainer[int]: ...
    def __init__(self, *, dimension: int | None = ..., values: Iterable[int] | None = ...) -> None: ...

class ClientTopologyCore(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    socket_id: int
    node_id: int
    core_id: int
    core_grade: int
    disable: bool
    base_speed: int
    max_speed: int
    guess_speed: int
    def __init__(
        self,
        *,
        socket_id: int | None = ...,
        node_id: int | None = ...,
        core_id: int | None = ...,
        core_grade: int | None = ...,
        disable: bool | None = ...,
        base_speed: int | None = ...,
        max_speed: int | None = ...,
        guess_speed: int | None = ...,
    ) -> None: ...

class SetConfigResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...
