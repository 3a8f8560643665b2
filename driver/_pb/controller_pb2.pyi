"""The messages of proto/chv/controller.proto. Made by proto/generate.py; never edited by hand."""

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


DESCRIPTOR: FileDescriptor

class Empty(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...
