"""Job files are HCL2: text to a small tree of blocks, attributes and plain values, with line numbers.

python-hcl2 parses; its grammar takes some files that Nomad refuses (two attributes on a line, a line break in a
string), so those are refused here, and strings are read from the source, where `$${` and `${` are still apart.
"""

import math
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from driver.devhost.errors import JobFileError
from driver.devhost.lined import Lined, Unknown
from driver.devhost.templates import TemplateError, flush, keep_references

Scalar = str | int | float | bool | None

_NAMES = {
    "conditional": "a condition",
    "binary_op": "an operator",
    "unary_op": "an operator",
    "index_expr_term": "an index",
    "for_tuple_expr": "a for expression",
    "for_object_expr": "a for expression",
    "attr_splat_expr_term": "a splat",
    "full_splat_expr_term": "a splat",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    name: str
    value: Any  # str, int, float, bool, None, list, dict; Unknown where that was asked for
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    type: str
    labels: tuple[str, ...]
    body: "Body"
    line: int


@dataclass(slots=True, kw_only=True)
class Body:
    attributes: dict[str, Attribute] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    line: int = 0

    def blocks_of(self, type_: str) -> list[Block]:
        return [block for block in self.blocks if block.type == type_]


def parse(text: str, path: Path) -> Body:
    """The file's top-level body. Raises JobFileError with the line."""
    return _Reader(text, path).body(_tree(text, path))


def parse_all(text: str, path: Path) -> tuple[Body, list[JobFileError]]:
    """The same, with everything that is wrong, and Unknown for what only a scheduler can evaluate.

    Raises JobFileError for what is no HCL at all.
    """
    reader = _Reader(text, path, whole=True)
    return reader.body(_tree(text, path)), reader.problems


def _tree(text: str, path: Path) -> Any:
    # Both are slow to import, and only this command needs them.
    from hcl2 import parses_to_tree
    from lark.exceptions import UnexpectedInput

    try:
        tree = parses_to_tree(text)
    except UnexpectedInput as exc:
        line = exc.line if exc.line > 0 else text.count("\n") + 1
        source = text.splitlines()[line - 1 : line]
        raise JobFileError(f"not HCL at {source[0].strip() if source else 'the end'!r}", path=path, line=line) from exc
    return tree.children[0]


def config_json(body: Body) -> Lined:
    """A `config` body in the form in which Nomad hands it to a plugin's schema: blocks are lists, by type and label."""
    found = Lined(body.line)
    for one in body.attributes.values():
        # An object that is the value of an attribute arrives as a list of one object, as a block would.
        found.put(one.name, [one.value] if isinstance(one.value, dict) else one.value, one.line)
    for block in body.blocks:
        inner: Any = config_json(block.body)
        for label in reversed(block.labels):
            labelled = Lined(block.line)
            labelled.put(label, [inner], block.line)
            inner = labelled
        found.put(block.type, [*found.get(block.type, ()), inner], block.line)
    return found


class _Reader:
    """Turns one parse tree into our values."""

    def __init__(self, text: str, path: Path, *, whole: bool = False) -> None:
        """With `whole`, what is wrong is kept, and reading goes on."""
        self.text = text
        self.path = path
        self.problems: list[JobFileError] = []
        self._whole = whole

    def fail(self, problem: str, node: Any) -> JobFileError:
        return JobFileError(problem, path=self.path, line=_first_line(node))

    def complain(self, problem: str, node: Any) -> None:
        if not self._whole:
            raise self.fail(problem, node)
        self.problems.append(self.fail(problem, node))

    def body(self, node: Any, line: int = 0) -> Body:
        body = Body(line=line)
        previous: Any = None
        for child in node.children:
            kind = _kind(child)
            if kind not in ("attribute", "block"):
                continue
            name = str(_leaf(child.children[0]))
            if previous is not None and _first_line(child) <= self.last_line(previous):
                self.complain(f"{name}: must begin on a line of its own", child)
            previous = child
            if kind == "attribute":
                if name in body.attributes or body.blocks_of(name):
                    self.complain(f"{name}: was set before", child)
                body.attributes[name] = Attribute(
                    name=name, value=self.value(child.children[2]), line=_first_line(child)
                )
            else:
                if name in body.attributes:
                    self.complain(f"{name}: was set before", child)
                body.blocks.append(self.block(child))
        return body

    def block(self, node: Any) -> Block:
        first, *middle = [child for child in node.children if _kind(child) != "new_line_or_comment"]
        *labels, opening, inner, closing = middle
        if _first_line(opening) != _first_line(first):
            self.complain(f"{_leaf(first)}: its opening brace must stand on the same line", node)
        items = [child for child in inner.children if _kind(child) in ("attribute", "block")]
        if items and _first_line(items[0]) == _first_line(opening):
            one_attribute = len(items) == 1 and _kind(items[0]) == "attribute"
            if not one_attribute or _first_line(closing) != self.last_line(items[0]):
                self.complain(f"{_leaf(first)}: a block on one line can hold one attribute and nothing else", node)
        elif items and _first_line(closing) == self.last_line(items[-1]):
            self.complain(f"{_leaf(first)}: its closing brace must begin on a line of its own", closing)
        return Block(
            type=str(_leaf(first)),
            labels=tuple(self.label(label) for label in labels),
            body=self.body(inner, _first_line(node)),
            line=_first_line(node),
        )

    def label(self, node: Any) -> str:
        return str(self.string(node)) if _kind(node) == "string" else str(_leaf(node))

    def value(self, node: Any) -> Any:
        kind = _kind(node)
        if kind == "expr_term" and len(node.children) == 1:
            return self.value(node.children[0])
        match kind:
            case "string":
                return self.string(node)
            case "heredoc_template" | "heredoc_template_trim":
                return self.heredoc(str(node.children[0]), node)
            case "int_lit" | "float_lit":
                return number(str(node.children[0]))
            case "literal_value":
                return {"true": True, "false": False, "null": None}[str(node.children[0])]
            case "tuple":
                return [self.value(child) for child in node.children if _is_value(child)]
            case "object":
                return self.object(node)
            case "unary_op" if str(node.children[0]) == "-":
                operand = self.value(node.children[1])
                if isinstance(operand, int | float) and not isinstance(operand, bool):
                    return -operand
        if self._whole:
            return Unknown(self.source(node))
        raise self.fail(f"{self.name_of(node, kind)}: only plain values are supported by chv dev", node)

    def name_of(self, node: Any, kind: str) -> str:
        if kind == "function_call":
            return f"function {_leaf(node.children[0])}"
        if kind in ("identifier", "get_attr_expr_term"):
            return f"variable {self.source(node)}"
        return f"{_NAMES.get(kind, 'an expression')} ({self.source(node)})"

    def object(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for child in node.children:
            if _kind(child) != "object_elem":
                continue
            key_node, _, value_node = child.children
            key = key_node.children[0]
            inner = key.children[0] if _kind(key) == "expr_term" and len(key.children) == 1 else key
            name = self.string(inner) if _kind(inner) == "string" else self.source(key_node)
            if name in found:
                self.complain(f"{name}: was set before", child)
            found[name] = self.value(value_node)
        return found

    def string(self, node: Any) -> Any:
        source = self.source(node)[1:-1]
        if "\n" in source:
            self.complain("a quoted string cannot go over a line break, use a heredoc", node)
        return self.template(source, node, quoted=True)

    def heredoc(self, token: str, node: Any) -> Any:
        lines = token.rstrip("\r\n").splitlines(keepends=True)
        content = "".join(lines[1:-1])
        return self.template(flush(content) if token.startswith("<<-") else content, node, quoted=False)

    def template(self, source: str, node: Any, *, quoted: bool) -> Any:
        try:
            return keep_references(source, quoted=quoted)
        except TemplateError as exc:
            if self._whole and "{" in source:
                return Unknown(source)
            raise self.fail(str(exc), node) from exc

    def source(self, node: Any) -> str:
        # Some rules take the line break after them along.
        return self.text[node.meta.start_pos : node.meta.end_pos].strip()

    def last_line(self, node: Any) -> int:
        return _first_line(node) + self.source(node).count("\n")


def number(text: str) -> int | float:
    """As Nomad carries it: an integer where the value is one and fits 64 bits, else a float."""
    exact = Decimal(text)
    if exact == exact.to_integral_value() and abs(exact) < 2**63:
        return int(exact)
    value = float(exact)
    return math.copysign(math.inf, value) if math.isinf(value) else value


def _kind(node: Any) -> str:
    """A rule's name, or a token's type."""
    return str(node.data) if hasattr(node, "data") else str(node.type)


def _leaf(node: Any) -> Any:
    return _leaf(node.children[0]) if hasattr(node, "children") else node


def _is_value(child: Any) -> bool:
    return hasattr(child, "data") and _kind(child) != "new_line_or_comment"


def _first_line(node: Any) -> int:
    found = node.meta.line if hasattr(node, "meta") else node.line
    return int(found)
