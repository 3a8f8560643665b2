"""The schemas as Nomad gets them, and the users' pages whose tables are made of them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver._pb import hclspec_pb2 as pb
from driver.keys import PLUGIN, TASK, plugin_spec, task_spec
from driver.schema import Key, Members, walk
from tests import reference

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


@pytest.mark.parametrize(("page", "members"), PAGES)
def test_the_page_tells_of_every_block(page: str, members: Members) -> None:
    text = (DOCS / page).read_text()
    for path, member in walk(members):
        assert isinstance(member, Key) or f"`{path}`" in text, path


@pytest.mark.parametrize("members", [PLUGIN, TASK])
def test_every_key_says_what_it_means(members: Members) -> None:
    assert not [path for path, member in walk(members) if isinstance(member, Key) and not member.meaning]


# -- the tables of the pages -----------------------------------------------------------------------------------------

KEYS = (Key(name="a", default="x", works=("x", "y"), meaning="first"), Key(name="b", kind="number", default=None))


def table(*rows: str) -> str:
    return f"words\n\n{reference.HEAD}{''.join(rows)}\nmore words\n"


def test_a_row_that_was_begun_or_is_out_of_date_is_filled_in_where_it_stands() -> None:
    made = table("| `b` | number |  |  |\n", '| `a` | string | `"x"` | first |\n')
    assert reference.filled(table("| `b` |\n", "| `a` | bool | `0` | last |\n"), KEYS) == made
    assert reference.filled(made, KEYS) == made


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["| `a` |\n"], "no table has b"),
        (["| `a` |\n", "| `b` |\n", "| `a` |\n"], "'| `a` |' is no row of a key that has none yet"),
        (["| `a` |\n", "| `b` |\n", "| `c` |\n"], "'| `c` |' is no row of a key that has none yet"),
    ],
)
def test_a_page_has_each_key_once(rows: list[str], complaint: str) -> None:
    with pytest.raises(reference.RowError, match=re.escape(complaint)):
        reference.filled(table(*rows), KEYS)
