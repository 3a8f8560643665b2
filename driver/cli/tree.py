"""The commands as data, read from the argparse tree: what completion and the manual page are made of."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# What stands for a value, by the word that the help text has for it.
_VALUES: "dict[str, Value]" = {"ID": "machine", "DISK": "disk", "FILE": "file", "DIR": "file", "PATH": "file"}

Value = Literal["", "machine", "disk", "file", "words", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An option, or what stands at a place (without `names`)."""

    names: tuple[str, ...]
    metavar: str  # "" = an option without a value
    help: str
    value: Value
    words: tuple[str, ...] = ()
    required: bool = False
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`actions` are commands of a command, as `disks remove`."""

    name: str
    help: str
    description: str
    epilog: str
    usage: str
    arguments: tuple[Argument, ...]
    actions: "tuple[Command, ...]" = ()

    @property
    def options(self) -> tuple[Argument, ...]:
        return tuple(one for one in self.arguments if one.names)

    @property
    def places(self) -> tuple[Argument, ...]:
        return tuple(one for one in self.arguments if not one.names)


def read_tree() -> Command:
    """The whole command line."""
    from driver import cli  # here: it imports the commands, one of which imports this

    return _command("chv", "", cli.parser())


def _command(name: str, help_: str, parser: argparse.ArgumentParser) -> Command:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    below = tuple(
        _command(choice.dest, choice.help or "", action.choices[choice.dest])
        for action in actions
        for choice in action._choices_actions
    )
    return Command(
        name=name,
        help=help_,
        description=parser.description or (f"{help_[:1].upper()}{help_[1:]}." if help_ else ""),
        epilog=parser.epilog or "",
        usage=" ".join(parser.format_usage().removeprefix("usage: ").split()),
        arguments=tuple(_arguments(parser)),
        actions=below,
    )


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        words = tuple(map(str, action.choices or ()))
        metavar = "" if action.nargs == 0 else _metavar(action, words)
        yield Argument(
            names=tuple(action.option_strings),
            metavar=metavar,
            help=(action.help or "").replace("%%", "%"),
            value=_value(metavar, words),
            words=words,
            required=not action.option_strings and action.nargs not in ("?", "*"),
            many=action.nargs in ("*", "+"),
        )


def _metavar(action: argparse.Action, words: tuple[str, ...]) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(words) if words else action.dest.upper()


def _value(metavar: str, words: tuple[str, ...]) -> Value:
    if words:
        return "words"
    if metavar.endswith((".hcl", "|FILE")):
        return "file"
    return _VALUES.get(metavar, "text" if metavar else "")
