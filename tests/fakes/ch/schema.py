"""Judges a body by Cloud Hypervisor's API description, of which `schema.json` holds the facts. Standard library only.

The program takes what does not fit without a word, or panics at it much later: so each body of ours is judged here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FACTS: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text())

# What the program reads and the description does not name.
DRIFT: dict[str, dict[str, Any]] = {
    "CpusConfig": {"profile": "string"},
    "MemoryZoneConfig": {"mergeable": "boolean"},
    "RestoreConfig": {"net_fds": ["object"]},
}

# What v53.0 does not know yet: the description is a newer one.
TOO_NEW: dict[str, tuple[str, ...]] = {"RestoreConfig": ("zone_updates",), "ReceiveMigrationData": ("zone_updates",)}


def misfits(endpoint: str, body: Any) -> list[str]:
    """What is wrong with the body of a request to `endpoint` (as `vm.create`), each in a line; none when it fits."""
    wanted = FACTS["endpoints"][endpoint]["body"]
    if wanted is None:
        return [] if body is None else [f"{endpoint}: takes no body"]
    return list(_judge(body, wanted, wanted))


def _judge(value: Any, kind: Any, where: str) -> Iterator[str]:
    if isinstance(kind, list):
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _judge(item, kind[0], f"{where}[{index}]")
        else:
            yield f"{where} = {value!r}: expected a list"
    elif kind in FACTS["schemas"]:
        yield from _judge_schema(value, kind, where)
    else:
        yield from _judge_plain(value, kind, where)


def _judge_schema(value: Any, name: str, where: str) -> Iterator[str]:
    schema = FACTS["schemas"][name]
    if "enum" in schema:
        if value not in schema["enum"]:
            yield f"{where} = {value!r}: expected one of {', '.join(schema['enum'])}"
        return
    if not isinstance(value, dict):
        yield f"{where} = {value!r}: expected an object"
        return
    if "values" in schema:
        for key, item in value.items():
            yield from _judge(item, schema["values"], f"{where}.{key}")
        return
    known = schema["properties"] | DRIFT.get(name, {})
    for key in sorted(value.keys() - known.keys()):
        yield f"{where}.{key}: {name} has no such property"
    for key in sorted(set(schema["required"]) - value.keys()):
        yield f"{where}.{key}: required, not there"
    for key in TOO_NEW.get(name, ()):
        if key in value:
            yield f"{where}.{key}: only later releases than 53.0 know it"
    for key, kind in known.items():
        if key in value:
            yield from _judge(value[key], kind, f"{where}.{key}")


def _judge_plain(value: Any, kind: str, where: str) -> Iterator[str]:
    word, _, limits = kind.partition(" ")
    types: dict[str, type] = {"string": str, "boolean": bool, "integer": int, "object": dict}
    if not isinstance(value, types[word]) or (isinstance(value, bool) and word != "boolean"):
        yield f"{where} = {value!r}: expected {'an' if word[0] in 'io' else 'a'} {word}"
    elif limits and isinstance(value, int):
        least, _, greatest = limits.partition("..")
        if least and value < int(least):
            yield f"{where} = {value}: expected at least {least}"
        if greatest and value > int(greatest):
            yield f"{where} = {value}: expected at most {greatest}"
