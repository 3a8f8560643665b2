"""The messages of proto/chv/status.proto. Made by proto/generate.py; never edited by hand."""

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

from google.protobuf import any_pb2

DESCRIPTOR: FileDescriptor

class Status(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    code: int
    message: str
    @property
    def details(self) -> RepeatedCompositeFieldContainer[any_pb2.Any]: ...
    def __init__(
        self,
        *,
        code: int | None = ...,
        message: str | None = ...,
        details: Iterable[any_pb2.Any] | None = ...,
    ) -> None: ...
