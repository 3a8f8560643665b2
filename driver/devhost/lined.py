"""Objects of a file that remember their lines, and JSON read into them; HCL is read by `hcl1` and `hcltree`."""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # as the decoder itself uses it
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]")
_DEEPEST = 200


class Lined(dict[str, Any]):
    """An object; `lines` has the line of each key that has one."""

    def __init__(self, line: int = 0) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}

    def put(self, key: str, value: Any, line: int) -> None:
        self[key] = value
        self.lines.setdefault(key, line)


class Unknown:
    """A value that only a scheduler knows: a variable, a function, a reference."""

    def __init__(self, source: str) -> None:
        self.source = source


def line_of(body: Lined, path: str) -> int:
    """The line of `network_interface[1].mac` or `network.lan.parent`, or of the nearest thing around it; 0 unknown.

    A block is a list of objects, and so is each label of one.
    """
    here: Any = body
    line = body.line
    for match in _STEP.finditer(path):
        name, index = match[1] or match[3], match[2]
        if index is not None:
            if not isinstance(here, list) or int(index) >= len(here):
                return line
            here = here[int(index)]
            line = here.line if isinstance(here, Lined) and here.line else line
            continue
        # A path goes through a list of objects without a number where there is one block, or one of each label.
        objects = here if isinstance(here, list) else [here]
        holder = next((one for one in objects if isinstance(one, Lined) and name in one), None)
        if holder is None:
            return line
        line = holder.lines.get(name, line)
        here = holder[name]
    return line


def value_at(body: Lined, path: str) -> Any:
    """What stands there; None when nothing does."""
    here: Any = body
    for match in _STEP.finditer(path):
        name, index = match[1] or match[3], match[2]
        if index is not None:
            if not isinstance(here, list) or int(index) >= len(here):
                return None
            here = here[int(index)]
            continue
        objects = here if isinstance(here, list) else [here]
        here = next((one[name] for one in objects if isinstance(one, dict) and name in one), None)
    return here


def parse_json(text: str) -> Any:
    """The file's value. Raises json.JSONDecodeError, which has the line."""
    reader = _Json(text)
    value = reader.value(reader.skip(0), 0)
    if (end := reader.skip(reader.position)) != len(text):
        raise json.JSONDecodeError("more after the end of the value", text, end)
    return value


class _Json:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def skip(self, position: int) -> int:
        match = _SPACE.match(self.text, position)
        assert match is not None
        return match.end()

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def fail(self, problem: str, position: int) -> json.JSONDecodeError:
        return json.JSONDecodeError(problem, self.text, position)

    def value(self, position: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self.fail("nested too deeply", position)
        match self.text[position : position + 1]:
            case "{":
                return self.object(position, depth)
            case "[":
                return self.list(position, depth)
            case '"':
                value, self.position = scanstring(self.text, position + 1, True)
                return value
        if (found := _SCALAR.match(self.text, position)) is None:
            raise self.fail("expected a value", position)
        self.position = found.end()
        return json.loads(found[0])

    def object(self, start: int, depth: int) -> Lined:
        made = Lined(self.line(start))
        position = self.skip(start + 1)
        while self.text[position : position + 1] != "}" or made:
            if self.text[position : position + 1] != '"':
                raise self.fail("expected a key in double quotes", position)
            line = self.line(position)
            key, position = scanstring(self.text, position + 1, True)
            position = self.skip(position)
            if self.text[position : position + 1] != ":":
                raise self.fail("expected : after a key", position)
            made.put(key, self.value(self.skip(position + 1), depth + 1), line)
            position = self.skip(self.position)
            if self.text[position : position + 1] == "}":
                break
            if self.text[position : position + 1] != ",":
                raise self.fail("expected , or }", position)
            position = self.skip(position + 1)
        self.position = position + 1
        return made

    def list(self, start: int, depth: int) -> list[Any]:
        made: list[Any] = []
        position = self.skip(start + 1)
        while self.text[position : position + 1] != "]" or made:
            made.append(self.value(position, depth + 1))
            position = self.skip(self.position)
            if self.text[position : position + 1] == "]":
                break
            if self.text[position : position + 1] != ",":
                raise self.fail("expected , or ]", position)
            position = self.skip(position + 1)
        self.position = position + 1
        return made
