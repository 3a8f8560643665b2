"""The messages of proto/chv/stdio.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import stdio_pb2

DESCRIPTOR: FileDescriptor

class StdioData(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    Channel: ClassVar[EnumTypeWrapper]
    INVALID: ClassVar[int]
    STDOUT: ClassVar[int]
    STDERR: ClassVar[int]
    channel: int
    data: bytes
    def __init__(self, *, channel: int | None = ..., data: bytes | None = ...) -> None: ...
