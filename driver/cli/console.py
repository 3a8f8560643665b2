"""`chv console ID`: the guest's serial console, at a terminal or in a pipe.

At a terminal every key is the guest's, but for the one that leaves. In a pipe, what comes on standard input is typed
and what the guest says goes to standard output, and nothing else does.
"""

import argparse
import contextlib
import sys
import time

from driver.cli.common import add_config, add_id, find_running, how_it_ended, load_config
from driver.cli.terminal import Keyboard, ended_by_signals, follow, me, say
from vmlib.errors import HypervisorError
from vmlib.keeper.client import Console
from vmlib.running import Machine

_AGAIN_S = 10.0  # for another keeper to take the place of one that is gone
_RECORD_S = 5.0  # for a keeper to write down how its machine ended


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "console",
        help="the serial console of a machine",
        description="Attach to a guest's serial console; Ctrl-] leaves it. One types, any number watch.",
        epilog="Exit codes: 0 you left it, or the machine has ended; 1 no such machine, it ended before, or its keeper"
        " does not answer; 128 + n by signal n.",
    )
    add_id(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="do not type")
    how.add_argument("--take", action="store_true", help="type, and whoever does so now watches")
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when the person has left, and at the machine's end; 1 without a machine or keeper; 128 + n by signal n."""
    machine = find_running(load_config(args), args.id)
    name = machine.record.name
    keyboard = Keyboard.standard_input(watch=args.watch)
    line = _attach(machine, keyboard, write=not args.watch, take=args.take)
    with ended_by_signals(), keyboard.raw():
        if keyboard.terminal:
            say(keyboard, f"console of {name}, Ctrl-] leaves it{_whose(line, args)}")
        while True:
            with contextlib.closing(line.sock):
                outcome = follow(line, keyboard)
            if outcome != "lost":
                break
            again = _again(machine, keyboard, write=not args.watch)
            if again is None:
                break
            line = again
            say(
                keyboard, "attached again: the keeper was replaced, or this was not read for long; bytes may be missing"
            )
    if outcome == "refused":
        raise HypervisorError(f"{line.writer} types on the console of {name}, --take takes that over")
    if outcome == "lost":
        if machine.running():
            raise HypervisorError(f"the keeper of {name} is gone, and no other one has come")
        print(f"chv: {name} has ended{how_it_ended(machine)}", file=sys.stderr)
    return 0


def _attach(machine: Machine, keyboard: Keyboard, *, write: bool, take: bool = False) -> Console:
    return machine.console(write=write and keyboard.fd >= 0, take=take, who=me(keyboard), notices=keyboard.terminal)


def _again(machine: Machine, keyboard: Keyboard, *, write: bool) -> Console | None:
    """The console of a machine whose keeper let go of us; None when the machine has ended, or nobody keeps it.

    It looks again and again: with its keeper gone, there is nobody who could tell.
    """
    deadline = time.monotonic() + _AGAIN_S
    while machine.running() and time.monotonic() < deadline:
        with contextlib.suppress(HypervisorError):
            return _attach(machine, keyboard, write=write)
        time.sleep(0.1)
    deadline = time.monotonic() + _RECORD_S
    while not machine.running() and machine.exit_record() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return None


def _whose(line: Console, args: argparse.Namespace) -> str:
    if args.watch:
        return "; you watch"
    if not line.writes:
        return f"; {line.writer} types, you watch until that one leaves (--take takes it over)"
    return f"; you type, {line.writer} watches now" if line.writer else ""
