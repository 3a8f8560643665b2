"""Job files for `chv validate`: each task of this driver goes the way that it would go in the plugin, without a start.

A value that only a scheduler knows (a variable, a function, a reference) is not looked at, nor what hangs on it.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from driver._pb import driver_pb2 as pb
from driver.cli.validate_found import Report, of_schema
from driver.config_network import BridgeNetwork, Network
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import TaskConfig, decode_task_config
from driver.decode import Complaints, show
from driver.devhost import hclspec
from driver.devhost.errors import JobFileError
from driver.devhost.hcltree import Block, Body, config_json, parse_all
from driver.devhost.lined import Lined, Unknown, line_of, parse_json
from driver.keys import TASK, task_spec
from driver.tokens import env_of
from driver.translate import machine_spec
from vmlib.errors import SpecError
from vmlib.files import open_ref
from vmlib.spec import FileRef, MachineSpec, NfsExport

_DRIVER = "chv"
_HCL_JOB = re.compile(r'^[ \t]*job[ \t]+("[^"\n]*"|[A-Za-z_][\w-]*)[ \t]*\{', re.MULTILINE)
_ALLOC = Path("/alloc-of-no-node")
_A_PORT = 20000
# What Nomad calls the resources, and what its JSON does.
_NUMBERS = {"cpu": "CPU", "cores": "Cores", "memory": "MemoryMB", "memory_max": "MemoryMaxMB"}
_DEFAULTS = {"cpu": 100, "cores": 0, "memory": 300, "memory_max": 0}


@dataclass(slots=True, kw_only=True)
class _Task:
    """One task of ours, whatever the file's language is. `resources` has what is said, by HCL's names."""

    path: str
    name: str
    job: str
    line: int
    config: Lined
    resources: Lined
    tokens: int | None = 0
    mode: str | None = "host"  # of the group's network; None = not known
    ports: list[tuple[str, int, int]] = field(default_factory=list)  # label, to, line


def is_json_job(text: str) -> bool:
    return text.lstrip().startswith("{") and '"TaskGroups"' in text


def is_hcl_job(text: str) -> bool:
    return _HCL_JOB.search(text) is not None


def check_hcl_job(text: str, name: str, node: PluginConfig | None) -> Report:
    report = Report(file=name)
    try:
        file, problems = parse_all(text, Path(name))
    except JobFileError as exc:
        report.add(exc.line, "", exc.problem)
        return report
    except RecursionError:
        report.add(1, "", "nested too deeply")
        return report
    for problem in problems:
        report.add(problem.line, "", problem.problem)
    return _checked(report, list(_hcl_tasks(file, report)), node)


def check_json_job(text: str, name: str, node: PluginConfig | None) -> Report:
    report = Report(file=name)
    try:
        file = parse_json(text)
    except json.JSONDecodeError as exc:
        report.add(exc.lineno, "", f"not JSON: {exc.msg}")
        return report
    job = file.get("Job", file) if isinstance(file, Lined) else None
    if not isinstance(job, Lined):
        report.add(1, "", "expected a job as `nomad job run -output` prints it")
        return report
    return _checked(report, list(_json_tasks(job)), node)


def _checked(report: Report, tasks: list[_Task], node: PluginConfig | None) -> Report:
    unknown = sum(_check_task(report, task, node) for task in tasks)
    count = len(tasks)
    report.what = f"{count} task{'' if count == 1 else 's'} of driver {_DRIVER}"
    if not tasks:
        report.notes.append(f"no task of driver {_DRIVER}")
    if unknown:
        report.notes.append(f"{unknown} value{'' if unknown == 1 else 's'} not looked at: variables or functions")
    return report.sorted()


# -- tasks of a file -------------------------------------------------------------------------------------------------


def _hcl_tasks(file: Body, report: Report) -> Iterator[_Task]:
    for job in file.blocks_of("job"):
        for task in job.body.blocks_of("task"):  # a group of its own
            yield from _hcl_task(task, [_label(job), _label(task), _label(task)], None, report)
        for group in job.body.blocks_of("group"):
            network = next(iter(group.body.blocks_of("network")), None)
            for task in group.body.blocks_of("task"):
                yield from _hcl_task(task, [_label(job), _label(group), _label(task)], network, report)


def _hcl_task(block: Block, names: list[str], network: Block | None, report: Report) -> Iterator[_Task]:
    body, path = block.body, "/".join(names)
    driver = body.attributes.get("driver")
    if driver is None or driver.value != _DRIVER:
        return
    if (wrong := body.attributes.get("config")) is not None:
        report.add(wrong.line, "config", "expected a block, without =", task=path)
    configs = body.blocks_of("config")
    for more in configs[1:]:
        report.add(more.line, "config", "there is one before this, expected one block", task=path)
    config = config_json(configs[0].body) if configs else Lined(block.line)
    for dynamic in configs[0].body.blocks_of("dynamic") if configs else ():
        config.pop("dynamic", None)
        config.put(_label(dynamic), Unknown("dynamic"), dynamic.line)
    resources = Lined(block.line)
    tokens: int | None = 0
    for inner in body.blocks_of("resources"):
        resources.line = inner.line
        for one in inner.body.attributes.values():
            resources.put(one.name, one.value, one.line)
        for device in inner.body.blocks_of("device"):
            if _label(device).endswith("chv/core"):
                count = device.body.attributes.get("count")
                tokens = _sum(tokens, 1 if count is None else count.value)
                resources.put("device", tokens, device.line)
    made = _Task(
        path=path, name=names[-1], job=names[0], line=block.line, config=config, resources=resources, tokens=tokens
    )
    if network is not None:
        mode = network.body.attributes.get("mode")
        made.mode = "host" if mode is None else mode.value if isinstance(mode.value, str) else None
        for port in network.body.blocks_of("port"):
            to = port.body.attributes.get("to")
            if to is None or _is_whole(to.value):
                made.ports.append((_label(port), 0 if to is None else to.value, port.line))
    yield made


def _json_tasks(job: Lined) -> Iterator[_Task]:
    for group in _objects(job.get("TaskGroups")):
        network = next(iter(_objects(group.get("Networks"))), Lined())
        ports = [
            (str(port.get("Label")), _whole(port.get("To"), 0), port.line)
            for key in ("ReservedPorts", "DynamicPorts")
            for port in _objects(network.get(key))
        ]
        for task in _objects(group.get("Tasks")):
            if task.get("Driver") != _DRIVER:
                continue
            said = task.get("Resources")
            said = said if isinstance(said, Lined) else Lined(task.line)
            resources, tokens = Lined(said.line), 0
            for name, key in _NUMBERS.items():
                if said.get(key) is not None:
                    resources.put(name, said[key], said.lines[key])
            for device in _objects(said.get("Devices")):
                if str(device.get("Name", "")).endswith("chv/core"):
                    count = device.get("Count")
                    tokens += _whole(count, 1)
                    resources.put("device", tokens, device.line)
            config = task.get("Config")
            names = [str(job.get("ID")), str(group.get("Name")), str(task.get("Name"))]
            yield _Task(
                path="/".join(names),
                name=names[-1],
                job=names[0],
                line=task.line,
                config=config if isinstance(config, Lined) else Lined(task.line),
                resources=resources,
                tokens=tokens,
                mode=str(network.get("Mode") or "host"),
                ports=ports,
            )


def _objects(value: Any) -> list[Lined]:
    return [one for one in value if isinstance(one, Lined)] if isinstance(value, list) else []


def _label(block: Block) -> str:
    return block.labels[-1] if block.labels else ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(value: Any, default: int) -> int:
    return int(value) if _is_whole(value) else default


def _sum(before: int | None, count: Any) -> int | None:
    return before + count if before is not None and _is_whole(count) else None


# -- one task --------------------------------------------------------------------------------------------------------


def _check_task(report: Report, task: _Task, node: PluginConfig | None) -> int:
    """The way of a task through the plugin. Returns how many of its values are not known yet."""
    seen = hclspec.examine(task_spec(), task.config, references=True)
    of_schema(report, seen.complaints, task.config, TASK, task=task.path)
    settled = {*seen.unknown, *(path for path, _ in seen.complaints), *_check_numbers(report, task)}
    if task.tokens is None:
        settled |= {"device", "vcpus", "emulator"}
    complaints = Complaints(settled)
    options = decode_task_config(seen.data, complaints)
    plugin = _any_node(options) if node is None else node
    if task.mode is None or (node is None and options.network_interfaces):
        task = replace(task, ports=[])  # whether they lead anywhere is a matter of the network
    spec: MachineSpec | None = None
    with contextlib.suppress(SpecError):  # with what `complaints` has
        spec = machine_spec(_start(task, settled=settled), options, plugin, owner="nomad", complaints=complaints)
    for one in complaints.found:
        report.add(_line(task, one.key), one.key, one.expected, value=one.value, task=task.path)
    if spec is not None and node is not None:
        _check_files(report, task, options, spec)
    return len(seen.unknown) + sum(isinstance(value, Unknown) for value in task.resources.values())


def _check_numbers(report: Report, task: _Task) -> Iterator[str]:
    """The numbers in resources that are of no use for what follows."""
    for key, value in task.resources.items():
        if key not in _NUMBERS or _is_whole(value):
            continue
        yield key
        if not isinstance(value, Unknown) and not (isinstance(value, str) and "${" in value):
            line = line_of(task.resources, key)
            report.add(line, f"resources.{key}", "expected a whole number", value=show(value), task=task.path)


def _line(task: _Task, key: str) -> int:
    first = re.split(r"[.\[ ]", key, maxsplit=1)[0]
    if first in task.config:
        return line_of(task.config, key)
    if first in task.resources:
        return line_of(task.resources, first)
    if first == "port":
        return next((line for label, _, line in task.ports if repr(label) in key), task.line)
    if first in ("memory", "cores", "device"):
        return task.resources.line or task.line
    return task.line if first == "task" else task.config.line or task.line


def _start(task: _Task, *, settled: set[str]) -> pb.TaskConfig:
    """What StartTask would carry, as far as it is known."""
    numbers = {
        key: default if key in settled else task.resources.get(key, default) for key, default in _DEFAULTS.items()
    }
    isolated = task.mode is None or task.mode == "bridge" or task.mode.startswith("cni/")
    made = pb.TaskConfig(
        id="validate",
        name=task.name,
        alloc_id="validate",
        alloc_dir=str(_ALLOC),
        job_name=task.job,
        job_id=task.job,
        resources=pb.Resources(
            allocated_resources=pb.AllocatedTaskResources(
                cpu=pb.AllocatedCpuResources(cpu_shares=_fitting(numbers["cpu"])),
                memory=pb.AllocatedMemoryResources(
                    memory_mb=_fitting(numbers["memory"]), memory_max_mb=_fitting(numbers["memory_max"])
                ),
            ),
            linux_resources=pb.LinuxResources(
                cpu_shares=_fitting(numbers["cpu"]),
                cpuset_cpus=",".join(map(str, range(min(numbers["cores"], 4096)))),
            ),
            ports=[
                pb.PortMapping(label=label, value=_A_PORT + index, to=_fitting(to))
                for index, (label, to, _) in enumerate(task.ports)
            ],
        ),
        device_env=env_of(0, range(task.tokens)) if task.tokens else {},
    )
    if isolated:
        made.network_isolation_spec.path = str(_ALLOC / "netns")
    return made


def _fitting(number: int) -> int:
    """What the wire can carry."""
    return max(-1, min(number, 2**31 - 1))


# -- what depends on the node ----------------------------------------------------------------------------------------


class _Any(dict[str, Any]):
    """Every name is one of the operator's."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self._made = made

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ARG002  as a dict has it
        return self._made(name)


def _any_node(options: TaskConfig) -> PluginConfig:
    """A node whose operator allows what the job wants."""
    networks: Mapping[str, Network] = _Any(lambda name: BridgeNetwork(name=name, bridge="any"))
    nfs: Mapping[str, NfsExport] = _Any(lambda name: NfsExport(name=name, server="any", export="/"))
    return replace(
        decode_plugin_config(b"\x80"),
        image_paths=(Path("/"),),
        networks=networks,
        nfs=nfs,
        vfio_allow=options.vfio,
    )


def _check_files(report: Report, task: _Task, options: TaskConfig, spec: MachineSpec) -> None:
    """Files of the operator's; what lies in the task's directories comes later."""
    named: list[tuple[str, str, FileRef | None]] = []
    if spec.root is not None:
        named.append(("image", options.image, spec.root.image))
    if spec.boot is not None:
        named += [("kernel", options.kernel, spec.boot.kernel), ("initrd", options.initrd, spec.boot.initrd)]
    if isinstance(spec.firmware, FileRef):
        named.append(("firmware", options.firmware, spec.firmware))
    named += [
        (f"disk[{index}].source", disk.source, spec.disks[index].source) for index, disk in enumerate(options.disks)
    ]
    for key, text, ref in named:
        if ref is None or ref.nfs is not None or ref.root.is_relative_to(_ALLOC):
            continue
        try:
            os.close(open_ref(ref, key=key))
        except SpecError as exc:
            why = str(exc).partition(": ")[2] or str(exc)
            report.add(_line(task, key), key, why, value=show(text), task=task.path)
