"""The messages of proto/chv/stats.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import stats_pb2
from google.protobuf import wrappers_pb2

DESCRIPTOR: FileDescriptor

class StatObject(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def nested(self) -> MessageMap[str, StatObject]: ...
    @property
    def attributes(self) -> MessageMap[str, StatValue]: ...
    def __init__(
        self,
        *,
        nested: Mapping[str, StatObject] | None = ...,
        attributes: Mapping[str, StatValue] | None = ...,
    ) -> None: ...

class StatValue(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def float_numerator_val(self) -> wrappers_pb2.DoubleValue: ...
    @property
    def float_denominator_val(self) -> wrappers_pb2.DoubleValue: ...
    @property
    def int_numerator_val(self) -> wrappers_pb2.Int64Value: ...
    @property
    def int_denominator_val(self) -> wrappers_pb2.Int64Value: ...
    @property
    def string_val(self) -> wrappers_pb2.StringValue: ...
    @property
    def bool_val(self) -> wrappers_pb2.BoolValue: ...
    unit: str
    desc: str
    def __init__(
        self,
        *,
        float_numerator_val: wrappers_pb2.DoubleValue | None = ...,
        float_denominator_val: wrappers_pb2.DoubleValue | None = ...,
        int_numerator_val: wrappers_pb2.Int64Value | None = ...,
        int_denominator_val: wrappers_pb2.Int64Value | None = ...,
        string_val: wrappers_pb2.StringValue | None = ...,
        bool_val: wrappers_pb2.BoolValue | None = ...,
        unit: str | None = ...,
        desc: str | None = ...,
    ) -> None: ...
