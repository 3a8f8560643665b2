"""README and docs/: what they show is what the driver and the tools take, and every link leads somewhere."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driver.cli import parser
from driver.config_plugin import decode_plugin_config
from driver.config_task import decode_task_config
from driver.devhost import agentfile, hcl1, hclspec
from driver.devhost.hcltree import config_json, parse
from driver.device_schema import decode_device_config, device_spec
from driver.keys import TASK, plugin_spec, task_spec
from tests import messages
from tests.pages import CHECKOUT, DOCS, Fenced, fenced, pages

BLOCKS = [one for page in pages() for one in fenced(page)]
HCL = [one for one in BLOCKS if one.language == "hcl"]
IN_PLUGIN_BLOCK = {"network", "nfs"}
IN_TASK_BLOCK = {member.name for member in TASK}
# Nomad's own, which only have to be HCL.
OF_NOMAD = {"service", "constraint", "telemetry"}
NEEDED = {"image": "local/a.raw"}  # where an example is about something else


def first_words(blocks: list[Fenced]) -> list[str]:
    return [f"{one.page}: {one.text.strip().splitlines()[0]}" for one in blocks]


@pytest.mark.parametrize("block", HCL, ids=first_words(HCL))
def test_what_a_page_shows_in_hcl_is_taken(tmp_path: Path, block: Fenced) -> None:
    keys = set(hcl_keys(block))
    if keys & {"plugin", "client", "plugin_dir"}:
        as_agent_file(tmp_path, block.text)
    elif keys <= IN_PLUGIN_BLOCK:
        as_agent_file(tmp_path, f'plugin "chv" {{\n config {{\n{block.text}}}\n}}\n')
    elif keys & {"job", "task"}:
        configs = list(task_configs(config_json(parse(block.text, DOCS))))
        assert configs
        for config in configs:
            as_task_config(config)
    elif keys <= IN_TASK_BLOCK:
        as_task_config(config_json(parse(block.text, DOCS)))
    else:
        assert keys <= OF_NOMAD, keys


def hcl_keys(block: Fenced) -> list[str]:
    return re.findall(r"^([a-z_]+)\b", block.text, re.MULTILINE)


def as_agent_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.hcl"
    path.write_text(text)
    decode_plugin_config(agentfile.plugin_config_msgpack(path, plugin_spec()))
    for plugin in hcl1.parse(text).get("plugin", []):
        for body in plugin.get("chv-cores", []):
            decode_device_config(hclspec.encode(device_spec(), body["config"][0]))


def as_task_config(config: dict[str, Any]) -> None:
    needed = {} if "image" in config or "kernel" in config else NEEDED
    decode_task_config(hclspec.encode(task_spec(), {**needed, **config}))


def task_configs(tree: Any) -> Iterator[dict[str, Any]]:
    """The config blocks of all tasks of ours, wherever they stand."""
    match tree:
        case {"driver": "chv", "config": [config]}:
            yield config
        case dict():
            for value in tree.values():
                yield from task_configs(value)
        case list():
            for value in tree:
                yield from task_configs(value)


def typed() -> list[tuple[str, str]]:
    """Lines of ours that a page has its reader type, and words in its text that begin with `chv`."""
    found = []
    for page in (one for one in pages() if one != messages.PAGE):
        text = page.read_text()
        lines = [line for one in fenced(page) if one.language in ("console", "sh") for line in one.text.splitlines()]
        lines += re.findall(r"^ {4}(.*\bchv .*)$", text, re.MULTILINE)
        lines += re.findall(r"`(chv [^`]+)`", text)
        found += [(page.name, line) for line in lines if re.search(r"(?:^|[|;] |\d )chv [a-z-]", line)]
    return found


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """By all their words, as `disks remove`."""
    found: dict[str, argparse.ArgumentParser] = {}

    def walk(one: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = one
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, below in action.choices.items():
                    walk(below, (*words, name))

    walk(parser(), ())
    return found


@pytest.mark.parametrize(("page", "line"), typed(), ids=[f"{page}: {line}" for page, line in typed()])
def test_a_command_on_a_page_is_one_that_there_is(page: str, line: str) -> None:
    known = subcommands()
    words = shlex.split(re.split(r"\bchv (?=[a-z-])", line, maxsplit=1)[1], comments=True)
    words = words[: next((index for index, word in enumerate(words) if word in ("|", ";", ">", "&&")), len(words))]
    command = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in known), "")
    options = {option for action in known[command]._actions for option in action.option_strings}
    assert command or words[0] in options, words[0]
    for word in words:
        assert not re.match(r"-.", word) or word.partition("=")[0] in options, word


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_the_config_that_the_package_brings_is_the_block_of_the_quick_start() -> None:
    brought = (CHECKOUT / "tests/package/debian/chv.hcl").read_text()
    shown = next(block.text for block in BLOCKS if block.file == "/etc/nomad.d/chv.hcl")
    taken = "\n".join(line[1:] for line in brought.splitlines() if re.match(r"#\S|# ? {2}", line) or line == "#")
    assert hcl1.parse(taken) == hcl1.parse(shown)


def test_messages_are_those_of_the_code() -> None:
    assert messages.PAGE.read_text() == messages.page(), "`python -m tests.messages` writes it anew"


@pytest.mark.parametrize(
    "text",
    [
        "vcpus: expected 1 to … (more need interrupt remapping, which machines do not have)",
        "vm_uids: all … uids are held by machines",
        "no usable hypervisor (…)",
    ],
)
def test_what_people_see_is_on_the_page(text: str) -> None:
    assert f"| `{text}` |" in messages.page()
