"""`chv completion SHELL`: what a shell needs to complete our commands, made from the argparse tree."""

import argparse
import shlex
from collections.abc import Iterator

from driver.cli.tree import Argument, Command, Value, read_tree

SHELLS = ("bash", "zsh", "fish")

# Quiet and empty where nothing can be read, as without root.
_LISTS: dict[Value, str] = {"machine": "chv ps --ids 2>/dev/null", "disk": "chv disks --ids 2>/dev/null"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "completion",
        help="print what a shell needs to complete our commands",
        description="Print what a shell needs to complete our commands and the IDs of machines:"
        " `source <(chv completion bash)`.",
        epilog="Exit codes: 0.",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    tree = read_tree()
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](tree), end="")
    return 0


# -- bash and zsh ----------------------------------------------------------------------------------------------------
# Both have `case`. They differ in where the words are and in how an answer is given.


def bash(tree: Command) -> str:
    answer = {
        "words": 'COMPREPLY=($(compgen -W "{0}" -- "$cur"))',
        "list": 'COMPREPLY=($(compgen -W "$({0})" -- "$cur"))',
        "file": 'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur"))',
    }
    return f"""# bash completion for chv, made by `chv completion bash`
_chv() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command= action= word i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
{_walk(tree)}
    done
    COMPREPLY=()
{_cases(tree, answer)}
}}
complete -F _chv chv
"""


def zsh(tree: Command) -> str:
    answer = {"words": "compadd -- {0}", "list": 'compadd -- ${{(f)"$({0})"}}', "file": "_files"}
    return f"""#compdef chv
# zsh completion for chv, made by `chv completion zsh`
_chv() {{
    local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}} command= action= word i
    for ((i = 2; i < CURRENT; i++)); do
        word=${{words[i]}}
{_walk(tree)}
    done
{_cases(tree, answer)}
}}
if [ "$funcstack[1]" = "_chv" ]; then
    _chv "$@"
else
    compdef _chv chv
fi
"""


def _walk(tree: Command) -> str:
    """Find the command, and the action of one that has actions."""
    names = "|".join(command.name for command in tree.actions)
    lines = [
        '        case "$command:$word" in',
        f"            :{names.replace('|', '|:')}) command=$word ;;",
    ]
    for command in tree.actions:
        lines += [f"            {command.name}:{one.name}) action=$word ;;" for one in command.actions]
    return "\n".join([*lines, "        esac"])


def _cases(tree: Command, answer: dict[str, str]) -> str:
    """What may come after the word before, then what may come at this place."""
    lines = ['    case "$command $action $prev" in']
    for command, place in _all(tree):
        for option in command.options:
            if option.metavar:
                patterns = "|".join(f'"{place} {name}"' for name in option.names)
                lines.append(f"        {patterns}) {_answer(option, answer)}; return ;;")
    lines += ["    esac", '    case "$command $action:$cur" in']
    for command, place in _all(tree):
        options = " ".join(name for one in command.options for name in one.names)
        lines.append(f'        "{place}":-*) {answer["words"].format(options)} ;;')
        places = command.places
        if command.actions:
            names = " ".join(one.name for one in command.actions)
            lines.append(f'        "{place}":*) {answer["words"].format(names)} ;;')
        elif places:
            lines.append(f'        "{place}":*) {_answer(places[0], answer)} ;;')
    return "\n".join([*lines, "    esac"])


def _all(tree: Command) -> Iterator[tuple[Command, str]]:
    """Each command with `COMMAND ACTION`, as the shell has found them."""
    yield tree, " "
    for command in tree.actions:
        yield command, f"{command.name} "
        for action in command.actions:
            yield action, f"{command.name} {action.name}"


def _answer(argument: Argument, answer: dict[str, str]) -> str:
    match argument.value:
        case "machine" | "disk":
            return answer["list"].format(_LISTS[argument.value])
        case "words":
            return answer["words"].format(" ".join(argument.words))
        case "file":
            return answer["file"]
    return ":"


# -- fish ------------------------------------------------------------------------------------------------------------


def fish(tree: Command) -> str:
    lines = ["# fish completion for chv, made by `chv completion fish`", "complete -c chv -f"]
    for command in tree.actions:
        lines.append(f"complete -c chv -n __fish_use_subcommand -a {command.name} -d {_q(command.help)}")
        seen = f"__fish_seen_subcommand_from {command.name}"
        lines += _fish(command, seen)
        for action in command.actions:
            lines.append(f"complete -c chv -n {_q(seen)} -a {action.name} -d {_q(action.help)}")
            lines += _fish(action, f"{seen}; and __fish_seen_subcommand_from {action.name}")
    return "\n".join(lines) + "\n"


def _fish(command: Command, seen: str) -> Iterator[str]:
    for option in command.options:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        value = f" -r{_fish_values(option)}" if option.metavar else ""
        yield f"complete -c chv -n {_q(seen)} {names}{value} -d {_q(option.help)}"
    for place in command.places:
        if values := _fish_values(place):
            yield f"complete -c chv -n {_q(seen)}{values}"


def _fish_values(argument: Argument) -> str:
    match argument.value:
        case "machine" | "disk":
            return f" -a '({_LISTS[argument.value]})'"
        case "words":
            return f" -a {_q(' '.join(argument.words))}"
        case "file":
            return " -F"
    return ""


def _q(text: str) -> str:
    return shlex.quote(text)
