"""The messages of proto/chv/hclspec.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import hclspec_pb2

DESCRIPTOR: FileDescriptor

class Spec(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def object(self) -> Object: ...
    @property
    def array(self) -> Array: ...
    @property
    def Attr(self) -> hclspec_pb2.Attr: ...
    @property
    def block_value(self) -> Block: ...
    @property
    def block_attrs(self) -> BlockAttrs: ...
    @property
    def block_list(self) -> BlockList: ...
    @property
    def block_set(self) -> BlockSet: ...
    @property
    def block_map(self) -> BlockMap: ...
    @property
    def default(self) -> Default: ...
    @property
    def literal(self) -> Literal: ...
    def __init__(
        self,
        *,
        object: Object | None = ...,
        array: Array | None = ...,
        Attr: hclspec_pb2.Attr | None = ...,
        block_value: Block | None = ...,
        block_attrs: BlockAttrs | None = ...,
        block_list: BlockList | None = ...,
        block_set: BlockSet | None = ...,
        block_map: BlockMap | None = ...,
        default: Default | None = ...,
        literal: Literal | None = ...,
    ) -> None: ...

class Attr(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    type: str
    required: bool
    def __init__(
        self,
        *,
        name: str | None = ...,
        type: str | None = ...,
        required: bool | None = ...,
    ) -> None: ...

class Block(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    required: bool
    @property
    def nested(self) -> Spec: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        required: bool | None = ...,
        nested: Spec | None = ...,
    ) -> None: ...

class BlockAttrs(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    type: str
    required: bool
    def __init__(
        self,
        *,
        name: str | None = ...,
        type: str | None = ...,
        required: bool | None = ...,
    ) -> None: ...

class BlockList(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    min_items: int
    max_items: int
    @property
    def nested(self) -> Spec: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        min_items: int | None = ...,
        max_items: int | None = ...,
        nested: Spec | None = ...,
    ) -> None: ...

class BlockSet(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    min_items: int
    max_items: int
    @property
    def nested(self) -> Spec: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        min_items: int | None = ...,
        max_items: int | None = ...,
        nested: Spec | None = ...,
    ) -> None: ...

class BlockMap(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    name: str
    @property
    def labels(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def nested(self) -> Spec: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        labels: Iterable[str] | None = ...,
        nested: Spec | None = ...,
    ) -> None: ...

class Literal(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    value: str
    def __init__(self, *, value: str | None = ...) -> None: ...

class Default(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def primary(self) -> Spec: ...
    @property
    def default(self) -> Spec: ...
    def __init__(self, *, primary: Spec | None = ..., default: Spec | None = ...) -> None: ...

class Object(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def attributes(self) -> MessageMap[str, Spec]: ...
    def __init__(self, *, attributes: Mapping[str, Spec] | None = ...) -> None: ...

class Array(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def values(self) -> RepeatedCompositeFieldContainer[Spec]: ...
    def __init__(self, *, values: Iterable[Spec] | None = ...) -> None: ...
