"""A job as the embedded host knows it: one group, one task, and Nomad's defaults for what the file leaves out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from driver.devhost.restarts import RestartPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of the group. `static` None is a dynamic one; `to` 0 is the same port inside."""

    label: str
    static: int | None = None
    to: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Something to bring into the task's directory before it starts."""

    source: str
    destination: str = "local/"
    mode: Literal["any", "file"] = "any"
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    cpu_mhz: int = 100
    cores: int = 0
    memory_mib: int = 300
    memory_max_mib: int = 0  # 0 = unset, -1 = no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    driver: str
    config: dict[str, Any]  # the form that a plugin's schema reads
    env: dict[str, str]
    meta: dict[str, str]
    resources: Resources
    restart: RestartPolicy
    kill_timeout_s: float = 5.0
    kill_signal: str = ""
    user: str = ""
    logs: bool = True
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`meta` of job, group and task is already one, in the task."""

    path: Path
    id: str
    name: str
    type: Literal["service", "batch"]
    namespace: str
    region: str
    datacenter: str
    group: str
    ports: tuple[Port, ...]
    task: Task
