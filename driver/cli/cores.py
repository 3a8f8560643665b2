"""`chv cores`: a picture of packages, NUMA nodes, L3s and cores, and who holds each."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from driver.cli.common import add_common, expect_readable, load_config, print_json
from driver.cli.cores_picture import draw
from driver.cli.cores_view import CoresView, as_json
from driver.config_plugin import PluginConfig
from driver.partitions import reserved_cpus
from vmlib import process
from vmlib.cores import plan
from vmlib.cores.cpulist import parse_cpus
from vmlib.cores.ledger import read_entries
from vmlib.cores.topology import Topology, read_topology
from vmlib.cores.words import Entry
from vmlib.errors import HostError
from vmlib.paths import Layout


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "cores",
        help="show the cores of this node and who holds them",
        description="Draw packages, NUMA nodes, L3s and cores, and who holds each.",
        epilog="Exit codes: 0 fine; 1 the cores cannot be read.",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    expect_readable(config)
    try:
        view = gather(config)
    except (HostError, OSError) as exc:
        print(f"chv: {exc}", file=sys.stderr)
        return 1
    if args.json:
        print_json(as_json(view))
    else:
        print(draw(view), end="")
    return 0


# -- what there is ---------------------------------------------------------------------------------------------------


def gather(config: PluginConfig) -> CoresView:
    """This node now. Raises HostError or OSError."""
    layout = Layout(config.data_dir, config.run_dir)
    boot_id = process.boot_id()
    return view_of(
        read_topology(),
        policy=read_policy(layout.cores),
        entries=[entry for entry in read_entries(layout.ledger) if entry.boot_id == boot_id],
        reserved=reserved_cpus(),
    )


def read_policy(path: Path) -> plan.Policy:
    """What the driver published; where it never ran, everything is shared out. Raises HostError."""
    try:
        data = json.loads(path.read_text())
        usable = data.get("usable")
        return plan.Policy(
            usable=None if usable is None else parse_cpus(usable),
            dedicated=parse_cpus(data.get("dedicated", "")),
            housekeeping=parse_cpus(data.get("housekeeping", "")),
        )
    except FileNotFoundError:
        return plan.Policy()
    except (ValueError, AttributeError, TypeError) as exc:
        raise HostError(f"{path}: expected what the driver writes there: {exc}") from exc


def view_of(
    topology: Topology, *, policy: plan.Policy, entries: Sequence[Entry], reserved: frozenset[int]
) -> CoresView:
    host = plan.Host(topology=topology, policy=policy, reserved=reserved & topology.online)
    return CoresView(
        topology=topology,
        entries=tuple(entries),
        dedicated=host.dedicated,
        housekeeping=plan.housekeeping(host, entries),
        usable=host.shared_out,
        reserved_by_nomad=host.reserved,
    )
