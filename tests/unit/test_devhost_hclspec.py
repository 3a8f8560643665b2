"""The embedded host's schema decoding against bytes that Nomad's own code made."""

import json
from typing import Any

import pytest

from driver._pb.hclspec_pb2 import (
    Attr,
    Block,
    BlockAttrs,
    BlockList,
    BlockMap,
    BlockSet,
    Default,
    Literal,
    Object,
    Spec,
)
from driver.devhost.errors import SchemaError
from driver.devhost.hclspec import encode


def obj(**members: Spec) -> Spec:
    return Spec(object=Object(attributes=members))


def attr(type_: str, name: str = "a", *, required: bool = False) -> Spec:
    return Spec(Attr=Attr(name=name, type=type_, required=required))


def default(primary: Spec, literal: str) -> Spec:
    return Spec(default=Default(primary=primary, default=Spec(literal=Literal(value=literal))))


DISK = obj(path=attr("string", "path", required=True), ro=default(attr("bool", "ro"), "false"))
BLOCK = obj(d=Spec(block_value=Block(name="d", nested=DISK)))
LIST = obj(d=Spec(block_list=BlockList(name="d", nested=DISK)))
SET = obj(d=Spec(block_set=BlockSet(name="d", nested=DISK)))
MAP = obj(d=Spec(block_map=BlockMap(name="d", labels=["name"], nested=DISK)))
ATTRS = obj(d=Spec(block_attrs=BlockAttrs(name="d", type="string")))
QEMU = obj(a=default(attr("string"), '"qemu"'))
LISTED = obj(a=default(attr("list(string)"), '["p","q"]'))

# Schema, config in JSON form, MessagePack in hex. From a real hcl/v2 and go-cty.
GOLDEN: list[tuple[Spec, str, str]] = [
    (obj(a=attr("string")), "{}", "81a161c0"),
    (obj(a=attr("number")), '{"a":4}', "81a16104"),
    (obj(a=attr("number")), '{"a":300}', "81a161cd012c"),
    (obj(a=attr("number")), '{"a":70000}', "81a161ce00011170"),
    (obj(a=attr("number")), '{"a":1099511627776}', "81a161cf0000010000000000"),
    (obj(a=attr("number")), '{"a":-1}', "81a161ff"),
    (obj(a=attr("number")), '{"a":0.5}', "81a161cb3fe0000000000000"),
    (obj(a=attr("number")), '{"a":0.1}', "81a161a3302e31"),
    (obj(a=attr("number")), '{"a":1180591620717411303424}', "81a161cb4450000000000000"),
    (obj(a=attr("number")), '{"a":"42"}', "81a1612a"),
    (obj(a=attr("string")), '{"a":42}', "81a161a23432"),
    (obj(a=attr("bool")), '{"a":"true"}', "81a161c3"),
    (obj(a=attr("list(string)")), "{}", "81a161c0"),
    (obj(a=attr("list(string)")), '{"a":["x","y"]}', "81a16192a178a179"),
    (obj(a=attr("set(string)")), '{"a":["y","x","y"]}', "81a16192a178a179"),
    (obj(a=attr("map(string)")), '{"a":{"k":"v"}}', "81a16181a16ba176"),
    (obj(a=attr("list(map(string))")), '{"a":[{"k":"v"},{"l":"w"}]}', "81a1619281a16ba17681a16ca177"),
    (obj(a=attr("any")), '{"a":{"x":1,"y":[true]}}', "81a16182a17801a17991c3"),
    (QEMU, "{}", "81a161a471656d75"),
    (QEMU, '{"a":null}', "81a161a471656d75"),
    (LISTED, "{}", "81a16192a170a171"),
    (obj(key=attr("string", "hcl_name")), '{"hcl_name":"z"}', "81a36b6579a17a"),
    (BLOCK, "{}", "81a164c0"),
    (BLOCK, '{"d":{"path":"/x"}}', "81a16482a470617468a22f78a2726fc2"),
    (BLOCK, '{"d":[{"path":"/x"}]}', "81a16482a470617468a22f78a2726fc2"),
    (LIST, "{}", "81a16490"),
    (
        LIST,
        '{"d":[{"path":"/x"},{"path":"/y","ro":true}]}',
        "81a1649282a470617468a22f78a2726fc282a470617468a22f79a2726fc3",
    ),
    (SET, "{}", "81a16490"),
    (MAP, "{}", "81a16480"),
    (MAP, '{"d":[{"n1":[{"path":"/x"}]}]}', "81a16481a26e3182a470617468a22f78a2726fc2"),
    (ATTRS, "{}", "81a164c0"),
    (ATTRS, '{"d":{"k":"v"}}', "81a16481a16ba176"),
    (ATTRS, '{"d":[{"k":"v"}]}', "81a16481a16ba176"),
    (obj(), "{}", "80"),
]

REFUSED: list[tuple[Spec, str, list[str]]] = [
    (
        obj(a=attr("map(string)")),
        '{"a":[{"k":"v"}]}',
        ['Incorrect attribute value type: Inappropriate value for attribute "a": map of string required.'],
    ),
    (
        obj(a=attr("list(map(string))")),
        '{"a":{"k":"v"}}',
        ['Incorrect attribute value type: Inappropriate value for attribute "a": list of map of string required.'],
    ),
    (
        BLOCK,
        '{"d":[{"path":"/x"},{"path":"/y"}]}',
        ['Duplicate d block: Only one block of type "d" is allowed.'],
    ),
    (
        obj(a=attr("string")),
        '{"a":"x ${foo} y"}',
        ['Unknown variable: There is no variable named "foo".'],
    ),
    (
        obj(a=attr("number"), b=attr("bool", "b", required=True)),
        '{"c":1,"a":"x"}',
        [
            'Invalid label: No argument or block type is named "c".',
            'Incorrect attribute value type: Inappropriate value for attribute "a": a number is required.',
            'Missing required argument: The argument "b" is required, but no definition was found.',
        ],
    ),
    (
        LIST,
        '{"d":[{"path":"/x","size":1}]}',
        ['Invalid label: No argument or block type is named "size".'],
    ),
    (
        obj(a=attr("list(number)")),
        '{"a":[1,true]}',
        ['Incorrect attribute value type: Inappropriate value for attribute "a": element 1: number required.'],
    ),
    (
        LIST,
        '{"d":"x"}',
        [
            (
                "Incorrect JSON value type: Either a JSON object or a JSON array is required, representing the "
                'contents of one or more "d" blocks.'
            )
        ],
    ),
]


@pytest.mark.parametrize(("spec", "config", "wanted"), GOLDEN)
def test_encodes_as_nomad_does(spec: Spec, config: str, wanted: str) -> None:
    assert encode(spec, json.loads(config), {}).hex() == wanted


@pytest.mark.parametrize(("spec", "config", "complaints"), REFUSED)
def test_refuses_what_nomad_refuses(spec: Spec, config: str, complaints: list[str]) -> None:
    with pytest.raises(SchemaError) as caught:
        encode(spec, json.loads(config), {})
    assert caught.value.complaints == complaints


def test_variables_are_replaced_at_any_depth() -> None:
    variables: dict[str, Any] = {"NOMAD_PORT_http": "8080", "meta": {"x": "m"}}
    body = {"a": ["${meta.x}/k", {"deep": "$${meta.x} ${NOMAD_PORT_http}"}]}
    assert encode(obj(a=attr("any")), body, variables) == encode(
        obj(a=attr("any")), {"a": ["m/k", {"deep": "$${meta.x} 8080"}]}, {}
    )


def test_a_number_may_come_from_a_variable() -> None:
    assert (
        encode(obj(a=attr("number")), {"a": "${NOMAD_PORT_http}"}, {"NOMAD_PORT_http": "8080"}).hex() == "81a161cd1f90"
    )


def test_the_agent_file_knows_no_variables() -> None:
    with pytest.raises(SchemaError, match="Variables not allowed: Variables may not be used here"):
        encode(obj(a=attr("string")), {"a": "${meta.x}"}, None)
