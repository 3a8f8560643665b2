"""Specs between two processes of ours: frozen dataclasses as JSON that says of each value what it was. Pure."""

import base64
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from vmlib import hooks, spec

_CLASSES = {
    name: value
    for module in (spec, hooks)
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value)
}


def pack(value: object) -> bytes:
    """One line. Raises TypeError for what is none of our words."""
    return json.dumps(_plain(value)).encode() + b"\n"


def unpack(line: bytes) -> Any:
    """The value that was packed; raises ValueError for a line that was not. Lists and tuples come as tuples."""
    try:
        return _value(json.loads(line))
    except (KeyError, TypeError, RecursionError) as exc:
        raise ValueError(f"not one of our messages: {exc}") from exc


def _plain(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"bytes": base64.b64encode(value).decode()}
        case Path():
            return {"path": str(value)}
        case list() | tuple():
            return [_plain(one) for one in value]
        case frozenset() | set():
            return {"set": [_plain(one) for one in value]}
        case Mapping():
            return {"map": [[_plain(key), _plain(one)] for key, one in value.items()]}
    if is_dataclass(value) and _CLASSES.get(type(value).__name__) is type(value):
        members = {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
        return {"class": type(value).__name__, "members": members}
    raise TypeError(f"a {type(value).__name__} cannot be handed on")


def _value(plain: object) -> Any:
    match plain:
        case None | bool() | int() | float() | str():
            return plain
        case list():
            return tuple(_value(one) for one in plain)
        case {"bytes": str(text)}:
            return base64.b64decode(text)
        case {"path": str(text)}:
            return Path(text)
        case {"set": list(items)}:
            return frozenset(_value(one) for one in items)
        case {"map": list(pairs)}:
            return {_value(key): _value(one) for key, one in pairs}
        case {"class": str(name), "members": dict(members)}:
            return _CLASSES[name](**{key: _value(one) for key, one in members.items()})
    raise TypeError(str(plain)[:80])
