"""Our values as Nomad's messages. Pure. Fields that make Nomad's client panic when missing are always set."""

import math
import time

from google.protobuf.timestamp_pb2 import Timestamp

from driver._pb import attribute_pb2
from driver._pb import driver_pb2 as pb
from driver.events import TaskEvent
from driver.fingerprint import Fingerprint, Health, Value
from vmlib.counters import Memory
from vmlib.meter import CpuUse, MachineUse, Use
from vmlib.record import ExitRecord

# Nomad reads "not set" only from this moment, year 1.
_NOT_SET = Timestamp(seconds=-62135596800)

_HEALTH = {
    "undetected": pb.FingerprintResponse.UNDETECTED,
    "unhealthy": pb.FingerprintResponse.UNHEALTHY,
    "healthy": pb.FingerprintResponse.HEALTHY,
}
_Cpu = pb.CPUUsage
_Memory = pb.MemoryUsage
_CPU_FIELDS = (
    ("user_mode", _Cpu.USER_MODE),
    ("system_mode", _Cpu.SYSTEM_MODE),
    ("percent", _Cpu.PERCENT),
    ("total_ticks", _Cpu.TOTAL_TICKS),
    ("throttled_periods", _Cpu.THROTTLED_PERIODS),
    ("throttled_time", _Cpu.THROTTLED_TIME),
)
_MEMORY_FIELDS = (
    ("rss", "rss_bytes", _Memory.RSS),
    ("cache", "cache_bytes", _Memory.CACHE),
    ("max_usage", "max_usage_bytes", _Memory.MAX_USAGE),
    ("kernel_usage", "kernel_bytes", _Memory.KERNEL_USAGE),
    ("usage", "usage_bytes", _Memory.USAGE),
    ("swap", "swap_bytes", _Memory.SWAP),
)


def timestamp(seconds: float) -> Timestamp:
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def capabilities() -> pb.DriverCapabilities:
    return pb.DriverCapabilities(
        send_signals=True,
        exec=True,
        fs_isolation=pb.DriverCapabilities.IMAGE,
        network_isolation_modes=[pb.NetworkIsolationSpec.HOST, pb.NetworkIsolationSpec.GROUP],
        must_create_network=False,
        mount_configs=pb.DriverCapabilities.ANY_MOUNTS,
    )


def attribute(value: Value) -> attribute_pb2.Attribute:
    if isinstance(value, bool):
        return attribute_pb2.Attribute(bool_val=value)
    if isinstance(value, int):
        return attribute_pb2.Attribute(int_val=value)
    return attribute_pb2.Attribute(string_val=value)


def fingerprint_response(found: Fingerprint) -> pb.FingerprintResponse:
    health: Health = found.health
    return pb.FingerprintResponse(
        attributes={name: attribute(value) for name, value in found.attributes.items()},
        health=_HEALTH[health],
        health_description=found.text,
    )


def exit_result(record: ExitRecord) -> pb.ExitResult:
    return pb.ExitResult(exit_code=record.exit_code, signal=record.signal, oom_killed=record.oom_killed)


def task_event(event: TaskEvent) -> pb.DriverTaskEvent:
    return pb.DriverTaskEvent(
        task_id=event.task_id,
        alloc_id=event.alloc_id,
        task_name=event.task_name,
        timestamp=timestamp(event.at),
        message=event.message,
        annotations=event.annotations,
    )


def task_status(task_id: str, name: str, started_at: float, ended: ExitRecord | None) -> pb.TaskStatus:
    return pb.TaskStatus(
        id=task_id,
        name=name,
        state=pb.RUNNING if ended is None else pb.EXITED,
        started_at=timestamp(started_at),
        completed_at=_NOT_SET if ended is None else timestamp(ended.at),
        result=pb.ExitResult() if ended is None else exit_result(ended),
    )


def resource_usage(used: Use, *, mhz: float) -> pb.TaskResourceUsage:
    """`measured_fields` name exactly what is filled in: Nomad shows no others. Both messages are always set.

    `mhz` is what Nomad counts for a core; 0: nobody knows.
    """
    cpu, memory = used.cpu, used.memory
    return pb.TaskResourceUsage(
        cpu=_Cpu() if cpu is None else _cpu(cpu, mhz), memory=_Memory() if memory is None else _memory(memory)
    )


def _cpu(used: CpuUse, mhz: float) -> pb.CPUUsage:
    values: tuple[float | None, ...] = (
        used.user_percent,
        used.system_percent,
        used.percent,
        used.percent / 100 * mhz if mhz else None,
        used.throttled_periods,
        used.throttled_ns,
    )
    message, measured = _Cpu(), []
    for (name, field), value in zip(_CPU_FIELDS, values, strict=True):
        # One NaN makes Nomad show no number at all of any task.
        if value is not None and math.isfinite(value):
            setattr(message, name, value)
            measured.append(field)
    message.measured_fields.extend(measured)
    return message


def _memory(used: Memory) -> pb.MemoryUsage:
    message, measured = _Memory(), []
    for name, source, field in _MEMORY_FIELDS:
        value: int | None = getattr(used, source)
        if value is not None:
            setattr(message, name, value)
            measured.append(field)
    message.measured_fields.extend(measured)
    return message


def task_stats(task_id: str, used: MachineUse, *, mhz: float) -> pb.TaskStatsResponse:
    return pb.TaskStatsResponse(
        stats=pb.TaskStats(
            id=task_id,
            timestamp=timestamp(time.time()),
            agg_resource_usage=resource_usage(used.total, mhz=mhz),
            resource_usage_by_pid={name: resource_usage(part, mhz=mhz) for name, part in used.parts.items()},
        )
    )
