"""The words of task events: on the page that explains them, and said by the code. mypy sees that no others are."""

import ast
import re
from pathlib import Path

from vmlib import kinds
from vmlib.kinds import KINDS

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "events.md"


def test_the_page_explains_each_word_once() -> None:
    cells = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`([^`]+)`", " ".join(cells))) == sorted(KINDS)


def test_each_word_is_said_somewhere() -> None:
    sources = [path for root in ("driver", "vmlib") for path in (CHECKOUT / root).rglob("*.py")]
    said = {
        node.value
        for path in sources
        if path.name != Path(kinds.__file__).name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    }
    assert set(KINDS) - said <= {"agent ready"}
