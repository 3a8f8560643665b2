"""Tasks as Nomad sends them, and the machines that they become, for the tests of what translates them."""

from pathlib import Path
from typing import Any

import pytest

from driver._pb import driver_pb2 as pb
from driver.config_network import UserNetwork
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import TaskConfig
from driver.translate import machine_spec
from vmlib.errors import SpecError
from vmlib.spec import MachineSpec

ALLOC = "5f0e1c2a-1111-2222-3333-444455556666"
ALLOC_DIR = Path("/var/nomad/alloc") / ALLOC
TASK_DIR = ALLOC_DIR / "vm"
KERNEL = TaskConfig(kernel="local/vmlinuz")
DEFAULTS = decode_plugin_config(b"\x80")


def a_task(**fields: Any) -> pb.TaskConfig:
    known: dict[str, Any] = {
        "id": f"{ALLOC}/vm/0a1b2c3d",
        "name": "vm",
        "alloc_id": ALLOC,
        "alloc_dir": str(ALLOC_DIR),
        "job_name": "web",
        "stdout_path": "/x/out.fifo",
        "stderr_path": "/x/err.fifo",
        "resources": resources(),
    }
    return pb.TaskConfig(**known | fields)


def resources(*ports: pb.PortMapping, memory_mb: int = 512) -> pb.Resources:
    memory = pb.AllocatedMemoryResources(memory_mb=memory_mb)
    return pb.Resources(allocated_resources=pb.AllocatedTaskResources(memory=memory), ports=ports)


def a_plugin(
    *networks: str, default_network: str = "", image_paths: tuple[str, ...] = ("/srv/images", "/mnt/i")
) -> PluginConfig:
    fields = {field: getattr(DEFAULTS, field) for field in DEFAULTS.__dataclass_fields__}
    return PluginConfig(
        **fields
        | {
            "networks": {name: UserNetwork(name=name) for name in networks},
            "default_network": default_network,
            "image_paths": tuple(Path(path) for path in image_paths),
        }
    )


def spec_of(options: TaskConfig, plugin: PluginConfig | None = None, **fields: Any) -> MachineSpec:
    return machine_spec(a_task(**fields), options, plugin or a_plugin(), owner="nomad")


def refused(options: TaskConfig, plugin: PluginConfig | None = None, **fields: Any) -> str:
    with pytest.raises(SpecError) as exc:
        spec_of(options, plugin, **fields)
    return str(exc.value)
