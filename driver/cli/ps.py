"""`chv ps`: the machines of this node."""

import argparse
import time

from driver.cli.common import add_common, all_machines, load_config, print_json, print_table, shortened, states_of


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "ps",
        help="list the machines of this node",
        description="List the machines of this node, whoever started them.",
        epilog="Exit codes: 0.",
    )
    add_common(parser)
    parser.add_argument("--ids", action="store_true", help="IDs alone, one a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Every machine of the data directory, whoever owns it."""
    rows = []
    machines = all_machines(load_config(args))
    if args.ids:
        for machine in machines:
            print(machine.record.name)
        return 0
    for machine, state in zip(machines, states_of(machines), strict=True):
        record = machine.record
        rows.append(
            {
                "id": record.name,
                "owner": record.owner,
                "hypervisor": record.hypervisor,
                "pid": record.vmm_pid,
                "state": state,
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
            [(shortened(str(row["id"])), *(str(value) for value in list(row.values())[1:])) for row in rows],
        )
    return 0
