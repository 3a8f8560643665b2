"""Agent files, HCL1 and JSON: our block and the node's metadata."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from driver._pb.hclspec_pb2 import Attr, Block, BlockMap, Object, Spec
from driver.devhost import agentfile, hcl1
from driver.devhost.errors import AgentFileError
from driver.devhost.node import Cpu, Node
from driver.keys import plugin_spec


def attr(name: str, type_: str = "string") -> Spec:
    return Spec(Attr=Attr(name=name, type=type_))


def obj(**members: Spec) -> Spec:
    return Spec(object=Object(attributes=members))


SPEC = obj(
    data_dir=attr("data_dir"),
    paths=attr("paths", "list(string)"),
    qemu=Spec(block_value=Block(name="qemu", nested=obj(binary=attr("binary"), accel=attr("accel")))),
    network=Spec(block_map=BlockMap(name="network", labels=["name"], nested=obj(mode=attr("mode")))),
)

HCL = """
# an agent file
data_dir = "/opt/nomad" // comment
ports { http = 4646 }
client {
  enabled = true
  options = {
    "driver.allowlist" = "chv"
  }
  meta { rack = "r1", "a.b" = 3
    on = true }
}
/* two blocks of plugins */
plugin "raw_exec" { config { enabled = true } }
plugin "chv" {
  config {
    data_dir = "/x \\"y\\" \\n"
    paths = ["a",
      "b", ]
    qemu { binary = "q"  accel = "tcg" }
    network "lan" { mode = "user" }
    network "br" {
      mode = "bridge"
    }
  }
}
"""
WANTED: dict[str, Any] = {
    "data_dir": '/x "y" \n',
    "paths": ["a", "b"],
    "qemu": {"binary": "q", "accel": "tcg"},
    "network": {"lan": {"mode": "user"}, "br": {"mode": "bridge"}},
}
JSON = """
{"client": {"meta": {"rack": "r1", "a.b": 3, "on": true}},
 "plugin": {"raw_exec": {}, "chv": {"config": {"data_dir": "/x \\"y\\" \\n", "paths": ["a", "b"],
   "qemu": {"binary": "q", "accel": "tcg"}, "network": {"lan": {"mode": "user"}, "br": {"mode": "bridge"}}}}}}
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CHV_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize(("name", "text"), [("a.hcl", HCL), ("a.json", JSON)])
def test_reads_our_block_and_the_meta(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(text)
    assert msgspec.msgpack.decode(agentfile.plugin_config_msgpack(path, SPEC)) == WANTED
    assert agentfile.client_meta(path) == {"rack": "r1", "a.b": "3", "on": "true"}


def test_without_a_file_the_defaults_hold() -> None:
    config = msgspec.msgpack.decode(agentfile.plugin_config_msgpack(None, plugin_spec()))
    assert config["data_dir"] == "/var/lib/chv"
    assert config["hypervisor"] == "auto"
    assert agentfile.client_meta(None) == {}


def test_the_agent_file_of_ours_fits_the_schema() -> None:
    path = Path(__file__).parents[2] / "nomad-jobs/agent.hcl"
    config = msgspec.msgpack.decode(agentfile.plugin_config_msgpack(path, plugin_spec()))
    assert config["network"]["user0"]["mode"] == "user"
    assert config["image_paths"] == [agentfile.client_meta(path)["chv_guest"]]


def test_finds_named_then_variable_then_the_last_file_with_our_block(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("a.hcl", HCL), ("b.hcl", HCL), ("c.hcl", "client { enabled = true }\n"), ("d.txt", HCL)):
        (directory / name).write_text(text)
    assert agentfile.find_agent_file(None, directory=directory) == directory / "b.hcl"
    assert agentfile.find_agent_file(directory) == directory / "b.hcl"
    assert agentfile.find_agent_file(None, directory=directory / "none") is None
    monkeypatch.setenv("CHV_CONFIG", str(directory / "a.hcl"))
    assert agentfile.find_agent_file(None, directory=directory) == directory / "a.hcl"
    assert agentfile.find_agent_file(directory / "c.hcl", directory=directory) == directory / "c.hcl"


def test_a_named_file_that_is_not_there_is_said(directory: Path) -> None:
    with pytest.raises(AgentFileError, match=r"nothing\.hcl: no such file"):
        agentfile.find_agent_file(directory / "nothing.hcl")


def test_all_complaints_at_once(directory: Path) -> None:
    path = directory / "a.hcl"
    path.write_text('plugin "chv" { config { colour = 1 paths = "x" } }\n')
    with pytest.raises(AgentFileError) as caught:
        agentfile.plugin_config_msgpack(path, SPEC)
    assert str(caught.value) == (
        f'{path}: plugin "chv": Invalid label: No argument or block type is named "colour".; '
        'Incorrect attribute value type: Inappropriate value for attribute "paths": list of string required.'
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a = 1\na = 2\n", {"a": 2}),
        ("a { x = 1 }\na { y = 2 }\n", {"a": [{"x": 1}, {"y": 2}]}),
        ("a = -1.5\nb = 0x10\nc = 1e2\n", {"a": -1.5, "b": 16, "c": 100}),
        ('a "b" "c" { d = 1 }\n', {"a": [{"b": [{"c": [{"d": 1}]}]}]}),
        ("a = <<-EOT\n  x\n    y\n  EOT\n", {"a": "x\n  y\n"}),
        ("a = <<EOT\n x\nEOT\nb = 1\n", {"a": " x\n", "b": 1}),
        ('a = "${meta.x} $HOME \\u0041"\n', {"a": "${meta.x} $HOME A"}),
        ("a = [{ x = 1 }, { x = 2 }]\n", {"a": [{"x": 1}, {"x": 2}]}),
        ("", {}),
    ],
)
def test_hcl1_values(text: str, wanted: Any) -> None:
    assert hcl1.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = \n", "line 2: 'the end' where a value was expected"),
        ("a = 1\nb c = 2\n", "line 2: 'c': an attribute has one name"),
        ("a {\n  x = 1\n", "line 3: 'the end' where a key was expected"),
        ("a\n", "line 2: 'the end' after 'a', expected = or {"),
        ("a = [1 2]\n", "line 1: '2' in a list, expected , or ]"),
        ("x = 1\na = @\n", "line 2: '@' is not HCL"),
    ],
)
def test_hcl1_says_where_it_stops(text: str, problem: str) -> None:
    with pytest.raises(hcl1.Hcl1Error) as caught:
        hcl1.parse(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("client", "withheld"),
    [
        ("", set()),
        ("reserved { cpu = 100 }", set()),
        ('reserved { cores = " " }', set()),
        ('reserved { cores = "0-1,6" cpu = 100 }', {0, 1, 6}),
        ("reserved { cores = 3 }", {3}),
        ('reserved { cores = "6, 7-900" }', {6, 7}),
        ('reserved { cores = "0" }\n reserved { cores = "1" }', {1}),
        ('reserved { cores = "0" }\n}\nclient {\n reserved { cpu = 100 }', {0}),
        ('reservable_cores = "0-3"', {4, 5, 6, 7}),
        ('reservable_cores = "0-3"\n reserved { cores = "0,7" }', {4, 5, 6, 7}),
        ('reservable_cores = ""\n reserved { cores = "0,7" }', {0, 7}),
    ],
)
def test_withheld_cores_are_those_of_an_agent(tmp_path: Path, client: str, withheld: set[int]) -> None:
    path = tmp_path / "agent.hcl"
    path.write_text(f"client {{\n {client}\n}}\n")
    assert agentfile.withheld_cores(path, set(range(8))) == withheld


def test_without_a_file_nothing_is_withheld() -> None:
    assert agentfile.withheld_cores(None, {0, 1}) == frozenset()


@pytest.mark.parametrize(
    ("client", "problem"),
    [
        ('reserved { cores = "all" }', "client.reserved.cores = 'all': {}, found 'all'"),
        ('reserved { cores = "0,7-4" }', "client.reserved.cores = '0,7-4': {}, found '7-4'"),
        ('reserved { cores = "-1" }', "client.reserved.cores = '-1': {}, found '-1'"),
        ('reserved { cores = "0-99999999" }', "client.reserved.cores = '0-99999999': {}, found '0-99999999'"),
        ('reservable_cores = "0-3,"', "client.reservable_cores = '0-3,': {}, found ''"),
        ("reservable_cores = true", "client.reservable_cores = 'true': {}, found 'true'"),
    ],
)
def test_a_list_that_is_none_is_said(tmp_path: Path, client: str, problem: str) -> None:
    path = tmp_path / "agent.hcl"
    path.write_text(f"client {{\n {client}\n}}\n")
    with pytest.raises(AgentFileError) as caught:
        agentfile.withheld_cores(path, {0, 1})
    expected = problem.format("expected a list of CPUs in ascending ranges such as 0-3,8")
    assert str(caught.value) == f"{path}: {expected}"


def test_withheld_cores_go_to_no_task_and_the_driver_is_told() -> None:
    cpus = tuple(Cpu(id=cpu, socket=0, numa_node=0, mhz=1000) for cpu in range(4))
    node = Node(id="n", name="n", cpus=cpus).withholding({0, 1})
    assert [(core.core_id, core.disable) for core in node.topology().cores] == [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
    ]
    assert node.mhz == 4000
    assert [cpu.id for cpu in node.lowest_cores(2)] == [2, 3]
    with pytest.raises(ValueError, match="cores = 3: this machine has 2 beside 2 that the agent file withholds"):
        node.lowest_cores(3)
