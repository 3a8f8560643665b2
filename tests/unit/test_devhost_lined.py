"""Objects remember their lines, whichever language their file has; values are those of the ordinary readers."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.devhost import hcl1
from driver.devhost.hcltree import config_json, parse, parse_all
from driver.devhost.lined import Lined, Unknown, line_of, parse_json, value_at

HERE = Path("job.nomad.hcl")
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=VALUES, indent=st.sampled_from([None, 0, 2]))
def test_json_is_read_as_the_ordinary_reader_does(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "[1", "[1,]", "{} x", "tru", '"', "01", "{1:2}"]
)
def test_what_is_no_json_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as refused:
        parse_json(f"\n\n{text}")
    assert refused.value.lineno == 3


def test_nesting_has_an_end() -> None:
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json("[" * 100_000)


HCL = """
vcpus = 2
disk {
  name = "a"
}
disk {
  name = "b"
}
network "lan" {
  mode = "user"
}
network "x y" {
  mode = "bridge"
}
"""
JSON = """{
  "vcpus": 2,
  "disk": [
    {"name": "a"},
    {
      "name": "b"
    }
  ],
  "network": [
    {"lan": [{
      "mode": "user"}]},
    {"x y": [{
      "mode": "bridge"}]}
  ]
}"""
LINES = {
    "vcpus": (2, 2),
    "disk[0].name": (4, 4),
    "disk[1].name": (7, 6),
    "disk[1].size": (6, 5),  # not there: the block's
    "disk[7].name": (3, 3),
    "network.lan.mode": (10, 11),
    "network['x y'].mode": (13, 13),
    "network['x y'].parent": (12, 12),
}


@pytest.mark.parametrize("path", LINES)
def test_a_key_is_found_at_its_line_in_each_language(path: str) -> None:
    of_hcl, of_json = LINES[path]
    assert line_of(hcl1.parse(HCL), path) == of_hcl
    assert line_of(config_json(parse(HCL, HERE)), path) == of_hcl
    assert line_of(parse_json(JSON), path) == of_json
    for body in (hcl1.parse(HCL), parse_json(JSON)):
        assert value_at(body, path) == value_at(config_json(parse(HCL, HERE)), path)


def test_all_that_is_wrong_with_a_file_is_told_and_expressions_are_unknown() -> None:
    text = 'a = 1\na = 2\nb = var.x\nc = [upper("x")]\nd { x = 1\ny = 2\n}\n'
    body, problems = parse_all(text, HERE)
    assert [(one.line, one.problem) for one in problems] == [
        (2, "a: was set before"),
        (5, "d: a block on one line can hold one attribute and nothing else"),
    ]
    assert isinstance(body.attributes["b"].value, Unknown)
    assert isinstance(body.attributes["c"].value[0], Unknown)
    assert isinstance(config_json(body), Lined)
