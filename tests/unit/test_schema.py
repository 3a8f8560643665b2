"""The schemas as Nomad gets them, and the users' pages that must tell of every key in them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver._pb import hclspec_pb2 as pb
from driver.schema import PLUGIN, TASK, Block, Key, Members, literal, plugin_spec, task_spec, walk

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [("plugin.md", PLUGIN), ("task.md", TASK)]


def lines(spec: pb.Spec, name: str = "", depth: int = 0) -> Iterator[str]:
    """A spec, one line for each member."""
    pad = "  " * depth
    kind = spec.WhichOneof("block")
    match kind:
        case "object":
            for member in sorted(spec.object.attributes):
                yield from lines(spec.object.attributes[member], member, depth)
        case "Attr":
            assert spec.Attr.name == name
            yield f"{pad}{name}: {spec.Attr.type}{' required' if spec.Attr.required else ''}"
        case "default":
            yield from (
                f"{line} = {spec.default.default.literal.value}" for line in lines(spec.default.primary, name, depth)
            )
        case "block_value":
            assert spec.block_value.name == name
            yield f"{pad}{name}: block"
            yield from lines(spec.block_value.nested, "", depth + 1)
        case "block_list":
            assert spec.block_list.name == name
            yield f"{pad}{name}: list of blocks"
            yield from lines(spec.block_list.nested, "", depth + 1)
        case "block_map":
            assert spec.block_map.name == name
            yield f"{pad}{name}: blocks by {', '.join(spec.block_map.labels)}"
            yield from lines(spec.block_map.nested, "", depth + 1)
        case _:
            raise AssertionError(f"{name}: {kind}")


@pytest.mark.parametrize(("name", "spec"), [("plugin", plugin_spec()), ("task", task_spec())])
def test_the_schema_is_what_nomad_has_always_got(name: str, spec: pb.Spec, golden: Callable[[str, str], None]) -> None:
    golden(f"schema/{name}.txt", "".join(f"{line}\n" for line in lines(spec)))


def test_no_key_is_required_by_the_schema_so_that_the_complaint_is_ours() -> None:
    assert not [line for spec in (plugin_spec(), task_spec()) for line in lines(spec) if "required" in line]


@pytest.mark.parametrize("members", [PLUGIN, TASK])
def test_every_default_is_a_value_that_works(members: Members) -> None:
    for path, member in walk(members):
        # A network has to say what it is: every mode has its own keys.
        if isinstance(member, Key) and member.works is not None and path != "network.mode":
            assert member.default in member.works, path


def row(path: str, key: Key) -> str:
    default = "" if key.default in (None, "") and key.works is None else f"`{literal(key.default)}`"
    return f"| `{path}` | {key.type} | {default} |"


@pytest.mark.parametrize(("page", "members"), PAGES)
def test_the_page_has_every_key_with_its_type_and_default(page: str, members: Members) -> None:
    text = (DOCS / page).read_text()
    works, _, not_yet = text.partition("\n## Not there yet\n")
    unbuilt = [path for path, member in walk(members) if isinstance(member, Block) and not member.built]
    for path, member in walk(members):
        if isinstance(member, Block):
            assert f"`{path}`" in text, path
        elif member.built and not path.startswith(tuple(f"{block}." for block in unbuilt)):
            assert row(path, member) in works, row(path, member)
        else:
            assert re.search(rf"`{re.escape(path)}( = [^`]+)?`", not_yet), path
            assert f"| `{path}` |" not in works, path


@pytest.mark.parametrize(("page", "members"), PAGES)
def test_the_page_tells_of_no_key_that_does_not_exist(page: str, members: Members) -> None:
    known = {path for path, _ in walk(members)}
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / page).read_text(), re.MULTILINE)
    assert set(rows) <= known


@pytest.mark.parametrize(("page", "members"), PAGES)
def test_the_page_names_every_value_that_does_not_work_yet(page: str, members: Members) -> None:
    not_yet = (DOCS / page).read_text().partition("\n## Not there yet\n")[2]
    for path, member in walk(members):
        if isinstance(member, Key) and isinstance(member.planned, tuple):
            for value in member.planned:
                assert re.search(rf"`{re.escape(path)} = [^`]*{re.escape(literal(value))}", not_yet), (path, value)
