"""What a task knows about itself: the NOMAD_* environment, and the variables that its config may name."""

import re
from collections.abc import Mapping
from typing import Any

from driver.devhost.job import Job
from driver.devhost.node import Node

_REFERENCE = re.compile(r"\$\{([\w.-]+)\}")
_CLEANED = ("NOMAD_ADDR_", "NOMAD_IP_", "NOMAD_PORT_", "NOMAD_HOST_PORT_", "NOMAD_META_")


def node_variables(node: Node) -> dict[str, str]:
    """Flat names: `node.unique.name`, `attr.kernel.name`, `meta.rack`."""
    found = {
        "node.unique.id": node.id,
        "node.unique.name": node.name,
        "node.class": "",
        "node.datacenter": node.datacenter,
        "node.pool": "default",
    }
    found |= {f"attr.{key}": value for key, value in node.attributes.items()}
    found |= {f"meta.{key}": value for key, value in node.meta.items()}
    return found


def task_environment(
    job: Job, node: Node, *, alloc_id: str, cores: str, cpu_mhz: int, ports: Mapping[str, tuple[int, int]], host_ip: str
) -> dict[str, str]:
    """The environment of a task with IMAGE isolation. `ports`: label to (port of the host, port inside)."""
    task = job.task
    env = {
        "NOMAD_ALLOC_DIR": "/alloc",
        "NOMAD_TASK_DIR": "/local",
        "NOMAD_SECRETS_DIR": "/secrets",
        "NOMAD_MEMORY_LIMIT": str(task.resources.memory_mib),
        "NOMAD_CPU_LIMIT": str(cpu_mhz),
        "NOMAD_CPU_CORES": cores or " ",
        "NOMAD_ALLOC_ID": alloc_id,
        "NOMAD_SHORT_ALLOC_ID": alloc_id[:8],
        "NOMAD_ALLOC_NAME": f"{job.id}.{job.group}[0]",
        "NOMAD_ALLOC_INDEX": "0",
        "NOMAD_GROUP_NAME": job.group,
        "NOMAD_TASK_NAME": task.name,
        "NOMAD_JOB_ID": job.id,
        "NOMAD_JOB_NAME": job.name,
        "NOMAD_DC": node.datacenter,
        "NOMAD_NAMESPACE": job.namespace,
        "NOMAD_REGION": job.region,
    }
    if task.resources.memory_max_mib:
        env["NOMAD_MEMORY_MAX_LIMIT"] = str(task.resources.memory_max_mib)
    for label, (outside, inside) in ports.items():
        env |= {
            f"NOMAD_ADDR_{label}": f"{host_ip}:{outside}",
            f"NOMAD_HOST_ADDR_{label}": f"{host_ip}:{outside}",
            f"NOMAD_IP_{label}": host_ip,
            f"NOMAD_HOST_IP_{label}": host_ip,
            f"NOMAD_PORT_{label}": str(inside),
            f"NOMAD_ALLOC_PORT_{label}": str(inside),
            f"NOMAD_HOST_PORT_{label}": str(outside),
        }
    of_node = node_variables(node)
    for key, value in task.meta.items():
        shown = replace_references(value, of_node, env)
        env |= {f"NOMAD_META_{key.upper()}": shown, f"NOMAD_META_{key}": shown}
    env |= {key: replace_references(value, of_node, env) for key, value in task.env.items()}
    return {_clean(key): value for key, value in env.items()}


def config_variables(env: Mapping[str, str], node: Node) -> dict[str, Any]:
    """What `${…}` in a config may name: the environment, `env["NAME"]`, and the node's `node`, `attr` and `meta`."""
    tree: dict[str, Any] = {}
    for flat in (env, node_variables(node)):
        for name, value in flat.items():
            _plant(tree, name.split("."), value)
    tree["env"] = dict(env)
    of_node = tree["node"]
    of_node |= {name: tree[name] for name in ("attr", "meta") if name in tree}
    return tree


def replace_references(text: str, *sources: Mapping[str, str]) -> str:
    """Outside `config` a reference that nobody knows stays as it is."""

    def known(match: re.Match[str]) -> str:
        return next((source[match[1]] for source in sources if match[1] in source), match[0])

    return _REFERENCE.sub(known, text)


def _plant(tree: dict[str, Any], path: list[str], value: str) -> None:
    """`driver.chv` and `driver.chv.version` cannot both be: the one with something below it wins."""
    if not all(path):
        return
    for step in path[:-1]:
        if not isinstance(tree.get(step), dict):
            tree[step] = {}
        tree = tree[step]
    if not isinstance(tree.get(path[-1]), dict):
        tree[path[-1]] = value


def _clean(name: str) -> str:
    """Some names have parts that users choose, with characters that shells do not take."""
    if name.startswith(_CLEANED):
        return re.sub(r"[^A-Za-z0-9_.]", "_", name, flags=re.ASCII)
    return name
