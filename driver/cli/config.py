"""`chv config`: the operator's decisions as every command and the plugin read them, defaults and all."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from driver.cli.common import add_common, load_config, print_json, print_pairs
from driver.cli.cores import read_policy
from driver.config_plugin import PluginConfig
from driver.devhost.agentfile import find_agent_file
from driver.partitions import reserved_cpus
from vmlib.cores.cpulist import format_cpus
from vmlib.errors import HostError
from vmlib.paths import Layout


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "config",
        help="show the plugin block as it is read, with its defaults",
        description="Show the plugin block as the plugin and every command read it, with its defaults.",
        epilog="Exit codes: 0 fine; 2 the file is refused.",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    facts = describe(config, find_agent_file(args.config))
    if args.json:
        print_json(facts)
    else:
        print_pairs(facts)
    return 0


def describe(config: PluginConfig, file: Path | None) -> dict[str, Any]:
    """The keys are a contract; `chv run` lives by it."""
    uids = config.vm_uids
    return {
        "file": "" if file is None else str(file),
        "data_dir": str(config.data_dir),
        "run_dir": str(config.run_dir),
        "hypervisor": config.hypervisor,
        "vm_uids": "" if uids is None else f"{uids.start}-{uids.stop - 1}",
        "vm_user": config.vm_user,
        "qemu": {"binary": config.qemu_binary, "accel": config.qemu_accel},
        "cloud_hypervisor": {"binary": config.ch_binary, "firmware": str(config.ch_firmware or "")},
        "image_max_size_bytes": config.image_max_size_bytes,
        "image_paths": list(map(str, config.image_paths)),
        "default_network": config.default_network,
        "networks": {name: asdict(network) for name, network in config.networks.items()},
        "nfs": {name: asdict(export) for name, export in config.nfs.items()},
        "vfio_allow": list(config.vfio_allow),
        "hooks": list(config.hooks),
        "cores": _cores(config),
        "gc": {
            "image_cache_max_bytes": config.image_cache_max_bytes,
            "image_cache_max_age_s": config.image_cache_max_age_s,
            "orphan_grace_s": config.orphan_grace_s,
            "dry_run": config.gc_dry_run,
        },
    }


def _cores(config: PluginConfig) -> dict[str, Any]:
    """What the operator says, and what the scheduler makes of it, as far as the driver has published that."""
    said = config.cores
    facts: dict[str, Any] = {"smt": said.smt, "tokens": said.tokens, "partition": said.partition}
    try:
        found = read_policy(Layout(config.data_dir, config.run_dir).cores)
    except HostError:  # the plugin writes it anew
        found = None
    dedicated = said.dedicated if found is None or not found.dedicated else found.dedicated
    usable = None if found is None else found.usable
    return {
        **facts,
        "dedicated": format_cpus(dedicated),
        "usable": None if usable is None else format_cpus(usable),
        "housekeeping": format_cpus(said.housekeeping or frozenset()),
        "reserved": format_cpus(reserved_cpus()),
    }
