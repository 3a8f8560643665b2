"""The messages of proto/chv/device.proto. Made by proto/generate.py; never edited by hand."""

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

from driver._pb import attribute_pb2
from driver._pb import device_pb2
from driver._pb import stats_pb2
from google.protobuf import duration_pb2
from google.protobuf import timestamp_pb2

DESCRIPTOR: FileDescriptor

class FingerprintRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class FingerprintResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def device_group(self) -> RepeatedCompositeFieldContainer[DeviceGroup]: ...
    def __init__(self, *, device_group: Iterable[DeviceGroup] | None = ...) -> None: ...

class DeviceGroup(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    vendor: str
    device_type: str
    device_name: str
    @property
    def devices(self) -> RepeatedCompositeFieldContainer[DetectedDevice]: ...
    @property
    def attributes(self) -> MessageMap[str, attribute_pb2.Attribute]: ...
    def __init__(
        self,
        *,
        vendor: str | None = ...,
        device_type: str | None = ...,
        device_name: str | None = ...,
        devices: Iterable[DetectedDevice] | None = ...,
        attributes: Mapping[str, attribute_pb2.Attribute] | None = ...,
    ) -> None: ...

class DetectedDevice(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    ID: str
    healthy: bool
    health_description: str
    @property
    def hw_locality(self) -> DeviceLocality: ...
    def __init__(
        self,
        *,
        ID: str | None = ...,
        healthy: bool | None = ...,
        health_description: str | None = ...,
        hw_locality: DeviceLocality | None = ...,
    ) -> None: ...

class DeviceLocality(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    pci_bus_id: str
    def __init__(self, *, pci_bus_id: str | None = ...) -> None: ...

class ReserveRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def device_ids(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(self, *, device_ids: Iterable[str] | None = ...) -> None: ...

class ReserveResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def container_res(self) -> ContainerReservation: ...
    def __init__(self, *, container_res: ContainerReservation | None = ...) -> None: ...

class ContainerReservation(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def envs(self) -> ScalarMap[str, str]: ...
    @property
    def mounts(self) -> RepeatedCompositeFieldContainer[Mount]: ...
    @property
    def devices(self) -> RepeatedCompositeFieldContainer[DeviceSpec]: ...
    def __init__(
        self,
        *,
        envs: Mapping[str, str] | None = ...,
        mounts: Iterable[Mount] | None = ...,
        devices: Iterable[DeviceSpec] | None = ...,
    ) -> None: ...

class Mount(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_path: str
    host_path: str
    read_only: bool
    def __init__(
        self,
        *,
        task_path: str | None = ...,
        host_path: str | None = ...,
        read_only: bool | None = ...,
    ) -> None: ...

class DeviceSpec(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_path: str
    host_path: str
    permissions: str
    def __init__(
        self,
        *,
        task_path: str | None = ...,
        host_path: str | None = ...,
        permissions: str | None = ...,
    ) -> None: ...

class StatsRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def collection_interval(self) -> duration_pb2.Duration: ...
    def __init__(self, *, collection_interval: duration_pb2.Duration | None = ...) -> None: ...

class StatsResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def groups(self) -> RepeatedCompositeFieldContainer[DeviceGroupStats]: ...
    def __init__(self, *, groups: Iterable[DeviceGroupStats] | None = ...) -> None: ...

class DeviceGroupStats(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    vendor: str
    type: str
    name: str
    @property
    def instance_stats(self) -> MessageMap[str, DeviceStats]: ...
    def __init__(
        self,
        *,
        vendor: str | None = ...,
        type: str | None = ...,
        name: str | None = ...,
        instance_stats: Mapping[str, DeviceStats] | None = ...,
    ) -> None: ...

class DeviceStats(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def summary(self) -> stats_pb2.StatValue: ...
    @property
    def stats(self) -> stats_pb2.StatObject: ...
    @property
    def timestamp(self) -> timestamp_pb2.Timestamp: ...
    def __init__(
        self,
        *,
        summary: stats_pb2.StatValue | None = ...,
        stats: stats_pb2.StatObject | None = ...,
        timestamp: timestamp_pb2.Timestamp | None = ...,
    ) -> None: ...
