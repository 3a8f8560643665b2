"""A plugin's schema applied to a config body: what Nomad does between the file and the MessagePack that a plugin gets.

The body is in JSON form (blocks as lists of objects). All complaints come at once, in Nomad's words.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from driver._pb import hclspec_pb2
from driver.devhost.errors import SchemaError
from driver.devhost.hcl1 import parse_value
from driver.devhost.lined import Unknown
from driver.devhost.templates import TemplateError, render
from driver.devhost.typeexpr import ConversionError, convert, number_on_the_wire, parse_type, unique

Spec = hclspec_pb2.Spec
Json = dict[str, Any]


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A body as the plugin would get it, without what drew a complaint and what nobody knows yet."""

    data: bytes
    complaints: tuple[tuple[str, str], ...]  # where, as `disk[0].size`, and Nomad's words
    unknown: frozenset[str]  # where


def encode(spec: Spec, body: Json, variables: Mapping[str, Any] | None = None) -> bytes:
    """The body as the plugin gets it. Raises SchemaError with all complaints.

    `variables` None is for the agent file, where a reference to one is a complaint.
    """
    reader = _Reader(variables)
    value = reader.top(spec, body)
    if reader.complaints:
        raise SchemaError(list(dict.fromkeys(text for _, text in reader.complaints)))
    return msgspec.msgpack.encode(_wire(value))


def examine(spec: Spec, body: Json, *, references: bool) -> Examined:
    """The body before a scheduler has it: with `references` a value that has one is unknown, else a complaint."""
    reader = _Reader(None, references=references)
    data = msgspec.msgpack.encode(_wire(reader.top(spec, body)))
    found = tuple(dict.fromkeys(reader.complaints))
    return Examined(data=data, complaints=found, unknown=frozenset(reader.unknown))


class _UnknownError(Exception):
    """The value is known later."""


class _Reader:
    """Collects complaints while it goes down; a value that drew one is null."""

    def __init__(self, variables: Mapping[str, Any] | None, *, references: bool = False) -> None:
        self.variables = variables
        self.references = references
        self.complaints: list[tuple[str, str]] = []
        self.unknown: set[str] = set()
        self._where = ""

    def top(self, spec: Spec, body: Json) -> Any:
        self.check_names(spec, body)
        return self.decode(spec, body)

    def complain(self, name: str, text: str) -> None:
        self.complaints.append((f"{self._where}{name}", text))

    # -- names ----------------------------------------------------------------------------------------------------

    def check_names(self, spec: Spec, body: Json) -> None:
        known = _names(spec)
        for key in body:
            if key not in known:
                self.complain(key, f'Invalid label: No argument or block type is named "{key}".')

    # -- values ---------------------------------------------------------------------------------------------------

    def decode(self, spec: Spec, body: Json) -> Any:
        kind = spec.WhichOneof("block")
        if kind is None:
            raise ValueError("the schema has an empty member")
        return getattr(self, f"_{kind.lower()}")(getattr(spec, kind), body)

    def _object(self, spec: hclspec_pb2.Object, body: Json) -> Json:
        return {name: self.decode(spec.attributes[name], body) for name in sorted(spec.attributes)}

    def _array(self, spec: hclspec_pb2.Array, body: Json) -> list[Any]:
        return [self.decode(one, body) for one in spec.values]

    def _attr(self, spec: hclspec_pb2.Attr, body: Json) -> Any:
        if spec.name not in body:
            if spec.required:
                self.complain(
                    spec.name,
                    f'Missing required argument: The argument "{spec.name}" is required, but no definition was found.',
                )
            return None
        try:
            value = self.evaluate(body[spec.name])
        except _UnknownError:
            self.unknown.add(f"{self._where}{spec.name}")
            return None
        except TemplateError as exc:
            self.complain(spec.name, str(exc))
            return None
        try:
            return convert(value, parse_type(spec.type))
        except ConversionError as exc:
            self.complain(
                spec.name, f'Incorrect attribute value type: Inappropriate value for attribute "{spec.name}": {exc}.'
            )
            return None

    def _default(self, spec: hclspec_pb2.Default, body: Json) -> Any:
        value = self.decode(spec.primary, body)
        return self.decode(spec.default, body) if value is None else value

    def _literal(self, spec: hclspec_pb2.Literal, body: Json) -> Any:  # noqa: ARG002  one signature for all kinds
        return _exact(parse_value(spec.value))

    def _block_value(self, spec: hclspec_pb2.Block, body: Json) -> Any:
        blocks = self.blocks(spec.name, body)
        if not blocks:
            if spec.required:
                self.complain(spec.name, f"Missing {spec.name} block: A {spec.name} block is required.")
            return None
        if len(blocks) > 1:
            self.complain(spec.name, f"Duplicate {spec.name} block: Only one block of type {_q(spec.name)} is allowed.")
        return self.nested(spec.nested, blocks[0], spec.name)

    def _block_attrs(self, spec: hclspec_pb2.BlockAttrs, body: Json) -> Any:
        blocks = self.blocks(spec.name, body)
        if not blocks:
            if spec.required:
                self.complain(
                    spec.name, f"Missing {spec.name} block: A block of type {_q(spec.name)} is required here."
                )
            return None
        if len(blocks) > 1:
            self.complain(spec.name, f"Duplicate {spec.name} block: Only one block of type {_q(spec.name)} is allowed.")
        wanted = parse_type(f"map({spec.type})")
        try:
            return convert({name: self.evaluate(value) for name, value in blocks[0].items()}, wanted)
        except _UnknownError:
            self.unknown.add(f"{self._where}{spec.name}")
        except TemplateError as exc:
            self.complain(spec.name, str(exc))
        except ConversionError as exc:
            self.complain(
                spec.name, f'Invalid attribute value: Invalid value for attribute of "{spec.name}" block: {exc}.'
            )
        return None

    def _block_list(self, spec: hclspec_pb2.BlockList, body: Json) -> list[Any]:
        blocks = self.blocks(spec.name, body)
        if len(blocks) < spec.min_items:
            self.complain(
                spec.name,
                f'Insufficient {spec.name} blocks: At least {spec.min_items} "{spec.name}" blocks are required.',
            )
        if spec.max_items and len(blocks) > spec.max_items:
            self.complain(
                spec.name,
                f'Too many {spec.name} blocks: No more than {spec.max_items} "{spec.name}" blocks are allowed.',
            )
        return [self.nested(spec.nested, one, f"{spec.name}[{index}]") for index, one in enumerate(blocks)]

    def _block_set(self, spec: hclspec_pb2.BlockSet, body: Json) -> list[Any]:
        as_list = hclspec_pb2.BlockList(
            name=spec.name, min_items=spec.min_items, max_items=spec.max_items, nested=spec.nested
        )
        return unique(self._block_list(as_list, body))

    def _block_map(self, spec: hclspec_pb2.BlockMap, body: Json) -> Json:
        found: Json = {}
        for one in self.blocks(spec.name, body):
            self.labelled(spec, list(spec.labels), one, found)
        return found

    def labelled(self, spec: hclspec_pb2.BlockMap, labels: list[str], level: Json, found: Json) -> None:
        """Go down one label; below the last one is the block itself."""
        for name, below in level.items():
            for one in self.objects(below, spec.name):
                if len(labels) > 1:
                    self.labelled(spec, labels[1:], one, found.setdefault(name, {}))
                elif name in found:
                    self.complain(
                        spec.name,
                        f"Duplicate {spec.name} block: Only one {spec.name} block with {labels[0]} {_q(name)} "
                        "is allowed.",
                    )
                else:
                    found[name] = self.nested(spec.nested, one, _labelled(spec.name, name))

    # -- helpers --------------------------------------------------------------------------------------------------

    def nested(self, spec: Spec, body: Json, name: str) -> Any:
        before, self._where = self._where, f"{self._where}{name}."
        try:
            return self.top(spec, body)
        finally:
            self._where = before

    def blocks(self, name: str, body: Json) -> list[Json]:
        return self.objects(body.get(name), name)

    def objects(self, value: Any, name: str) -> list[Json]:
        if value is None:
            return []
        if isinstance(value, Unknown):
            self.unknown.add(f"{self._where}{name}")
            return []
        found = value if isinstance(value, list) else [value]
        if all(isinstance(one, dict) for one in found):
            return found
        self.complain(
            name,
            "Incorrect JSON value type: Either a JSON object or a JSON array is required, representing the contents of "
            f'one or more "{name}" blocks.',
        )
        return []

    def evaluate(self, value: Any) -> Any:
        """Strings are templates, wherever they stand; numbers become exact."""
        match value:
            case Unknown():
                raise _UnknownError
            case str():
                if self.references and ("${" in value or "%{" in value):
                    return _known(value)
                if self.variables is None and ("${" in value or "%{" in value):
                    return _without_variables(value)
                return render(value, self.variables or {})
            case list():
                return [self.evaluate(one) for one in value]
            case dict():
                return {self.evaluate(key): self.evaluate(one) for key, one in value.items()}
        return _exact(value)


def _labelled(name: str, label: str) -> str:
    return f"{name}.{label}" if _PLAIN_NAME.fullmatch(label) else f"{name}[{label!r}]"


def _known(text: str) -> Any:
    try:
        return render(text, {})
    except TemplateError:
        raise _UnknownError from None


def _without_variables(text: str) -> Any:
    try:
        return render(text, {})
    except TemplateError:
        raise TemplateError("Variables not allowed: Variables may not be used here.") from None


def _names(spec: Spec) -> set[str]:
    """The keys that this level of the body may have."""
    match spec.WhichOneof("block"):
        case "object":
            return {name for one in spec.object.attributes.values() for name in _names(one)}
        case "array":
            return {name for one in spec.array.values for name in _names(one)}
        case "default":
            return _names(spec.default.primary) | _names(spec.default.default)
        case "literal" | None:
            return set()
        case kind:
            return {getattr(spec, kind).name}


def _exact(value: Any) -> Any:
    """Numbers as decimals: they stay apart from bools, and 0.1 is 0.1."""
    match value:
        case bool():
            return value
        case int():
            return Decimal(value)
        case float():
            return Decimal(repr(value))
        case list():
            return [_exact(one) for one in value]
        case dict():
            return {key: _exact(one) for key, one in value.items()}
    return value


def _wire(value: Any) -> Any:
    match value:
        case Decimal():
            return number_on_the_wire(value)
        case list():
            return [_wire(one) for one in value]
        case dict():
            return {key: _wire(value[key]) for key in sorted(value)}
    return value


def _q(text: str) -> str:
    return f'"{text}"'
