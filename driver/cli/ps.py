"""`chv ps`: the machines of this node."""

import argparse
import time

from driver.cli.common import add_common, all_machines, load_config, print_json, print_table, state_of


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("ps", help="list the machines of this node")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Every machine of the data directory, whoever owns it."""
    rows = []
    for machine in all_machines(load_config(args)):
        record = machine.record
        rows.append(
            {
                "id": record.name,
                "owner": record.owner,
                "hypervisor": record.hypervisor,
                "pid": record.vmm_pid,
                "state": state_of(machine),
                "vcpus": record.vcpus,
                "memory_mib": record.memory_mib,
                "age_s": round(time.time() - record.started_at),
            }
        )
    if args.json:
        print_json(rows)
    else:
        print_table(
            ("ID", "OWNER", "HYPERVISOR", "PID", "STATE", "VCPUS", "MIB", "AGE"),
            [tuple(str(value) for value in row.values()) for row in rows],
        )
    return 0
