"""What a block of ours may hold, as data: its keys and nested blocks, and the `Spec` that Nomad gets of them.

The blocks themselves are in `driver.keys`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from driver._pb import hclspec_pb2 as pb

Value = str | int | bool | tuple[str, ...] | None

_TYPES = {"string": "string", "number": "number", "bool": "bool", "strings": "list(string)"}

_WORD = 64  # bytes
PATH_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One attribute. An absent one arrives as nil where it has no default that Nomad can put in."""

    name: str
    kind: Literal["string", "number", "bool", "strings"] = "string"
    default: Value = ""
    works: tuple[Value, ...] | None = None  # the values that are accepted; None = all
    hidden: tuple[Value, ...] = ()  # work where CHV_ENABLE_FAKE=1
    max_bytes: int = _WORD  # of the string, or of each in a list
    max_items: int = 64
    many_lines: bool = False
    secret: bool = False  # never shown in a message
    meaning: str = ""  # for the users' page, in its markup; of a file of ours in docs/ by its name there

    @property
    def type(self) -> str:
        """In HCL's words."""
        return _TYPES[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A nested block: at most `one`, a `list` of them, or a `map` by label."""

    name: str
    form: Literal["one", "list", "map"]
    members: tuple["Key | Block", ...]
    max_items: int = 64
    label: str = field(default="name")


Members = tuple[Key | Block, ...]


def walk(members: Members, prefix: str = "") -> Iterator[tuple[str, Key | Block]]:
    """Every key and block with its dotted name."""
    for member in members:
        yield prefix + member.name, member
        if isinstance(member, Block):
            yield from walk(member.members, f"{prefix}{member.name}.")


def literal(value: Value) -> str:
    """A default as HCL writes it."""
    return json.dumps(value)


def spec(members: Members) -> pb.Spec:
    return pb.Spec(object=pb.Object(attributes={member.name: _member(member) for member in members}))


def _member(member: Key | Block) -> pb.Spec:
    if isinstance(member, Block):
        nested = spec(member.members)
        match member.form:
            case "one":
                return pb.Spec(block_value=pb.Block(name=member.name, nested=nested))
            case "list":
                return pb.Spec(block_list=pb.BlockList(name=member.name, nested=nested))
            case "map":
                return pb.Spec(block_map=pb.BlockMap(name=member.name, labels=[member.label], nested=nested))
    attribute = pb.Spec(Attr=pb.Attr(name=member.name, type=member.type))
    if member.default is None or member.kind == "strings":
        return attribute  # nil stands for the default; an empty list has no type that a literal could give it
    default = pb.Spec(literal=pb.Literal(value=literal(member.default)))
    return pb.Spec(default=pb.Default(primary=attribute, default=default))
