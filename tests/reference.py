"""Makes the tables of docs/plugin.md and docs/task.md: a row for each key, of what `driver.keys` says about it.

Which table a key stands in, and where, is the page's business: a new row is begun there by hand, as "| `key` |".
`python -m tests.reference` fills all rows in, `--check` says whether they are what the keys say (`make lint`).
"""

import re
import sys
from pathlib import Path

from driver.keys import PLUGIN, TASK
from driver.schema import Key, Members, literal, walk
from tests.pages import DOCS

PAGES = {"plugin.md": PLUGIN, "task.md": TASK}
HEAD = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
_TABLE = re.compile(re.escape(HEAD) + r"((?:\|.*\n)*)")
_KEY = re.compile(r"\| `([^`]+)` \|")


class RowError(Exception):
    """A page whose tables do not have each key once. The message names it."""


def row(path: str, key: Key) -> str:
    default = "" if key.default in (None, "") and key.works is None else f"`{literal(key.default)}`"
    return f"| `{path}` | {key.type} | {default} | {key.meaning} |\n"


def filled(text: str, members: Members) -> str:
    """The page with every row as its key has it. Raises RowError when a key has no row, or two, or none exists."""
    keys = {path: member for path, member in walk(members) if isinstance(member, Key)}
    missing = dict(keys)

    def rows(table: re.Match[str]) -> str:
        made = []
        for line in table[1].splitlines():
            found = _KEY.match(line)
            if found is None or missing.pop(found[1], None) is None:
                raise RowError(f"{line!r} is no row of a key that has none yet")
            made.append(row(found[1], keys[found[1]]))
        return HEAD + "".join(made)

    made = _TABLE.sub(rows, text)
    if missing:
        raise RowError(f"no table has {', '.join(missing)}")
    return made


def main() -> None:
    for name, members in PAGES.items():
        page: Path = DOCS / name
        text = page.read_text()
        try:
            made = filled(text, members)
        except RowError as exc:
            sys.exit(f"docs/{name}: {exc}")
        if sys.argv[1:] != ["--check"]:
            page.write_text(made)
        elif made != text:
            sys.exit(f"docs/{name} is not what driver/keys.py says: `python -m tests.reference` mends it")


if __name__ == "__main__":
    main()
