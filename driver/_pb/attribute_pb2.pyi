"""The messages of proto/chv/attribute.proto. Made by proto/generate.py; never edited by hand."""

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

class Attribute(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    float_val: float
    int_val: int
    string_val: str
    bool_val: bool
    unit: str
    def __init__(
        self,
        *,
        float_val: float | None = ...,
        int_val: int | None = ...,
        string_val: str | None = ...,
        bool_val: bool | None = ...,
        unit: str | None = ...,
    ) -> None: ...
