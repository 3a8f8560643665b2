"""The messages of proto/chv/driver.proto. Made by proto/generate.py; never edited by hand."""

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
from driver._pb import driver_pb2
from driver._pb import hclspec_pb2
from google.protobuf import duration_pb2
from google.protobuf import timestamp_pb2

DESCRIPTOR: FileDescriptor

TaskState: EnumTypeWrapper
UNKNOWN: int
RUNNING: int
EXITED: int

class InitRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class InitResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class TaskConfigSchemaRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class TaskConfigSchemaResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def spec(self) -> hclspec_pb2.Spec: ...
    def __init__(self, *, spec: hclspec_pb2.Spec | None = ...) -> None: ...

class CapabilitiesRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class CapabilitiesResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def capabilities(self) -> DriverCapabilities: ...
    def __init__(self, *, capabilities: DriverCapabilities | None = ...) -> None: ...

class FingerprintRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class FingerprintResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    HealthState: ClassVar[EnumTypeWrapper]
    UNDETECTED: ClassVar[int]
    UNHEALTHY: ClassVar[int]
    HEALTHY: ClassVar[int]
    @property
    def attributes(self) -> MessageMap[str, attribute_pb2.Attribute]: ...
    health: int
    health_description: str
    err: str
    def __init__(
        self,
        *,
        attributes: Mapping[str, attribute_pb2.Attribute] | None = ...,
        health: int | None = ...,
        health_description: str | None = ...,
        err: str | None = ...,
    ) -> None: ...

class RecoverTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    @property
    def handle(self) -> TaskHandle: ...
    def __init__(self, *, task_id: str | None = ..., handle: TaskHandle | None = ...) -> None: ...

class RecoverTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class StartTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def task(self) -> TaskConfig: ...
    def __init__(self, *, task: TaskConfig | None = ...) -> None: ...

class StartTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    Result: ClassVar[EnumTypeWrapper]
    SUCCESS: ClassVar[int]
    RETRY: ClassVar[int]
    FATAL: ClassVar[int]
    result: int
    driver_error_msg: str
    @property
    def handle(self) -> TaskHandle: ...
    @property
    def network_override(self) -> NetworkOverride: ...
    def __init__(
        self,
        *,
        result: int | None = ...,
        driver_error_msg: str | None = ...,
        handle: TaskHandle | None = ...,
        network_override: NetworkOverride | None = ...,
    ) -> None: ...

class WaitTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    def __init__(self, *, task_id: str | None = ...) -> None: ...

class WaitTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def result(self) -> ExitResult: ...
    err: str
    def __init__(self, *, result: ExitResult | None = ..., err: str | None = ...) -> None: ...

class StopTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    @property
    def timeout(self) -> duration_pb2.Duration: ...
    signal: str
    def __init__(
        self,
        *,
        task_id: str | None = ...,
        timeout: duration_pb2.Duration | None = ...,
        signal: str | None = ...,
    ) -> None: ...

class StopTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class DestroyTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    force: bool
    def __init__(self, *, task_id: str | None = ..., force: bool | None = ...) -> None: ...

class DestroyTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class InspectTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    def __init__(self, *, task_id: str | None = ...) -> None: ...

class InspectTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def task(self) -> TaskStatus: ...
    @property
    def driver(self) -> TaskDriverStatus: ...
    @property
    def network_override(self) -> NetworkOverride: ...
    def __init__(
        self,
        *,
        task: TaskStatus | None = ...,
        driver: TaskDriverStatus | None = ...,
        network_override: NetworkOverride | None = ...,
    ) -> None: ...

class TaskStatsRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    @property
    def collection_interval(self) -> duration_pb2.Duration: ...
    def __init__(
        self,
        *,
        task_id: str | None = ...,
        collection_interval: duration_pb2.Duration | None = ...,
    ) -> None: ...

class TaskStatsResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def stats(self) -> TaskStats: ...
    def __init__(self, *, stats: TaskStats | None = ...) -> None: ...

class TaskEventsRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class SignalTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    signal: str
    def __init__(self, *, task_id: str | None = ..., signal: str | None = ...) -> None: ...

class SignalTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class ExecTaskRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    @property
    def command(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def timeout(self) -> duration_pb2.Duration: ...
    def __init__(
        self,
        *,
        task_id: str | None = ...,
        command: Iterable[str] | None = ...,
        timeout: duration_pb2.Duration | None = ...,
    ) -> None: ...

class ExecTaskResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    stdout: bytes
    stderr: bytes
    @property
    def result(self) -> ExitResult: ...
    def __init__(
        self,
        *,
        stdout: bytes | None = ...,
        stderr: bytes | None = ...,
        result: ExitResult | None = ...,
    ) -> None: ...

class ExecTaskStreamingIOOperation(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    data: bytes
    close: bool
    def __init__(self, *, data: bytes | None = ..., close: bool | None = ...) -> None: ...

class ExecTaskStreamingRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]

    class Setup(Message):
        DESCRIPTOR: ClassVar[Descriptor]
        task_id: str
        @property
        def command(self) -> RepeatedScalarFieldContainer[str]: ...
        tty: bool
        def __init__(
            self,
            *,
            task_id: str | None = ...,
            command: Iterable[str] | None = ...,
            tty: bool | None = ...,
        ) -> None: ...


    class TerminalSize(Message):
        DESCRIPTOR: ClassVar[Descriptor]
        height: int
        width: int
        def __init__(self, *, height: int | None = ..., width: int | None = ...) -> None: ...

    @property
    def setup(self) -> ExecTaskStreamingRequest.Setup: ...
    @property
    def tty_size(self) -> ExecTaskStreamingRequest.TerminalSize: ...
    @property
    def stdin(self) -> ExecTaskStreamingIOOperation: ...
    def __init__(
        self,
        *,
        setup: ExecTaskStreamingRequest.Setup | None = ...,
        tty_size: ExecTaskStreamingRequest.TerminalSize | None = ...,
        stdin: ExecTaskStreamingIOOperation | None = ...,
    ) -> None: ...

class ExecTaskStreamingResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def stdout(self) -> ExecTaskStreamingIOOperation: ...
    @property
    def stderr(self) -> ExecTaskStreamingIOOperation: ...
    exited: bool
    @property
    def result(self) -> ExitResult: ...
    def __init__(
        self,
        *,
        stdout: ExecTaskStreamingIOOperation | None = ...,
        stderr: ExecTaskStreamingIOOperation | None = ...,
        exited: bool | None = ...,
        result: ExitResult | None = ...,
    ) -> None: ...

class CreateNetworkRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    alloc_id: str
    hostname: str
    def __init__(self, *, alloc_id: str | None = ..., hostname: str | None = ...) -> None: ...

class CreateNetworkResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def isolation_spec(self) -> NetworkIsolationSpec: ...
    created: bool
    def __init__(
        self,
        *,
        isolation_spec: NetworkIsolationSpec | None = ...,
        created: bool | None = ...,
    ) -> None: ...

class DestroyNetworkRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    alloc_id: str
    @property
    def isolation_spec(self) -> NetworkIsolationSpec: ...
    def __init__(
        self,
        *,
        alloc_id: str | None = ...,
        isolation_spec: NetworkIsolationSpec | None = ...,
    ) -> None: ...

class DestroyNetworkResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class DriverCapabilities(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    FSIsolation: ClassVar[EnumTypeWrapper]
    NONE: ClassVar[int]
    CHROOT: ClassVar[int]
    IMAGE: ClassVar[int]
    UNVEIL: ClassVar[int]
    MountConfigs: ClassVar[EnumTypeWrapper]
    UNKNOWN_MOUNTS: ClassVar[int]
    ANY_MOUNTS: ClassVar[int]
    NO_MOUNTS: ClassVar[int]
    send_signals: bool
    exec: bool
    fs_isolation: int
    @property
    def network_isolation_modes(self) -> RepeatedScalarFieldContainer[int]: ...
    must_create_network: bool
    mount_configs: int
    disable_log_collection: bool
    dynamic_workload_users: bool
    def __init__(
        self,
        *,
        send_signals: bool | None = ...,
        exec: bool | None = ...,
        fs_isolation: int | None = ...,
        network_isolation_modes: Iterable[int] | None = ...,
        must_create_network: bool | None = ...,
        mount_configs: int | None = ...,
        disable_log_collection: bool | None = ...,
        dynamic_workload_users: bool | None = ...,
    ) -> None: ...

class NetworkIsolationSpec(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    NetworkIsolationMode: ClassVar[EnumTypeWrapper]
    HOST: ClassVar[int]
    GROUP: ClassVar[int]
    TASK: ClassVar[int]
    NONE: ClassVar[int]
    mode: int
    path: str
    @property
    def labels(self) -> ScalarMap[str, str]: ...
    @property
    def hostsConfig(self) -> HostsConfig: ...
    def __init__(
        self,
        *,
        mode: int | None = ...,
        path: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        hostsConfig: HostsConfig | None = ...,
    ) -> None: ...

class HostsConfig(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    hostname: str
    address: str
    def __init__(self, *, hostname: str | None = ..., address: str | None = ...) -> None: ...

class DNSConfig(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def servers(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def searches(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def options(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(
        self,
        *,
        servers: Iterable[str] | None = ...,
        searches: Iterable[str] | None = ...,
        options: Iterable[str] | None = ...,
    ) -> None: ...

class TaskConfig(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    id: str
    name: str
    msgpack_driver_config: bytes
    @property
    def env(self) -> ScalarMap[str, str]: ...
    @property
    def device_env(self) -> ScalarMap[str, str]: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def mounts(self) -> RepeatedCompositeFieldContainer[Mount]: ...
    @property
    def devices(self) -> RepeatedCompositeFieldContainer[Device]: ...
    user: str
    alloc_dir: str
    stdout_path: str
    stderr_path: str
    task_group_name: str
    job_name: str
    alloc_id: str
    @property
    def network_isolation_spec(self) -> NetworkIsolationSpec: ...
    @property
    def dns(self) -> DNSConfig: ...
    job_id: str
    namespace: str
    node_name: str
    node_id: str
    parent_job_id: str
    def __init__(
        self,
        *,
        id: str | None = ...,
        name: str | None = ...,
        msgpack_driver_config: bytes | None = ...,
        env: Mapping[str, str] | None = ...,
        device_env: Mapping[str, str] | None = ...,
        resources: Resources | None = ...,
        mounts: Iterable[Mount] | None = ...,
        devices: Iterable[Device] | None = ...,
        user: str | None = ...,
        alloc_dir: str | None = ...,
        stdout_path: str | None = ...,
        stderr_path: str | None = ...,
        task_group_name: str | None = ...,
        job_name: str | None = ...,
        alloc_id: str | None = ...,
        network_isolation_spec: NetworkIsolationSpec | None = ...,
        dns: DNSConfig | None = ...,
        job_id: str | None = ...,
        namespace: str | None = ...,
        node_name: str | None = ...,
        node_id: str | None = ...,
        parent_job_id: str | None = ...,
    ) -> None: ...

class Resources(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def allocated_resources(self) -> AllocatedTaskResources: ...
    @property
    def linux_resources(self) -> LinuxResources: ...
    @property
    def ports(self) -> RepeatedCompositeFieldContainer[PortMapping]: ...
    def __init__(
        self,
        *,
        allocated_resources: AllocatedTaskResources | None = ...,
        linux_resources: LinuxResources | None = ...,
        ports: Iterable[PortMapping] | None = ...,
    ) -> None: ...

class AllocatedTaskResources(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def cpu(self) -> AllocatedCpuResources: ...
    @property
    def memory(self) -> AllocatedMemoryResources: ...
    @property
    def networks(self) -> RepeatedCompositeFieldContainer[NetworkResource]: ...
    def __init__(
        self,
        *,
        cpu: AllocatedCpuResources | None = ...,
        memory: AllocatedMemoryResources | None = ...,
        networks: Iterable[NetworkResource] | None = ...,
    ) -> None: ...

class AllocatedCpuResources(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    cpu_shares: int
    def __init__(self, *, cpu_shares: int | None = ...) -> None: ...

class AllocatedMemoryResources(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    memory_mb: int
    memory_max_mb: int
    def __init__(self, *, memory_mb: int | None = ..., memory_max_mb: int | None = ...) -> None: ...

class NetworkResource(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    device: str
    cidr: str
    ip: str
    mbits: int
    @property
    def reserved_ports(self) -> RepeatedCompositeFieldContainer[NetworkPort]: ...
    @property
    def dynamic_ports(self) -> RepeatedCompositeFieldContainer[NetworkPort]: ...
    def __init__(
        self,
        *,
        device: str | None = ...,
        cidr: str | None = ...,
        ip: str | None = ...,
        mbits: int | None = ...,
        reserved_ports: Iterable[NetworkPort] | None = ...,
        dynamic_ports: Iterable[NetworkPort] | None = ...,
    ) -> None: ...

class NetworkPort(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    label: str
    value: int
    def __init__(self, *, label: str | None = ..., value: int | None = ...) -> None: ...

class PortMapping(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    label: str
    value: int
    to: int
    host_ip: str
    def __init__(
        self,
        *,
        label: str | None = ...,
        value: int | None = ...,
        to: int | None = ...,
        host_ip: str | None = ...,
    ) -> None: ...

class LinuxResources(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    cpu_period: int
    cpu_quota: int
    cpu_shares: int
    memory_limit_bytes: int
    oom_score_adj: int
    cpuset_cpus: str
    PercentTicks: float
    cpuset_cgroup: str
    def __init__(
        self,
        *,
        cpu_period: int | None = ...,
        cpu_quota: int | None = ...,
        cpu_shares: int | None = ...,
        memory_limit_bytes: int | None = ...,
        oom_score_adj: int | None = ...,
        cpuset_cpus: str | None = ...,
        PercentTicks: float | None = ...,
        cpuset_cgroup: str | None = ...,
    ) -> None: ...

class Mount(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_path: str
    host_path: str
    readonly: bool
    propagation_mode: str
    selinux_label: str
    request_name: str
    def __init__(
        self,
        *,
        task_path: str | None = ...,
        host_path: str | None = ...,
        readonly: bool | None = ...,
        propagation_mode: str | None = ...,
        selinux_label: str | None = ...,
        request_name: str | None = ...,
    ) -> None: ...

class Device(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_path: str
    host_path: str
    cgroup_permissions: str
    def __init__(
        self,
        *,
        task_path: str | None = ...,
        host_path: str | None = ...,
        cgroup_permissions: str | None = ...,
    ) -> None: ...

class TaskHandle(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    version: int
    @property
    def config(self) -> TaskConfig: ...
    state: int
    driver_state: bytes
    def __init__(
        self,
        *,
        version: int | None = ...,
        config: TaskConfig | None = ...,
        state: int | None = ...,
        driver_state: bytes | None = ...,
    ) -> None: ...

class NetworkOverride(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def port_map(self) -> ScalarMap[str, int]: ...
    addr: str
    auto_advertise: bool
    def __init__(
        self,
        *,
        port_map: Mapping[str, int] | None = ...,
        addr: str | None = ...,
        auto_advertise: bool | None = ...,
    ) -> None: ...

class ExitResult(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    exit_code: int
    signal: int
    oom_killed: bool
    def __init__(
        self,
        *,
        exit_code: int | None = ...,
        signal: int | None = ...,
        oom_killed: bool | None = ...,
    ) -> None: ...

class TaskStatus(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    id: str
    name: str
    state: int
    @property
    def started_at(self) -> timestamp_pb2.Timestamp: ...
    @property
    def completed_at(self) -> timestamp_pb2.Timestamp: ...
    @property
    def result(self) -> ExitResult: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        name: str | None = ...,
        state: int | None = ...,
        started_at: timestamp_pb2.Timestamp | None = ...,
        completed_at: timestamp_pb2.Timestamp | None = ...,
        result: ExitResult | None = ...,
    ) -> None: ...

class TaskDriverStatus(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def attributes(self) -> ScalarMap[str, str]: ...
    def __init__(self, *, attributes: Mapping[str, str] | None = ...) -> None: ...

class TaskStats(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    id: str
    @property
    def timestamp(self) -> timestamp_pb2.Timestamp: ...
    @property
    def agg_resource_usage(self) -> TaskResourceUsage: ...
    @property
    def resource_usage_by_pid(self) -> MessageMap[str, TaskResourceUsage]: ...
    def __init__(
        self,
        *,
        id: str | None = ...,
        timestamp: timestamp_pb2.Timestamp | None = ...,
        agg_resource_usage: TaskResourceUsage | None = ...,
        resource_usage_by_pid: Mapping[str, TaskResourceUsage] | None = ...,
    ) -> None: ...

class TaskResourceUsage(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    @property
    def cpu(self) -> CPUUsage: ...
    @property
    def memory(self) -> MemoryUsage: ...
    def __init__(self, *, cpu: CPUUsage | None = ..., memory: MemoryUsage | None = ...) -> None: ...

class CPUUsage(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    Fields: ClassVar[EnumTypeWrapper]
    SYSTEM_MODE: ClassVar[int]
    USER_MODE: ClassVar[int]
    TOTAL_TICKS: ClassVar[int]
    THROTTLED_PERIODS: ClassVar[int]
    THROTTLED_TIME: ClassVar[int]
    PERCENT: ClassVar[int]
    system_mode: float
    user_mode: float
    total_ticks: float
    throttled_periods: int
    throttled_time: int
    percent: float
    @property
    def measured_fields(self) -> RepeatedScalarFieldContainer[int]: ...
    def __init__(
        self,
        *,
        system_mode: float | None = ...,
        user_mode: float | None = ...,
        total_ticks: float | None = ...,
        throttled_periods: int | None = ...,
        throttled_time: int | None = ...,
        percent: float | None = ...,
        measured_fields: Iterable[int] | None = ...,
    ) -> None: ...

class MemoryUsage(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    Fields: ClassVar[EnumTypeWrapper]
    RSS: ClassVar[int]
    CACHE: ClassVar[int]
    MAX_USAGE: ClassVar[int]
    KERNEL_USAGE: ClassVar[int]
    KERNEL_MAX_USAGE: ClassVar[int]
    USAGE: ClassVar[int]
    SWAP: ClassVar[int]
    rss: int
    cache: int
    max_usage: int
    kernel_usage: int
    kernel_max_usage: int
    @property
    def measured_fields(self) -> RepeatedScalarFieldContainer[int]: ...
    usage: int
    swap: int
    def __init__(
        self,
        *,
        rss: int | None = ...,
        cache: int | None = ...,
        max_usage: int | None = ...,
        kernel_usage: int | None = ...,
        kernel_max_usage: int | None = ...,
        measured_fields: Iterable[int] | None = ...,
        usage: int | None = ...,
        swap: int | None = ...,
    ) -> None: ...

class DriverTaskEvent(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    task_id: str
    alloc_id: str
    task_name: str
    @property
    def timestamp(self) -> timestamp_pb2.Timestamp: ...
    message: str
    @property
    def annotations(self) -> ScalarMap[str, str]: ...
    def __init__(
        self,
        *,
        task_id: str | None = ...,
        alloc_id: str | None = ...,
        task_name: str | None = ...,
        timestamp: timestamp_pb2.Timestamp | None = ...,
        message: str | None = ...,
        annotations: Mapping[str, str] | None = ...,
    ) -> None: ...

class ShutdownRequest(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...

class ShutdownResponse(Message):
    DESCRIPTOR: ClassVar[Descriptor]
    def __init__(self) -> None: ...
