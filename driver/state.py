"""Our values as Nomad's messages. Pure. Fields that make Nomad's client panic when missing are always set."""

import time

from google.protobuf.timestamp_pb2 import Timestamp

from driver._pb import attribute_pb2
from driver._pb import driver_pb2 as pb
from driver.events import TaskEvent
from driver.fingerprint import Fingerprint, Health, Value
from driver.stats import Usage
from vmlib.record import ExitRecord

# Nomad reads "not set" only from this moment, year 1.
_NOT_SET = Timestamp(seconds=-62135596800)

_HEALTH = {
    "undetected": pb.FingerprintResponse.UNDETECTED,
    "unhealthy": pb.FingerprintResponse.UNHEALTHY,
    "healthy": pb.FingerprintResponse.HEALTHY,
}
_CPU_FIELDS = (pb.CPUUsage.SYSTEM_MODE, pb.CPUUsage.USER_MODE, pb.CPUUsage.TOTAL_TICKS, pb.CPUUsage.PERCENT)
_MEMORY_FIELDS = (pb.MemoryUsage.RSS,)


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


def resource_usage(used: Usage, *, mhz: float) -> pb.TaskResourceUsage:
    return pb.TaskResourceUsage(
        cpu=pb.CPUUsage(
            user_mode=used.user_percent,
            system_mode=used.system_percent,
            percent=used.percent,
            total_ticks=used.percent / 100 * mhz,
            measured_fields=_CPU_FIELDS,
        ),
        memory=pb.MemoryUsage(rss=used.rss_bytes, measured_fields=_MEMORY_FIELDS),
    )


def task_stats(task_id: str, uses: dict[str, Usage], *, mhz: float) -> pb.TaskStatsResponse:
    """`uses` by process name, `vmm` and `keeper`; their sum is the task's."""
    total = Usage(
        sum(used.user_percent for used in uses.values()),
        sum(used.system_percent for used in uses.values()),
        sum(used.rss_bytes for used in uses.values()),
    )
    return pb.TaskStatsResponse(
        stats=pb.TaskStats(
            id=task_id,
            timestamp=timestamp(time.time()),
            agg_resource_usage=resource_usage(total, mhz=mhz),
            resource_usage_by_pid={name: resource_usage(used, mhz=mhz) for name, used in uses.items()},
        )
    )
