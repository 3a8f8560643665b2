"""The messages of proto/chv/health.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import health_pb2

DESCRIPTOR: FileDescriptor

class HealthCheckRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    service: str
    def __init__(self, *, service: str | None = ...) -> None: ...

class HealthCheckResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    ServingStatus: ClassVar[EnumTypeWrapper]
    UNKNOWN: ClassVar[int]
    SERVING: ClassVar[int]
    NOT_SERVING: ClassVar[int]
    SERVICE_UNKNOWN: ClassVar[int]
    status: int
    def __init__(self, *, status: int | None = ...) -> None: ...

class HealthListRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class HealthListResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def statuses(self) -> MessageMap[str, HealthCheckResponse]: ...
    def __init__(self, *, statuses: Mapping[str, HealthCheckResponse] | None = ...) -> None: ...
