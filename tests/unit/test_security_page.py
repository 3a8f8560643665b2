"""docs/security.md: every line names tests that show it, and every test that it names exists."""

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs/security.md").read_text()
NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::([A-Za-z0-9_]+)`")


def rows() -> list[str]:
    """The lines of the tables below their heads."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith("| ---") and not line.endswith("| shown by |")]


def test_every_line_names_a_test() -> None:
    assert len(rows()) >= 25
    assert [line for line in rows() if not NAMED.search(line.rpartition(" | ")[2])] == []


def test_every_test_that_is_named_exists() -> None:
    named = set(NAMED.findall(PAGE))
    there = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in ast.walk(ast.parse((CHECKOUT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named - there == set()
    assert PAGE.count("tests/") == len(NAMED.findall(PAGE))


def test_each_of_the_four_has_its_table() -> None:
    for heading in ("A hostile guest", "The author of a job", "A neighbour", "A user of Nomad's API"):
        assert f"\n## {heading}\n" in PAGE
