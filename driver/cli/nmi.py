"""`chv nmi ID`: a non-maskable interrupt, for a guest that hangs and is set up to dump or panic at one."""

import argparse

from driver.cli.common import add_config, add_id, find_running, load_config


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "nmi",
        help="send a guest a non-maskable interrupt",
        description="Send the guest a non-maskable interrupt. What it does with it is its own matter.",
        epilog="Exit codes: 0 it was sent; 1 no such machine, it has ended, or its VMM does not answer.",
    )
    add_id(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    find_running(load_config(args), args.id).nmi()
    return 0
