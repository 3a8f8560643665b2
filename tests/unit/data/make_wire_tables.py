#!/usr/bin/env python3
"""Turns the tables of a wire-facts page (Markdown) into `wire_tables.json`, with which test_proto_tables compares.

    make_wire_tables.py PAGE      writes wire_tables.json beside this file

The json is what counts in a checkout; the page itself need not be there. One entry for each section of the page:

    package                       proto package
    services                      service -> rpc -> [kind, request, response]
    messages                      message -> {fields: {field: [number, type, label]}, reserved: [numbers],
                                              reserved_names: [names]}
    enums                         enum -> {value: number}
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

TABLES = Path(__file__).with_name("wire_tables.json")

_TITLE = re.compile(r"## (?:go-plugin grpc_)?(?P<name>[\w.]+)")
_PACKAGE = re.compile(r"proto package `(?P<package>[\w.]+)`")
_SERVICE = re.compile(r"### service `(?P<name>[\w.]+)`")
_SERVICE_IN_WORDS = re.compile(r"service `(?P<name>[\w.]+)`: (?P<rpcs>.*)\.")
_RPC_IN_WORDS = re.compile(r"(?P<name>\w+) \((?P<kind>[\w ]+), (?P<request>\w+), (?P<response>\w+)\)")
_ENUM = re.compile(r"\*\*enum `(?P<name>[\w.]+)`\*\*: (?P<values>.*)")
_VALUE = re.compile(r"`(?P<name>\w+)` = (?P<number>\d+)")
_MESSAGE = re.compile(r"\*\*`(?P<name>[\w.]+)`\*\*(?P<rest>.*)")

# Sections of the page by their title; all others hold no messages of ours.
_SECTIONS = {
    "base.proto": "base",
    "hcl_spec.proto": "hclspec",
    "driver.proto": "driver",
    "attribute.proto": "attribute",
    "recoverable_error.proto": "recoverable_error",
    "stats.proto": "stats",
    "device.proto": "device",
    "controller.proto": "controller",
    "stdio.proto": "stdio",
    "broker.proto": "broker",
    "gRPC": "health",
    "google.rpc.Status": "status",
}


def parse(page: str) -> dict[str, Any]:
    """Every section of the page that has a proto package."""
    sections: dict[str, Any] = {}
    for text in re.split(r"^(?=## )", page, flags=re.MULTILINE):
        title, package = _TITLE.match(text), _PACKAGE.search(text)
        if title and package:
            sections[_SECTIONS[title["name"]]] = {"package": package["package"], **_section(text)}
    if missing := set(_SECTIONS.values()) - sections.keys():
        raise ValueError(f"the page has no section for {', '.join(sorted(missing))}")
    return sections


def _section(text: str) -> dict[str, Any]:
    services: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    service = message = ""
    for line in text.splitlines():
        if found := _SERVICE.match(line):
            service = _last(found["name"])
            services[service] = {}
        elif found := _MESSAGE.match(line):
            message = found["name"]
            messages[message] = _message(found["rest"])
        elif found := _ENUM.match(line):
            enums[found["name"]] = {value["name"]: int(value["number"]) for value in _VALUE.finditer(found["values"])}
        elif found := _SERVICE_IN_WORDS.search(line):
            services[_last(found["name"])] = {
                rpc["name"]: [rpc["kind"], rpc["request"], rpc["response"]]
                for rpc in _RPC_IN_WORDS.finditer(found["rpcs"])
            }
        elif cells := _cells(line):
            _row(cells, services.get(service, {}), messages, message)
    return {"services": services, "messages": messages, "enums": enums}


def _row(cells: list[str], rpcs: dict[str, Any], messages: dict[str, Any], message: str) -> None:
    match cells:
        case [number, field, type_, label, *_] if number.isdecimal():
            messages[message]["fields"][field] = [int(number), type_, label]
        case [owner, number, field, type_, label] if number.isdecimal():
            messages.setdefault(owner, _message(""))["fields"][field] = [int(number), type_, label]
        case [owner, "-", "-", "-", _]:
            messages[owner] = _message("")
        case [name, kind, request, response, *_] if kind == "unary" or kind.endswith(" stream"):
            rpcs[name] = [kind, request, response]
        case _:
            raise ValueError(f"a table row that nobody understands: {cells}")


def _cells(line: str) -> list[str]:
    """The cells of a table row; empty for a heading, its rule, and everything that is no table."""
    if not line.startswith("| ") or line.startswith(("| # ", "| rpc ", "| message ", "| ---")):
        return []
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.endswith("|") else []


def _message(rest: str) -> dict[str, Any]:
    return {
        "fields": {},
        "reserved": [int(number) for number in re.findall(r"reserved (\d+)", rest)],
        "reserved_names": re.findall(r"reserved name `(\w+)`", rest),
    }


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def render(tables: dict[str, Any]) -> str:
    """As committed: indented, but one line for each field, rpc and list."""
    return re.sub(r"\[[^][]*\]", lambda found: _on_one_line(found[0]), json.dumps(tables, indent=1)) + "\n"


def _on_one_line(array: str) -> str:
    return json.dumps(json.loads(array))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    TABLES.write_text(render(parse(Path(sys.argv[1]).read_text())))
