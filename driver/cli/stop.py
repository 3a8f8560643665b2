"""`chv stop ID`: the end of a machine that `chv run` started, and of all that it has."""

import argparse
import contextlib
import sys
import time

from driver.cli.common import add_config, add_id, find_machine, how_it_ended, load_config, machines_of
from driver.cli.errors import UsageError
from driver.cli.run_life import lock_of
from vmlib import files
from vmlib.errors import HypervisorError
from vmlib.units import parse_duration

_REMOVED_S = 10.0  # for whoever sees to the machine to remove it


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "stop",
        help="stop a machine that `chv run` started",
        description="Press the power button of a machine that `chv run` started, and remove it once it is off."
        " Machines of a scheduler are the scheduler's to stop.",
        epilog="Exit codes: 0 it is gone; 1 no such machine, or something of it is left; 2 it is not one of chv run.",
    )
    add_id(parser)
    parser.add_argument("--timeout", metavar="TIME", default="30s", help="for the guest; default: 30s")
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        timeout_s = parse_duration(args.timeout)
    except ValueError as exc:
        raise UsageError(f"--timeout {args.timeout}: {exc}") from exc
    config = load_config(args)
    machine = find_machine(config, args.id)
    name, owner = machine.record.name, machine.record.owner
    if owner != "run":
        how = "`nomad alloc stop`" if owner == "nomad" else "^C at its `chv dev`"
        raise UsageError(f"{name} belongs to {owner}, expected a machine of `chv run`: {how} stops it")
    if machine.running():
        machine.stop(timeout_s)
    deadline = time.monotonic() + _REMOVED_S
    while machine.paths.root.exists():
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            files.locked(lock_of(machine.paths), blocking=False),
        ):
            machines_of(config).remove(name)
            break
        if time.monotonic() > deadline:
            raise HypervisorError(f"{name}: whoever sees to it does not remove it{how_it_ended(machine)}")
        time.sleep(0.05)  # whoever has the lock may remove it as well, and either is fine
    print(f"chv: {name} is gone", file=sys.stderr)
    return 0
