"""The messages of proto/chv/broker.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import broker_pb2

DESCRIPTOR: FileDescriptor

class ConnInfo(Message):
    DESCRIPTOR: ClassVar[Descriptor]

    class Knock(Message):
        DESCRIPTOR: ClassVar[Descriptor]
        knock: bool
        ack: bool
        error: str
        def __init__(self, *, knock: bool | None = ..., ack: bool | None = ..., error: str | None = ...) -> None: ...

    service_id: int
    network: str
    address: str
    @property
    def knock(self) -> ConnInfo.Knock: ...
    def __init__(
        self,
        *,
        service_id: int | None = ...,
        network: str | None = ...,
        address: str | None = ...,
        knock: ConnInfo.Knock | None = ...,
    ) -> None: ...
