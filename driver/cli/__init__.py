"""The command-line tool: one module for each command. Every command exits 0 fine, 1 a problem found, 2 wrong usage."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from driver import __version__
from driver.cli.errors import NoMachineError, UsageError
from vmlib.errors import VmError

COMMANDS = (
    "dev",
    "run",
    "stop",
    "doctor",
    "ps",
    "inspect",
    "console",
    "reboot",
    "nmi",
    "cores",
    "disks",
    "gc",
    "validate",
    "config",
    "completion",
    "manual",
)


def parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """All commands, or those alone; each adds its own options and its `run`."""
    top = argparse.ArgumentParser(prog="chv", description="Virtual machines on whole CPU cores, for HashiCorp Nomad.")
    top.add_argument("--version", action="version", version=f"chv {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f"driver.cli.{name}").add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        _give_up_output()
        return 1
    except OSError as exc:
        _give_up_output()
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"chv: {where}{(exc.strerror or str(exc)).lower()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _give_up_output() -> None:
    """The interpreter writes what is left at its end, and would complain with a code of its own."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    # A command loads what it needs: `run` needs nothing of the driver, and no other one the whole of it.
    names = words[:1] if words and words[0] in COMMANDS else COMMANDS
    args = parser(names).parse_args(words)
    try:
        return int(args.run(args))
    except UsageError as exc:
        print(f"chv: {exc}", file=sys.stderr)
        return 2
    except (NoMachineError, VmError) as exc:
        hint = f" ({exc.hint})" if isinstance(exc, VmError) and exc.hint else ""
        print(f"chv: {exc}{hint}", file=sys.stderr)
        return 1
    except PermissionError as exc:
        print(f"chv: {exc.filename or 'this'}: permission denied, expected root (try sudo)", file=sys.stderr)
        return 2
