"""The users' pages as data: their fenced blocks, each with the language that stands behind the fence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS = CHECKOUT / "docs"
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (\S+\.hcl)\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """One block of code."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that it is to be written to, when its first line says so."""
        found = _NAME.match(self.text)
        return found[1] if found else ""


def pages() -> list[Path]:
    """README and all of docs/."""
    return [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))]


def fenced(page: Path) -> Iterator[Fenced]:
    for language, text in _FENCED.findall(page.read_text()):
        yield Fenced(page=page.name, language=language, text=text)


def files(page: Path) -> dict[str, str]:
    """What the page has its reader write, by file name."""
    return {one.file: one.text for one in fenced(page) if one.file}


def commands(page: Path) -> list[str]:
    """What the page has its reader type, in order."""
    return [line for one in fenced(page) if one.language == "console" for line in one.text.splitlines()]
