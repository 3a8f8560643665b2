"""What comes over the wire: values and blocks as HCL and cty encode them, and anything else refused."""

from typing import Any

import pytest

from driver.decode import Complaints, decode
from driver.schema import Block, Key, Members, Value

TEXT = Key(name="a")
NUMBER = Key(name="a", kind="number", default=None)
FLAG = Key(name="a", kind="bool", default=False)
TEXTS = Key(name="a", kind="strings", default=())
PATHS: Members = (Key(name="path"), Key(name="ro", kind="bool", default=False))


@pytest.mark.parametrize(
    ("member", "sent", "value"),
    [
        (TEXT, "81a161c0", ""),
        (TEXT, "80", ""),
        (TEXT, "81a161a23432", "42"),
        (TEXT, "81a161a471656d75", "qemu"),
        (NUMBER, "81a161c0", None),
        (NUMBER, "81a16104", 4),
        (NUMBER, "81a161cd012c", 300),
        (NUMBER, "81a161ce00011170", 70000),
        (NUMBER, "81a161cf0000010000000000", 1099511627776),
        (NUMBER, "81a161ff", -1),
        (NUMBER, "81a161cb4450000000000000", 1180591620717411303424),
        (NUMBER, "81a161b631313830353931363230373137343131333033343234", 1180591620717411303424),
        (NUMBER, "81a1612a", 42),
        (FLAG, "81a161c3", True),
        (FLAG, "81a161c0", False),
        (TEXTS, "81a161c0", ()),
        (TEXTS, "81a16192a178a179", ("x", "y")),
    ],
)
def test_values_are_read_as_hcl_and_cty_encode_them(member: Key, sent: str, value: Value) -> None:
    complaints = Complaints()
    assert decode(bytes.fromhex(sent), (member,), complaints) == {"a": value}
    assert complaints.lines == []


@pytest.mark.parametrize(
    ("form", "sent", "value"),
    [
        ("one", "81a164c0", {"path": "", "ro": False}),
        ("one", "81a16482a470617468a22f78a2726fc2", {"path": "/x", "ro": False}),
        ("list", "81a16490", []),
        (
            "list",
            "81a1649282a470617468a22f78a2726fc282a470617468a22f79a2726fc3",
            [{"path": "/x", "ro": False}, {"path": "/y", "ro": True}],
        ),
        ("map", "81a16480", {}),
        ("map", "81a16481a26e3182a470617468a22f78a2726fc2", {"n1": {"path": "/x", "ro": False}}),
    ],
)
def test_blocks_are_read_as_hcl_and_cty_encode_them(form: Any, sent: str, value: object) -> None:
    complaints = Complaints()
    assert decode(bytes.fromhex(sent), (Block(name="d", form=form, members=PATHS),), complaints) == {"d": value}
    assert complaints.lines == []


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ("81a161cb3fe0000000000000", "a = 0.5: expected a whole number"),
        ("81a161a3302e31", "a = '0.1': expected a whole number"),
        ("81a161c3", "a = true: expected a whole number"),
        ("81a16190", "a = []: expected a whole number"),
        ("81a161", "config: not msgpack (Input data was truncated)"),
        ("", "config: not msgpack (Input data was truncated)"),
        ("90", "config = []: expected a block"),
        ("82a161c0a162c0", "b: no such key"),
    ],
)
def test_what_nomad_would_not_send_is_refused(sent: str, complaint: str) -> None:
    complaints = Complaints()
    decode(bytes.fromhex(sent), (NUMBER,), complaints)
    assert complaints.lines == [complaint]
