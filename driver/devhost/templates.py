"""HCL2 templates: text with `${…}` in it. Knows references to variables, and refuses every other expression by name.

A job file's strings are read twice by Nomad: once with the file, where `$${` gives a literal `${` and references to
what only a node knows stay as they are, and once on the node, where they are replaced.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STEP = r"""\.[^\W\d][\w-]*|\.\d+|\[\s*"(?:[^"\\]|\\.)*"\s*\]"""
_REFERENCE = re.compile(rf"\s*([^\W\d][\w-]*)((?:{_STEP})*)\s*")
_STEPS = re.compile(_STEP)
_OF_THE_FILE = {"var": "input variables", "local": "local values"}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


class TemplateError(ValueError):
    """What is wrong with the template, without saying where it stands."""


class UnknownVariableError(TemplateError):
    """Nomad's own words for a name that the node does not know."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`${meta.x}` or `${env["A.B"]}`: a variable and the way down into it."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        steps = (
            f".{step}" if re.fullmatch(r"[^\W\d][\w-]*|\d+", step) else f'["{_quoted(step)}"]' for step in self.path[1:]
        )
        return "${" + self.path[0] + "".join(steps) + "}"


Part = str | Reference


def split(text: str, *, quoted: bool) -> list[Part]:
    """Literal pieces and references, in order. `quoted` text has backslash escapes, a heredoc's has none."""
    parts: list[Part] = []
    literal: list[str] = []
    position = 0
    while position < len(text):
        two, three = text[position : position + 2], text[position : position + 3]
        if three in ("$${", "%%{"):
            literal.append(three[1:])
            position += 3
        elif two == "%{":
            raise TemplateError(
                f"directive {_up_to_brace(text, position)!r}: not supported by chv dev (`%%{{` is a literal `%{{`)"
            )
        elif two == "${":
            end = _closing_brace(text, position + 2)
            if literal:
                parts.append("".join(literal))
                literal = []
            parts.append(parse_reference(text[position + 2 : end]))
            position = end + 1
        elif quoted and text[position] == "\\":
            piece, position = _unescape(text, position)
            literal.append(piece)
        else:
            literal.append(text[position])
            position += 1
    if literal:
        parts.append("".join(literal))
    return parts


def parse_reference(source: str) -> Reference:
    """What stands between `${` and `}`. Raises TemplateError for everything but a variable."""
    match = _REFERENCE.fullmatch(source)
    if match is None or match[1] in ("true", "false", "null"):
        raise TemplateError(
            f"expression {source.strip()!r}: only variables are supported by chv dev, no functions or operators"
        )
    path = [match[1]]
    for step in _STEPS.findall(match[2]):
        if step.startswith("."):
            path.append(step[1:])
        else:
            inner = step[1:-1].strip()[1:-1]
            path.append("".join(part for part in split(inner, quoted=True) if isinstance(part, str)))
    return Reference(tuple(path))


def keep_references(text: str, *, quoted: bool) -> str:
    """What a string of the job file is after the first reading: escapes are resolved, references still stand."""
    parts = split(text, quoted=quoted)
    for part in parts:
        if isinstance(part, Reference) and part.path[0] in _OF_THE_FILE:
            what = _OF_THE_FILE[part.path[0]]
            raise TemplateError(f"variable {'.'.join(part.path)}: {what} are not supported by chv dev")
    return "".join(map(str, parts))


def render(text: str, variables: Mapping[str, Any]) -> Any:
    """The second reading. A text that is one reference and nothing else has that variable's own type."""
    parts = split(text, quoted=False)
    if len(parts) == 1 and isinstance(parts[0], Reference):
        return look_up(parts[0], variables)
    return "".join(_as_text(look_up(part, variables)) if isinstance(part, Reference) else part for part in parts)


def look_up(reference: Reference, variables: Mapping[str, Any]) -> Any:
    """The value of a variable. Raises TemplateError in Nomad's words when there is none."""
    first, *rest = reference.path
    if first not in variables:
        raise UnknownVariableError(f'Unknown variable: There is no variable named "{first}".')
    value: Any = variables[first]
    for step in rest:
        if not isinstance(value, Mapping):
            raise UnknownVariableError("Unsupported attribute: This value does not have any attributes.")
        if step not in value:
            if first == "env":
                raise UnknownVariableError(
                    f'Missing map element: This map does not have an element with the key "{step}".'
                )
            raise UnknownVariableError(f'Unsupported attribute: This object does not have an attribute named "{step}".')
        value = value[step]
    return value


def flush(text: str) -> str:
    """The body of a `<<-` heredoc without the indentation that all its lines share. Blank lines count for nothing."""
    lines = text.splitlines(keepends=True)
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    shared = min(indents, default=0)
    return "".join(line[shared:] if line.strip() else line for line in lines)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TemplateError(
        "Invalid template interpolation value: Cannot include the given value in a string template: string required."
    )


def _closing_brace(text: str, start: int) -> int:
    """Index of the `}` that ends the interpolation whose inside begins at `start`."""
    depth, in_quotes, position = 1, False, start
    while position < len(text):
        char = text[position]
        if in_quotes:
            if char == "\\":
                position += 1
            elif char == '"':
                in_quotes = False
        elif char == '"':
            in_quotes = True
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise TemplateError(f"{text[start - 2 :]!r} has no closing brace (a literal `${{` is written `$${{`)")


def _up_to_brace(text: str, start: int) -> str:
    end = text.find("}", start)
    return text[start : end + 1] if end >= 0 else text[start:]


def _unescape(text: str, position: int) -> tuple[str, int]:
    """The character that a backslash at `position` stands for, and where to go on."""
    mark = text[position + 1 : position + 2]
    if mark in _ESCAPES:
        return _ESCAPES[mark], position + 2
    if mark and mark in "uU":
        width = 4 if mark == "u" else 8
        digits = text[position + 2 : position + 2 + width]
        if len(digits) == width and re.fullmatch(r"[0-9a-fA-F]+", digits) and int(digits, 16) <= 0x10FFFF:
            return chr(int(digits, 16)), position + 2 + width
    raise TemplateError(f'escape \\{mark}: expected one of \\n \\r \\t \\" \\\\ \\uNNNN \\UNNNNNNNN')


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
