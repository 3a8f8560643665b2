"""Agent files are HCL1: text to plain values, in the form in which Nomad hands a plugin block to its schema.

HCL1 has no expressions. Every `{ }`, as a block or as a value, is a list of objects; a block's labels are objects too.
"""

import re
from typing import Any

from driver.devhost.hcltree import number
from driver.devhost.lined import Lined

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+|\#[^\n]*|//[^\n]*|/\*.*?\*/)
  | (?P<heredoc><<-?(?P<mark>[^\W\d]\w*)\r?\n(?P<body>.*?)^[ \t]*(?P=mark)[ \t]*\r?$)
  | (?P<string>"(?:[^"\\\n$]|\\.|\$\{[^}\n]*\}|\$)*")
  | (?P<number>-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.-]))
  | (?P<word>[^\W\d][\w.:-]*)
  | (?P<punct>[{}\[\]=,:])
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v", '"': '"', "\\": "\\"}


class Hcl1Error(ValueError):
    """Not HCL1. The text begins with the line number."""

    def __init__(self, problem: str, *, line: int) -> None:
        super().__init__(f"line {line}: {problem}")
        self.problem = problem
        self.line = line


def parse(text: str) -> Lined:
    """The whole file; blocks of one name add up to one list."""
    reader = _Reader(text)
    return reader.items(end="")


def parse_value(text: str) -> Any:
    """One value by itself: a quoted string, a number, a bool, null, a list or an object."""
    reader = _Reader(text)
    value = reader.value()
    reader.expect_end()
    # Here an object is just one object.
    return value[0] if text.lstrip().startswith("{") else value


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.position = 0

    def fail(self, problem: str, where: int | None = None) -> Hcl1Error:
        return Hcl1Error(problem, line=self.line(self.tokens[self.position][2] if where is None else where))

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def peek(self) -> tuple[str, str]:
        kind, text, _ = self.tokens[self.position]
        return kind, text

    def take(self) -> tuple[str, str]:
        found = self.peek()
        self.position += 1
        return found

    def expect_end(self) -> None:
        if self.peek()[0] != "end":
            raise self.fail(f"{self.peek()[1]!r} after the end of the value")

    def items(self, *, end: str, line: int = 0) -> Lined:
        found = Lined(line)
        while True:
            kind, text = self.peek()
            if (kind, text) == ("punct", ",") and found:
                self.take()
                continue
            if (end and text == end and kind == "punct") or (not end and kind == "end"):
                self.take()
                return found
            self.item(found)

    def item(self, found: Lined) -> None:
        keys = []
        where = self.tokens[self.position][2]
        while self.peek()[0] in ("word", "string"):
            kind, text = self.take()
            keys.append(_unquote(text) if kind == "string" else text)
        kind, text = self.peek()
        if not keys:
            raise self.fail(f"{text or 'the end'!r} where a key was expected")
        if kind == "punct" and text in ("=", ":"):
            self.take()
            value = self.value()
            if len(keys) > 1:
                raise self.fail(f"{keys[-1]!r}: an attribute has one name", where)
        elif kind == "punct" and text == "{":
            value = self.value()
        else:
            raise self.fail(f"{text or 'the end'!r} after {keys[-1]!r}, expected = or {{")
        line = self.line(where)
        for key in reversed(keys[1:]):
            labelled = Lined(line)
            labelled.put(key, value, line)
            value = [labelled]
        _add(found, keys[0], value, line)

    def value(self) -> Any:
        where = self.tokens[self.position][2]
        kind, text = self.take()
        match kind, text:
            case "punct", "{":
                return [self.items(end="}", line=self.line(where))]
            case "punct", "[":
                return self.list()
            case "string", _:
                return _unquote(text)
            case "number", _:
                return int(text, 16) if "x" in text.lower() else number(text)
            case "heredoc", _:
                return _heredoc(text)
            case "word", "true" | "false":
                return text == "true"
            case "word", "null":
                return None
        raise self.fail(f"{text or 'the end'!r} where a value was expected", where)

    def list(self) -> list[Any]:
        found: list[Any] = []
        while True:
            if self.peek() == ("punct", "]"):
                self.take()
                return found
            value = self.value()
            # A list of objects is a list of objects, not of lists.
            found += value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
            if self.peek() == ("punct", ","):
                self.take()
            elif self.peek() != ("punct", "]"):
                raise self.fail(f"{self.peek()[1] or 'the end'!r} in a list, expected , or ]")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    found = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise Hcl1Error(f"{text[position:].splitlines()[0][:40]!r} is not HCL", line=line)
        kind = next(
            name for name in ("space", "heredoc", "string", "number", "word", "punct") if match[name] is not None
        )
        if kind != "space":
            found.append((kind, match[0], position))
        position = match.end()
    return [*found, ("end", "", len(text))]


def _add(found: Lined, key: str, value: Any, line: int) -> None:
    """A key that comes again: blocks add up, a plain value replaces the one before."""
    before = found.get(key)
    if _is_objects(before) and _is_objects(value):
        found[key] = before + value
    else:
        found.lines.pop(key, None)
        found.put(key, value, line)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _unquote(text: str) -> str:
    def resolve(match: re.Match[str]) -> str:
        mark = match[1]
        if len(mark) > 1:
            return chr(int(mark[1:], 16))
        return _SIMPLE.get(mark, match[0])

    return _ESCAPE.sub(resolve, text[1:-1])


def _heredoc(text: str) -> str:
    head, _, rest = text.partition("\n")
    lines = rest.splitlines(keepends=True)[:-1]
    if head.startswith("<<-"):
        shared = min((len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()), default=0)
        lines = [line[shared:] if line.strip() else line for line in lines]
    return "".join(lines)
