"""The command-line tool: one module for each command. Every command exits 0 fine, 1 a problem found, 2 wrong usage."""

import argparse
import sys
from collections.abc import Sequence

from driver import __version__
from driver.cli import cores, dev, disks, doctor, inspect, ps
from driver.cli.common import UsageError


def parser() -> argparse.ArgumentParser:
    """All commands; each adds its own options and its `run`."""
    top = argparse.ArgumentParser(prog="chv", description="Virtual machines on whole CPU cores, for HashiCorp Nomad.")
    top.add_argument("--version", action="version", version=f"chv {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (dev, doctor, ps, inspect, cores, disks):
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UsageError as exc:
        print(f"chv: {exc}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
