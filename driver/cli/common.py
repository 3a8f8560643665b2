"""What the commands share: the operator's config, finding a machine, printing for people and for programs."""

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from driver.cli.errors import NoMachineError, UsageError
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.devhost.agentfile import find_agent_file, plugin_config_msgpack
from driver.devhost.errors import AgentFileError
from driver.keys import plugin_spec
from driver.node import hypervisor_settings
from driver.translate import machine_name
from vmlib.errors import HypervisorError, VmError
from vmlib.hypervisor.select import attach, choose, probe_offers
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.running import Machine
from vmlib.settings import HostSettings

_ASKED_AT_ONCE = 32
_CONFIG_HELP = "agent file with our plugin block (CHV_CONFIG)"


def add_config(parser: argparse.ArgumentParser, *, config_help: str = _CONFIG_HELP) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help=config_help)


def add_common(parser: argparse.ArgumentParser, *, config_help: str = _CONFIG_HELP) -> None:
    add_config(parser, config_help=config_help)
    parser.add_argument("--json", action="store_true", help="for programs")


def add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="alloc id or a prefix of it; ALLOC/TASK where that is not enough")


def load_config(args: argparse.Namespace) -> PluginConfig:
    """The plugin block of the file that was named, of CHV_CONFIG, of /etc/nomad.d, or the defaults."""
    try:
        return decode_plugin_config(plugin_config_msgpack(find_agent_file(args.config), plugin_spec()))
    except PermissionError:
        raise
    except (AgentFileError, VmError, OSError) as exc:
        raise UsageError(str(exc)) from exc


def all_machines(config: PluginConfig) -> list[Machine]:
    return machines_of(config).all()


def expect_readable(config: PluginConfig) -> None:
    """Raises PermissionError: to whoever may not look, a full directory must not seem an empty one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(config.data_dir)


def machines_of(config: PluginConfig) -> Machines:
    expect_readable(config)
    settings = hypervisor_settings(config)
    host = HostSettings(layout=Layout(config.data_dir, config.run_dir), vm_uids=config.vm_uids, vm_user=config.vm_user)
    return Machines(host, lambda spec: choose(spec, probe_offers(settings)), attach)


def find_machine(config: PluginConfig, wanted: str) -> Machine:
    """By alloc id, a prefix of it, or ALLOC/TASK. Raises NoMachineError, and UsageError when that is several."""
    alloc, _, task = wanted.partition("/")
    if not alloc:  # every machine begins so: a variable of a script's that is not set
        raise UsageError(f"{wanted!r} is no ID, look at `chv ps`")
    found = [
        machine
        for machine in machines_of(config).all(alloc)
        if (not task or machine.record.name == machine_name(machine.record.name.split("/")[0], task))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoMachineError(f"no machine {wanted!r} in {config.data_dir}, look at `chv ps`")
    names = ", ".join(machine.record.name for machine in found)
    raise UsageError(f"{wanted!r} fits {len(found)} machines: {names}")


def find_running(config: PluginConfig, wanted: str) -> Machine:
    """The same, of one that lives. Raises NoMachineError, UsageError."""
    machine = find_machine(config, wanted)
    if not machine.running():
        raise NoMachineError(f"{machine.record.name} has ended{how_it_ended(machine)}")
    return machine


def how_it_ended(machine: Machine) -> str:
    """`: exit code 1, guest panic: …`; empty where nobody has written it down."""
    record = machine.exit_record()
    if record is None:
        return ""
    return f": exit code {record.exit_code}{f', {record.message}' if record.message else ''}"


def state_of(machine: Machine) -> str:
    """`running`, `paused`, … while it lives, `exited` after."""
    if not machine.running():
        return "exited"
    try:
        return machine.status()
    except HypervisorError:
        return "unknown"


def states_of(machines: Sequence[Machine]) -> list[str]:
    """The same of many: each VMM takes its time to answer, and one that hangs takes seconds."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(state_of, machines))


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2))


def shortened(name: str, most: int = 44) -> str:
    """A name that is mostly digits, for a table."""
    return name if len(name) <= most else f"{name[: most - 13]}…{name[-12:]}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_pairs(facts: dict[str, Any]) -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        print(f"{key.ljust(width)}  {value if isinstance(value, str | int) else json.dumps(value)}")
