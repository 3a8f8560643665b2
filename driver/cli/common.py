"""What the commands share: the operator's config, finding a machine, printing for people and for programs."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.devhost.agentfile import find_agent_file, plugin_config_msgpack
from driver.devhost.errors import AgentFileError
from driver.node import hypervisor_settings
from driver.schema import plugin_spec
from driver.translate import machine_name
from vmlib.errors import HypervisorError, VmError
from vmlib.hypervisor.select import attach, choose, probe_offers
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.running import Machine
from vmlib.settings import HostSettings


class UsageError(Exception):
    """The person at the shell has to say it otherwise. One line."""


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help="agent file with our plugin block (CHV_CONFIG)")
    parser.add_argument("--json", action="store_true", help="for programs")


def load_config(args: argparse.Namespace) -> PluginConfig:
    """The plugin block of the file that was named, of CHV_CONFIG, of /etc/nomad.d, or the defaults."""
    try:
        return decode_plugin_config(plugin_config_msgpack(find_agent_file(args.config), plugin_spec()))
    except (AgentFileError, VmError, OSError) as exc:
        raise UsageError(str(exc)) from exc


def all_machines(config: PluginConfig) -> list[Machine]:
    machines = machines_of(config)
    found = (machines.find(record.name) for record in machines.records())
    return [machine for machine in found if machine is not None]


def machines_of(config: PluginConfig) -> Machines:
    settings = hypervisor_settings(config)
    host = HostSettings(layout=Layout(config.data_dir, config.run_dir), vm_uids=config.vm_uids, vm_user=config.vm_user)
    return Machines(host, lambda spec: choose(spec, probe_offers(settings)), attach)


def find_machine(config: PluginConfig, wanted: str) -> Machine:
    """By alloc id, a prefix of it, or ALLOC/TASK. Raises UsageError when that is no machine, or several."""
    alloc, _, task = wanted.partition("/")
    found = [
        machine
        for machine in all_machines(config)
        if machine.record.name.startswith(alloc)
        and (not task or machine.record.name == machine_name(machine.record.name.split("/")[0], task))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no machine {wanted!r} in {config.data_dir}, look at `chv ps`")
    names = ", ".join(machine.record.name for machine in found)
    raise UsageError(f"{wanted!r} fits {len(found)} machines: {names}")


def state_of(machine: Machine) -> str:
    """`running`, `paused`, … while it lives, `exited` after."""
    if not machine.running():
        return "exited"
    try:
        return machine.status()
    except HypervisorError:
        return "unknown"


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_pairs(facts: dict[str, Any]) -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        print(f"{key.ljust(width)}  {value if isinstance(value, str | int) else json.dumps(value)}")
