"""An allocation: its directory as Nomad lays it out, its ports and cores, and what a driver is told of a task."""

import os
import random
import shutil
import socket
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driver._pb import driver_pb2 as pb
from driver.devhost.environment import task_environment
from driver.devhost.errors import DevHostError
from driver.devhost.job import Job, Port
from driver.devhost.node import Node

HOST_IP = "127.0.0.1"
DYNAMIC_PORTS = range(20000, 32000)
NULL = "/dev/null"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocPaths:
    """The directory of one allocation with one task. `root` is what drivers know as alloc_dir."""

    root: Path
    task: str

    @property
    def shared(self) -> Path:
        return self.root / "alloc"

    @property
    def logs(self) -> Path:
        return self.shared / "logs"

    @property
    def task_dir(self) -> Path:
        return self.root / self.task

    def fifo(self, stream: str) -> Path:
        return self.logs / f".{self.task}.{stream}.fifo"

    def log(self, stream: str) -> Path:
        return self.logs / f"{self.task}.{stream}.0"

    def make(self) -> None:
        """Directories and FIFOs, with Nomad's modes whatever the umask is."""
        modes = {self.root: 0o755, self.shared: 0o755, self.task_dir: 0o777}
        modes |= {self.shared / name: 0o777 for name in ("data", "logs")}
        modes |= {self.task_dir / "local": 0o777, self.shared / "tmp": 0o1777, self.task_dir / "tmp": 0o1777}
        # Nomad mounts a tmpfs on these two; here they are closed to others instead.
        modes |= {self.task_dir / name: 0o700 for name in ("secrets", "private")}
        for path, mode in modes.items():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
        for stream in ("stdout", "stderr"):
            os.mkfifo(self.fifo(stream), 0o600)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alloc:
    """One allocation of a job on this node. Ids of its starts come from `new_task_id`."""

    id: str
    job: Job
    node: Node
    paths: AllocPaths
    ports: Mapping[str, tuple[int, int]]  # label to (port of the host, port inside)
    cores: tuple[int, ...]
    cpu_mhz: int
    env: Mapping[str, str] = field(default_factory=dict)

    def new_task_id(self) -> str:
        return f"{self.id}/{self.job.task.name}/{uuid.uuid4().hex[:8]}"

    def task_config(self, task_id: str, msgpack_config: bytes) -> pb.TaskConfig:
        """All that StartTask carries."""
        task, job = self.job.task, self.job
        wanted = task.resources
        memory_mib = max(wanted.memory_mib, wanted.memory_max_mib)
        streams = {name: str(self.paths.fifo(name)) if task.logs else NULL for name in ("stdout", "stderr")}
        return pb.TaskConfig(
            id=task_id,
            name=task.name,
            msgpack_driver_config=msgpack_config,
            env=dict(self.env),
            resources=pb.Resources(
                allocated_resources=pb.AllocatedTaskResources(
                    cpu=pb.AllocatedCpuResources(cpu_shares=self.cpu_mhz),
                    memory=pb.AllocatedMemoryResources(
                        memory_mb=wanted.memory_mib, memory_max_mb=wanted.memory_max_mib
                    ),
                ),
                linux_resources=pb.LinuxResources(
                    cpu_shares=self.cpu_mhz,
                    memory_limit_bytes=memory_mib * _MIB,
                    cpuset_cpus=",".join(map(str, self.cores)),
                    PercentTicks=self.cpu_mhz / self.node.mhz if self.node.mhz else 0.0,
                ),
                ports=[
                    pb.PortMapping(label=port.label, value=self.ports[port.label][0], to=to, host_ip=HOST_IP)
                    for port in job.ports
                    for to in (self.ports[port.label][0] if port.to == -1 else port.to,)
                ],
            ),
            user=task.user,
            alloc_dir=str(self.paths.root),
            stdout_path=streams["stdout"],
            stderr_path=streams["stderr"],
            task_group_name=job.group,
            job_name=job.name,
            job_id=job.id,
            namespace=job.namespace,
            alloc_id=self.id,
            node_name=self.node.name,
            node_id=self.node.id,
        )


def allocate(job: Job, node: Node, parent: Path | None) -> Alloc:
    """Make the directory beneath `parent` (or the system's temporary one) and take ports and cores.

    Raises DevHostError when the machine cannot give what the job asks for.
    """
    alloc_id = str(uuid.uuid4())
    wanted = job.task.resources
    try:
        cpus = node.lowest_cores(wanted.cores)
    except ValueError as exc:
        raise DevHostError(str(exc)) from exc
    cpu_mhz = sum(cpu.mhz for cpu in cpus) if cpus else wanted.cpu_mhz
    cores = tuple(cpu.id for cpu in cpus)
    ports = take_ports(job.ports)
    env = task_environment(
        job,
        node,
        alloc_id=alloc_id,
        cores=",".join(map(str, cores)),
        cpu_mhz=cpu_mhz,
        ports=ports,
        host_ip=HOST_IP,
    )
    if parent is None:
        base = Path(tempfile.mkdtemp(prefix="chv-dev-"))
        base.chmod(0o711)  # as Nomad's own directory of allocations: others may pass, not look
        root = base / alloc_id
    else:
        root = parent / alloc_id
    paths = AllocPaths(root=root.absolute(), task=job.task.name)
    paths.make()
    return Alloc(id=alloc_id, job=job, node=node, paths=paths, ports=ports, cores=cores, cpu_mhz=cpu_mhz, env=env)


def take_ports(wanted: tuple[Port, ...]) -> dict[str, tuple[int, int]]:
    """A free port of the host for each label. Raises DevHostError when a static one is taken."""
    taken: dict[str, tuple[int, int]] = {}
    used: set[int] = set()
    for port in sorted(wanted, key=lambda one: one.static is None):
        if port.static is not None:
            if port.static in used or not _free(port.static):
                raise DevHostError(f"port {port.label}: static = {port.static} is taken on this machine")
            outside = port.static
        else:
            outside = _dynamic(used)
        used.add(outside)
        taken[port.label] = (outside, port.to if port.to > 0 else outside)
    return taken


def _dynamic(used: set[int]) -> int:
    for candidate in random.sample(DYNAMIC_PORTS, 200):
        if candidate not in used and _free(candidate):
            return candidate
    raise DevHostError(f"no free port between {DYNAMIC_PORTS.start} and {DYNAMIC_PORTS.stop}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST_IP, port))
        except OSError:
            return False
    return True
