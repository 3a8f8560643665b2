#!/usr/bin/env python3
"""Turns Cloud Hypervisor's API description (OpenAPI, in YAML) into `schema.json`: names, types, what is required.

    make_schema.py PAGE      writes schema.json beside this file

The json is what counts in a checkout; the page itself need not be there.

    endpoints   name -> {verb, body: schema or null, answers: [statuses that mean success]}
    schemas     name -> {enum: [values]}
                      | {required: [names], properties: {name: type}}
                      | {values: type}, a map from any name

A type is `string`, `boolean`, `object`, `integer` (with a least and a greatest value: `integer 1..128`), the name of a
schema, or a list of one type.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.json")

# Sections and texts that hold no facts of this kind.
_SKIPPED = {"info", "servers", "description", "summary"}
_PLAIN = ("string", "boolean", "object")

Node = dict[str, Any]


def facts(page: str) -> Node:
    """The whole of schema.json. Raises ValueError for a line or a type that this does not know."""
    document = read(page)
    return {
        "endpoints": dict(sorted(_endpoints(document["paths"]))),
        "schemas": {name: _schema(node) for name, node in sorted(document["components"]["schemas"].items())},
    }


def render(found: Node) -> str:
    """One property a line, so that a change shows as a diff."""
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# YAML, as far as that file uses it: maps, lists of plain words, lists in brackets


def read(page: str) -> Node:
    lines = [
        (number, len(line) - len(line.lstrip()), line.strip())
        for number, line in enumerate(page.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    node, rest = _block(lines, 0)
    if rest != len(lines):
        raise ValueError(f"line {lines[rest][0]}: less indented than the first one")
    return dict(node)


def _block(lines: list[tuple[int, int, str]], start: int) -> tuple[Any, int]:
    """The map or list that begins at line `start`, and the line after it."""
    indent = lines[start][1]
    listed: list[Any] = []
    named: Node = {}
    at = start
    while at < len(lines) and lines[at][1] >= indent:
        number, depth, text = lines[at]
        at += 1
        if depth > indent:
            raise ValueError(f"line {number}: {text!r} is indented too far")
        if text.startswith("- "):
            listed.append(_scalar(text[2:]))
            continue
        key, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"line {number}: {text!r}, expected key: value")
        key = _scalar(key)
        deeper = at < len(lines) and lines[at][1] > indent
        if key in _SKIPPED:
            while at < len(lines) and lines[at][1] > indent:
                at += 1
        elif value.strip():
            named[key] = _scalar(value.strip())
        elif deeper:
            named[key], at = _block(lines, at)
        else:
            named[key] = {}
    return (listed or named), at


def _scalar(text: str) -> Any:
    if text.startswith("["):
        return [_scalar(item.strip()) for item in text[1:-1].split(",")]
    return text.strip("\"'")


# ---------------------------------------------------------------------------------------------------------------------
# OpenAPI


def _endpoints(paths: Node) -> Iterator[tuple[str, Node]]:
    for path, verbs in paths.items():
        ((verb, what),) = verbs.items()
        body = what.get("requestBody")
        yield (
            path.removeprefix("/"),
            {
                "verb": verb.upper(),
                "body": _reference(body["content"]["application/json"]["schema"]["$ref"]) if body else None,
                "answers": sorted(int(status) for status in what["responses"] if status.startswith("2")),
            },
        )


def _schema(node: Node) -> Node:
    if "enum" in node:
        return {"enum": sorted(node["enum"])}
    if "properties" in node:
        properties = {name: _type(one) for name, one in node["properties"].items()}
        return {"required": sorted(node.get("required", [])), "properties": properties}
    return {"values": _type(node["additionalProperties"])}


def _type(node: Node) -> Any:
    if "$ref" in node:
        return _reference(node["$ref"])
    kind = node["type"]
    if kind == "integer":
        least, greatest = node.get("minimum", ""), node.get("maximum", "")
        return f"integer {least}..{greatest}" if least or greatest else "integer"
    if kind == "array":
        return [_type(node["items"])]
    if kind not in _PLAIN:
        raise ValueError(f"type {kind!r}, expected integer, array or one of {', '.join(_PLAIN)}")
    return kind


def _reference(text: str) -> str:
    found = re.fullmatch(r"#/components/schemas/(\w+)", text)
    if found is None:
        raise ValueError(f"reference {text!r}, expected one to a schema of the same file")
    return found[1]


def main() -> None:
    SCHEMA.write_text(render(facts(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
