"""`chv reboot ID`: the guest is reset, as by the button of a real machine; the task goes on."""

import argparse

from driver.cli.common import add_config, add_id, find_running, load_config


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "reboot",
        help="reset a guest",
        description="Reset the guest, without asking it. The task goes on, unless its on_reboot is exit: then it ends.",
        epilog="Exit codes: 0 it was reset; 1 no such machine, it has ended, or its VMM does not answer.",
    )
    add_id(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    find_running(load_config(args), args.id).reboot()
    return 0
