"""Type expressions of a plugin's schema, and how plain values are converted to them, by Nomad's rules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

_TOKEN = re.compile(r"\s*([A-Za-z_][\w-]*|[()\[\]{},=:])\s*")


class ConversionError(ValueError):
    """The value does not have that type; the text is Nomad's, without a full stop."""


@dataclass(frozen=True, slots=True)
class Type:
    """`string`, `number`, `bool`, `any`; `list`, `set`, `map` with one inner type; `tuple`; `object` with names."""

    kind: str
    inner: tuple["Type", ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "list" | "set" | "map":
                return f"{self.kind} of {self.inner[0]}"
            case "any":
                return "any type"
        return self.kind


def parse_type(text: str) -> Type:
    """Raises ValueError for what is no type expression."""
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"type {text!r}: cannot be read at {text[position:]!r}")
        tokens.append(match[1])
        position = match.end()
    found, rest = _type(tokens, text)
    if rest:
        raise ValueError(f"type {text!r}: {rest[0]!r} after its end")
    return found


def _type(tokens: list[str], text: str) -> tuple[Type, list[str]]:
    head, rest = (tokens[0], tokens[1:]) if tokens else ("", [])
    match head:
        case "string" | "number" | "bool" | "any":
            return Type(head), rest
        case "list" | "set" | "map":
            inner, rest = _type(_skip(rest, "(", text), text)
            return Type(head, (inner,)), _skip(rest, ")", text)
        case "tuple":
            rest = _skip(_skip(rest, "(", text), "[", text)
            members = []
            while rest and rest[0] != "]":
                inner, rest = _type(rest, text)
                members.append(inner)
                rest = rest[1:] if rest[:1] == [","] else rest
            return Type("tuple", tuple(members)), _skip(_skip(rest, "]", text), ")", text)
        case "object":
            rest = _skip(_skip(rest, "(", text), "{", text)
            fields: dict[str, Type] = {}
            while rest and rest[0] != "}":
                name, rest = rest[0], rest[1:]
                rest = _skip(rest, ":" if rest[:1] == [":"] else "=", text)
                fields[name], rest = _type(rest, text)
                rest = rest[1:] if rest[:1] == [","] else rest
            members = [fields[name] for name in sorted(fields)]
            return Type("object", tuple(members), tuple(sorted(fields))), _skip(_skip(rest, "}", text), ")", text)
    raise ValueError(f"type {text!r}: {head!r} is not a type")


def _skip(tokens: list[str], wanted: str, text: str) -> list[str]:
    if tokens[:1] != [wanted]:
        raise ValueError(f"type {text!r}: expected {wanted!r}")
    return tokens[1:]


def convert(value: Any, wanted: Type) -> Any:
    """The value as that type. Raises ConversionError. A set comes back as a sorted list without doubles."""
    if value is None or wanted.kind == "any":
        return value
    match wanted.kind:
        case "string":
            return _to_string(value)
        case "number":
            return _to_number(value)
        case "bool":
            return _to_bool(value)
        case "list" | "set":
            return _to_sequence(value, wanted)
        case "map":
            if not isinstance(value, Mapping):
                raise ConversionError(f"{wanted} required")
            return {key: _inside(f'element "{key}"', value[key], wanted.inner[0]) for key in sorted(value)}
        case "tuple":
            if not isinstance(value, list) or len(value) != len(wanted.inner):
                raise ConversionError("tuple required")
            pairs = zip(value, wanted.inner, strict=True)
            return [_inside(f"element {index}", one, inner) for index, (one, inner) in enumerate(pairs)]
        case "object":
            return _to_object(value, wanted)
    raise AssertionError(wanted)


def number_on_the_wire(value: Decimal) -> int | float | str:
    """Integers as such up to 64 bits, then floats where they are exact, else decimal text."""
    if value == value.to_integral_value() and -(2**63) <= value < 2**64:
        return int(value)
    as_float = float(value)
    if Decimal(as_float) == value:
        return as_float
    return format(value.normalize(), "f")


def _inside(place: str, value: Any, wanted: Type) -> Any:
    try:
        return convert(value, wanted)
    except ConversionError as exc:
        raise ConversionError(f"{place}: {exc}") from exc


def _to_string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, str):
        return value
    raise ConversionError("string required")


def _to_number(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise ConversionError("number required")
    try:
        found = Decimal(value)
    except InvalidOperation:
        raise ConversionError("a number is required") from None
    if not found.is_finite() or "_" in value or value != value.strip():
        raise ConversionError("a number is required")
    return found


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "1"):
        return True
    if value in ("false", "0"):
        return False
    if isinstance(value, str):
        raise ConversionError("a bool is required")
    raise ConversionError("bool required")


def _to_sequence(value: Any, wanted: Type) -> list[Any]:
    if not isinstance(value, list):
        raise ConversionError(f"{wanted} required")
    found = [_inside(f"element {index}", one, wanted.inner[0]) for index, one in enumerate(value)]
    if wanted.kind == "list":
        return found
    return unique(found)


def unique(values: list[Any]) -> list[Any]:
    """A set's elements in the order in which they are sent: strings, numbers and bools by value."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return sorted(kept, key=_order)


def _order(value: Any) -> tuple[int, Any]:
    match value:
        case None:
            return 3, 0
        case bool():
            return 0, value
        case Decimal():
            return 1, value
        case str():
            return 2, value.encode()
    return 4, repr(value)


def _to_object(value: Any, wanted: Type) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConversionError("object required")
    missing = [name for name in wanted.names if name not in value]
    if missing:
        text = (
            f'attribute "{missing[0]}" is required'
            if len(missing) == 1
            else f"attributes {_names(missing)} are required"
        )
        raise ConversionError(text)
    pairs = zip(wanted.names, wanted.inner, strict=True)
    return {name: _inside(f'attribute "{name}"', value[name], inner) for name, inner in pairs}


def _names(names: list[str]) -> str:
    *first, last = [f'"{name}"' for name in names]
    return f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}"
