"""`chv manual`: the manual page chv(1), made from the argparse tree."""

import argparse
from collections.abc import Iterator

from driver import __version__
from driver.cli.tree import Argument, Command, read_tree

_EXIT_CODES = "Exit codes: 0 fine; 1 a problem was found; 2 wrong usage."
_ABOUT = (
    (
        "chv is a Nomad task driver that boots virtual machines under Cloud Hypervisor or QEMU, each vCPU on a core of"
        " its own. Started by a Nomad agent it is that plugin; otherwise it is the tool that this page describes."
    ),
    (
        "ID is the alloc id of a machine or a prefix of it, ALLOC/TASK where that is not enough. Every command works"
        " while the plugin runs, and when it is dead. Most need root."
    ),
    "With --json a command prints one JSON value whose keys stay what they are.",
)
_ENVIRONMENT = (("CHV_CONFIG", "the agent file with our plugin block, where --config does not name one"),)
_FILES = (
    ("/etc/nomad.d/*.hcl", "where the plugin block is looked for when nobody names a file"),
    ("/var/lib/chv", "data_dir: machines, persistent disks, the image cache, who has which cores"),
    ("/run/chv", "run_dir: sockets of running machines"),
)
_EXAMPLES = (
    ("chv doctor", "is this node fine?"),
    ("chv run --image debian-12.qcow2 --vcpus 2 --memory 1GiB --network lan", "a machine without Nomad"),
    ("chv validate --config /etc/nomad.d/chv.hcl web.nomad.hcl", "every complaint about a job, before Nomad has it"),
    ("chv gc", "what nobody wants any more"),
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "manual",
        help="print the manual page",
        description="Print the manual page chv(1): `chv manual | man -l -`.",
        epilog="Exit codes: 0.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:  # noqa: ARG001  one signature for all commands
    print(manual_page(), end="")
    return 0


def manual_page() -> str:
    """chv.1 in the man macros, the same bytes for the same version."""
    return "\n".join(_lines(read_tree())) + "\n"


def _lines(tree: Command) -> Iterator[str]:
    yield f'.TH CHV 1 "" "chv {_escaped(__version__)}" "User Commands"'
    yield from (".SH NAME", r"chv \- virtual machines on whole CPU cores, for HashiCorp Nomad")
    yield from (".SH SYNOPSIS", ".B chv", r"\fICOMMAND\fR [\fIOPTION\fR]...")
    yield ".SH DESCRIPTION"
    for paragraph in _ABOUT:
        yield from (".PP", _escaped(paragraph))
    yield ".SH COMMANDS"
    for command in tree.actions:
        yield from _command(command, command.name)
    yield from (".SH EXIT STATUS", ".TP", ".B 0", "fine", ".TP", ".B 1", "a problem was found", ".TP", ".B 2")
    yield "wrong usage, or a config that is refused"
    yield from (".PP", _escaped("A command that has others says so above."))
    for title, entries in (("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES), ("EXAMPLES", _EXAMPLES)):
        yield f".SH {title}"
        for name, text in entries:
            yield from (".TP", f".B {_escaped(name)}", _escaped(text))


def _command(command: Command, name: str) -> Iterator[str]:
    yield f'.SS "{_escaped(f"chv {name}")}"'
    for place in command.places:
        yield from _argument(place) if place.help else ()
    yield from (".PP", _escaped(command.description))
    for option in command.options:
        if option.names[0] != "-h":
            yield from _argument(option)
    if not command.actions:
        yield from (".PP", _escaped(command.epilog or _EXIT_CODES))
    for action in command.actions:
        yield from _command(action, f"{name} {action.name}")


def _argument(argument: Argument) -> Iterator[str]:
    names = ", ".join(rf"\fB{_escaped(name)}\fR" for name in argument.names)
    value = rf"\fI{_escaped(argument.metavar)}\fR" if argument.metavar else ""
    yield from (".TP", f"{names} {value}".strip())
    yield _escaped(argument.help) or r"\&"


def _escaped(text: str) -> str:
    """As groff shows it: a minus that can be copied, no backslash of ours, and no line that looks like a request."""
    found = text.replace("\\", r"\e").replace("-", r"\-").replace("…", "...").replace("×", "x")
    return rf"\&{found}" if found.startswith((".", "'")) else found
