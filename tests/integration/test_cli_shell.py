"""Completion as a real shell does it, and the manual page as groff and a reader see it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.cli import COMMANDS
from driver.cli.completion import SHELLS
from driver.cli.manual import manual_page
from driver.cli.tree import Command, read_tree
from tests.integration.nodes import READY, Node
from tests.integration.test_cli import as_json

PAGE = Path(__file__).parent.parent.parent / "docs/command-line.md"


def complete(node: Node, line: str) -> set[str]:
    """What bash offers at the end of that line."""
    words = line.split(" ")
    script = (
        f"source <({node.chv} completion bash)\n"
        f"COMP_WORDS=({' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        "_chv\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={
            **os.environ,
            **node.environment,
            "CHV_CONFIG": str(node.agent_file),
            "PATH": f"{node.chv.parent}:{os.environ['PATH']}",
        },
        cwd=node.base,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_options_words_and_files(fake_node: Node) -> None:
    assert complete(fake_node, "chv ") == set(COMMANDS)
    assert complete(fake_node, "chv in") == {"inspect"}
    assert complete(fake_node, "chv ps --") == {"--help", "--config", "--json", "--ids"}
    assert complete(fake_node, "chv run --placement ") == {"exclusive", "shared"}
    assert complete(fake_node, "chv completion ") == set(SHELLS)
    assert complete(fake_node, "chv disks ") == {"remove"}
    assert complete(fake_node, "chv disks remove ") == set()
    assert complete(fake_node, "chv dev agent") == {"agent.hcl"}
    assert complete(fake_node, "chv ps --config agent") == {"agent.hcl"}
    assert complete(fake_node, "chv inspect ") == set()


def test_bash_completes_the_ids_of_machines(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job()) as dev:
        dev.until_says(READY)
        (row,) = as_json(fake_node, "ps")
        for command in ("inspect", "console", "reboot", "nmi", "stop"):
            assert complete(fake_node, f"chv {command} {row['id'][:3]}") == {row["id"]}
        assert complete(fake_node, "chv inspect zzz") == set()
        dev.press_ctrl_c()
        dev.wait()


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_printed_is_a_script_of_that_shell_and_knows_every_command(fake_node: Node, shell: str) -> None:
    done = fake_node.command("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", done.stdout)
    if shutil.which(shell) is None:
        return  # its names are all that can be looked at here
    check = subprocess.run([shell, "-n", "/dev/stdin"], input=done.stdout, text=True, capture_output=True, check=False)
    assert (check.returncode, check.stderr) == (0, "")


# ---------------------------------------------------------------------------------------------------------------------
# the manual page


def all_commands(tree: Command, name: str = "") -> Iterator[tuple[str, Command]]:
    for command in tree.actions:
        yield f"{name}{command.name}", command
        yield from all_commands(command, f"{name}{command.name} ")


def test_the_manual_page_is_sound_and_has_every_command_and_option(fake_node: Node) -> None:
    page = fake_node.command("manual").stdout
    assert page == manual_page()
    assert page.startswith(".TH CHV 1 ")
    # A line of text that began like a request would vanish.
    known = {".TH", ".SH", ".SS", ".PP", ".TP", ".B"}
    assert {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))} == known
    plain = page.replace(r"\-", "-")
    for name, command in all_commands(read_tree()):
        assert f'.SS "chv {name}"' in plain
        for option in command.options:
            assert option.names[0] == "-h" or rf"\fB{option.names[-1]}\fR" in plain


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_groff_has_nothing_to_complain_of() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=manual_page(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    shown = re.sub(".\b", "", done.stdout)
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"):
        assert re.search(rf"^{title}$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80


def test_every_command_says_its_exit_codes_and_is_on_the_page_about_commands() -> None:
    text = PAGE.read_text()
    for name, command in all_commands(read_tree()):
        assert command.help, name
        if not command.actions and name != "doctor":
            assert command.epilog.startswith("Exit codes: "), name
        assert re.search(rf"`{name}\b", text) or f"chv {name}" in text, name
