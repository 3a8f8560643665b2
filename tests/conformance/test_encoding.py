"""What Nomad's libraries make of a config body is what the embedded host makes of it, byte for byte.

`driver.devhost` decodes and packs bodies in Python; here hcl/v2, hcldec and cty judge it, on known vectors and on both
schemas of the driver.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from driver._pb import hclspec_pb2 as pb
from driver.devhost import hclspec
from driver.devhost.errors import DevHostError, SchemaError
from driver.devhost.hcltree import config_json, parse
from driver.keys import plugin_spec, task_spec
from tests.conformance.encoder import Encoder, RefusedError

# ---------------------------------------------------------------------------------------------------------------------
# known vectors


def attr(name: str, type_: str, *, required: bool = False) -> pb.Spec:
    return pb.Spec(Attr=pb.Attr(name=name, type=type_, required=required))


def default(primary: pb.Spec, literal: str) -> pb.Spec:
    return pb.Spec(default=pb.Default(primary=primary, default=pb.Spec(literal=pb.Literal(value=literal))))


def obj(**members: pb.Spec) -> pb.Spec:
    return pb.Spec(object=pb.Object(attributes=members))


A_STRING = attr("a", "string")
DISK = obj(path=attr("path", "string", required=True), ro=default(attr("ro", "bool"), "false"))
BLOCK = pb.Spec(block_value=pb.Block(name="d", nested=DISK))
BLOCK_LIST = pb.Spec(block_list=pb.BlockList(name="d", nested=DISK))
BLOCK_SET = pb.Spec(block_set=pb.BlockSet(name="d", nested=DISK))
BLOCK_MAP = pb.Spec(block_map=pb.BlockMap(name="d", labels=["name"], nested=DISK))
BLOCK_ATTRS = pb.Spec(block_attrs=pb.BlockAttrs(name="d", type="string"))

VECTORS: list[tuple[str, pb.Spec, dict[str, Any], str]] = [
    ("string-absent", obj(a=A_STRING), {}, "81a161c0"),
    ("string-of-number", obj(a=A_STRING), {"a": 42}, "81a161a23432"),
    ("string-of-bool", obj(a=A_STRING), {"a": True}, "81a161a474727565"),
    ("number", obj(a=attr("a", "number")), {"a": 4}, "81a16104"),
    ("number-300", obj(a=attr("a", "number")), {"a": 300}, "81a161cd012c"),
    ("number-70000", obj(a=attr("a", "number")), {"a": 70000}, "81a161ce00011170"),
    ("number-2^40", obj(a=attr("a", "number")), {"a": 1 << 40}, "81a161cf0000010000000000"),
    ("number-negative", obj(a=attr("a", "number")), {"a": -1}, "81a161ff"),
    ("number-half", obj(a=attr("a", "number")), {"a": 0.5}, "81a161cb3fe0000000000000"),
    ("number-tenth-is-text", obj(a=attr("a", "number")), {"a": 0.1}, "81a161a3302e31"),
    ("number-of-text", obj(a=attr("a", "number")), {"a": "42"}, "81a1612a"),
    ("bool-of-text", obj(a=attr("a", "bool")), {"a": "true"}, "81a161c3"),
    ("list-absent", obj(a=attr("a", "list(string)")), {}, "81a161c0"),
    ("list", obj(a=attr("a", "list(string)")), {"a": ["x", "y"]}, "81a16192a178a179"),
    ("set-is-sorted", obj(a=attr("a", "set(string)")), {"a": ["y", "x", "y"]}, "81a16192a178a179"),
    ("map", obj(a=attr("a", "map(string)")), {"a": {"k": "v"}}, "81a16181a16ba176"),
    ("map-of-list", obj(a=attr("a", "map(string)")), {"a": [{"k": "v"}]}, ""),
    (
        "list-of-maps",
        obj(a=attr("a", "list(map(string))")),
        {"a": [{"k": "v"}, {"l": "w"}]},
        "81a1619281a16ba17681a16ca177",
    ),
    ("list-of-maps-of-object", obj(a=attr("a", "list(map(string))")), {"a": {"k": "v"}}, ""),
    ("any", obj(a=attr("a", "any")), {"a": {"x": 1, "y": [True]}}, "81a16182a17801a17991c3"),
    ("default-absent", obj(a=default(A_STRING, '"qemu"')), {}, "81a161a471656d75"),
    ("default-null", obj(a=default(A_STRING, '"qemu"')), {"a": None}, "81a161a471656d75"),
    ("default-list", obj(a=default(attr("a", "list(string)"), '["p","q"]')), {}, "81a16192a170a171"),
    ("another-name", obj(key=attr("hcl_name", "string")), {"hcl_name": "z"}, "81a36b6579a17a"),
    ("block-absent", obj(d=BLOCK), {}, "81a164c0"),
    ("block", obj(d=BLOCK), {"d": {"path": "/x"}}, "81a16482a470617468a22f78a2726fc2"),
    ("block-in-list", obj(d=BLOCK), {"d": [{"path": "/x"}]}, "81a16482a470617468a22f78a2726fc2"),
    ("block-twice", obj(d=BLOCK), {"d": [{"path": "/x"}, {"path": "/y"}]}, ""),
    ("block-without-required", obj(d=BLOCK), {"d": {}}, ""),
    ("block-list-absent", obj(d=BLOCK_LIST), {}, "81a16490"),
    (
        "block-list",
        obj(d=BLOCK_LIST),
        {"d": [{"path": "/x"}, {"path": "/y", "ro": True}]},
        "81a1649282a470617468a22f78a2726fc282a470617468a22f79a2726fc3",
    ),
    ("block-set-absent", obj(d=BLOCK_SET), {}, "81a16490"),
    ("block-map-absent", obj(d=BLOCK_MAP), {}, "81a16480"),
    ("block-map", obj(d=BLOCK_MAP), {"d": [{"n1": [{"path": "/x"}]}]}, "81a16481a26e3182a470617468a22f78a2726fc2"),
    ("block-attrs-absent", obj(d=BLOCK_ATTRS), {}, "81a164c0"),
    ("block-attrs", obj(d=BLOCK_ATTRS), {"d": {"k": "v"}}, "81a16481a16ba176"),
    ("block-attrs-in-list", obj(d=BLOCK_ATTRS), {"d": [{"k": "v"}]}, "81a16481a16ba176"),
    ("empty-object", obj(), {}, "80"),
    ("unknown-key", obj(a=A_STRING), {"b": 1}, ""),
    ("unknown-variable", obj(a=A_STRING), {"a": "x ${foo} y"}, ""),
    ("literal-template", obj(a=A_STRING), {"a": "$${foo}"}, "81a161a6247b666f6f7d"),
]


@pytest.mark.parametrize(("spec", "body", "packed"), [pytest.param(*case[1:], id=case[0]) for case in VECTORS])
def test_known_vector(encoder: Encoder, spec: pb.Spec, body: dict[str, Any], packed: str) -> None:
    """An empty `packed` says that both refuse."""
    assert outcome(encoder.of_json, spec, body) == (packed or "refused")
    assert outcome(hclspec.encode, spec, body) == (packed or "refused")


def outcome(encode: Any, spec: pb.Spec, body: Any, variables: dict[str, Any] | None = None) -> str:
    """Hex, or that it was refused."""
    try:
        packed: bytes = encode(spec, body, variables)
    except (RefusedError, DevHostError):
        return "refused"
    return packed.hex()


# ---------------------------------------------------------------------------------------------------------------------
# both schemas

TASK_BODIES = {
    "nothing": "",
    "kernel": 'kernel = "local/vmlinuz"\ncmdline = "console=ttyS0 exit=3"',
    "image": 'image = "local/disk.qcow2"\nroot_size = "20GiB"\nvcpus = 2',
    "texts-for-others": 'kernel = "k"\nvcpus = "2"\nagent = "false"\nhostname = 7',
    "number-that-is-none": 'kernel = "k"\nvcpus = "two"',
    "bool-that-is-none": 'agent = "maybe"',
    "null": "kernel = null\nvcpus = null\nagent = null",
    "fraction": "vcpus = 1.5",
    "lists": 'ssh_authorized_keys = ["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b"]\nshare = []',
    "list-of-others": "ssh_authorized_keys = [1, true]",
    "text-for-a-list": 'ssh_authorized_keys = "ssh-ed25519 AAAA a"',
    "one-interface": 'network_interface {\n  network = "lan"\n}',
    "two-interfaces": 'network_interface {\n  network = "a"\n}\nnetwork_interface {\n  network = "b"\n  dns = ["1"]\n}',
    "empty-interface": "network_interface {}",
    "interface-as-object": 'network_interface = { network = "lan" }',
    "interface-as-list": 'network_interface = [{ network = "lan" }, { network = "b" }]',
    "disks": 'disk {\n  name = "data"\n  size = "10GiB"\n  persistent = true\n}\ndisk {\n  source = "x.iso"\n}',
    "label-on-a-list": 'disk "a" {\n  size = "1GiB"\n}',
    "unknown-key": 'kernel = "k"\ncolour = "blue"',
    "two-unknown-keys": 'colour = "blue"\nsound {\n  loud = true\n}',
    "unknown-key-in-a-block": 'network_interface {\n  network = "lan"\n  colour = "blue"\n}',
    "text-for-a-block": 'disk = "data"',
    "variables": 'kernel = "${NOMAD_TASK_DIR}/k"\ncmdline = "port=${NOMAD_PORT_http} on ${node.unique.name}"',
    "variable-alone-is-a-number": 'vcpus = "${NOMAD_META_vcpus}"',
    "unknown-variable": 'cmdline = "${HOME}"',
    "escaped-once": 'cmdline = "$${HOME}"',
    "escaped-twice": 'cmdline = "$$${HOME} $HOME"',
    "percent": 'cmdline = "100%"',
    "escapes": r'cmdline = "a\tb \"c\" \\ \u00e9 \n"',
    "unicode": 'hostname = "bücher"\ncmdline = "日本 🎉"',
    "heredoc": "user_data = <<EOT\n#cloud-config\n  packages: [a]\nEOT",
    "indented-heredoc": 'user_data = <<-EOT\n    #!/bin/sh\n      echo "$HOME" \\n\n    exit 0\n    EOT\n',
    "heredoc-with-a-variable": "user_data = <<EOT\n#x ${NOMAD_TASK_DIR}\nEOT",
    "heredoc-with-a-script": "user_data = <<EOT\n#!/bin/sh\necho ${HOME}\nEOT",
    "comments": '# one\nkernel = "k" // two\n/* three */\nvcpus = 1 # four',
    "big-number": "vcpus = 1099511627776",
    "negative-number": "vcpus = -1",
    "exponent": "vcpus = 1e3",
    "long-text": f'user_data = "#{"x" * 100_000}"',
    "every-word": "\n".join(
        f"{key} = {value}"
        for key, value in {
            "image": '"i.raw"',
            "image_format": '"raw"',
            "root_mode": '"copy"',
            "root_size": '"1GiB"',
            "kernel": '"k"',
            "initrd": '"i"',
            "cmdline": '"c"',
            "firmware": '"bios"',
            "guest_os": '"linux"',
            "tpm": "false",
            "vcpus": "3",
            "placement": '"shared"',
            "threads": '"hide"',
            "numa": '"prefer"',
            "emulator": '"shared"',
            "hugepages": "false",
            "hostname": '"h"',
            "ssh_authorized_keys": '["k v"]',
            "user_data": '"#x"',
            "network_config": '"{}"',
            "on_reboot": '"exit"',
            "on_panic": '"restart"',
            "agent": "true",
            "wait_for": '""',
            "share": '["local"]',
            "balloon": "false",
            "vfio": '["0000:00:01.0"]',
            "hypervisor": '"qemu"',
        }.items()
    ),
}

PLUGIN_BODIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "directories": {"data_dir": "/d", "run_dir": "/r", "image_paths": ["/a", "/b"]},
    "qemu": {"qemu": [{"binary": "q", "accel": "tcg"}]},
    "qemu-as-object": {"qemu": {"accel": "tcg"}},
    "qemu-empty": {"qemu": [{}]},
    "qemu-twice": {"qemu": [{"binary": "q"}, {"accel": "tcg"}]},
    "network": {"network": [{"lan": [{"mode": "user"}]}]},
    "networks": {"network": [{"lan": [{"mode": "user"}]}, {"br": [{"mode": "bridge", "bridge": "br0"}]}]},
    "networks-in-one": {"network": {"lan": {"mode": "user"}, "br": {"mode": "bridge", "filter": "true"}}},
    "network-twice": {"network": [{"lan": [{"mode": "user"}]}, {"lan": [{"mode": "user"}]}]},
    "network-without-a-label": {"network": [{"mode": "user"}]},
    "nfs": {"nfs": [{"vms": [{"server": "10.0.0.5", "export": "/srv", "read_only": True}]}]},
    "gc": {"gc": [{"dry_run": "true", "orphan_grace": "5m"}]},
    "cores": {"cores": [{"dedicated": "0-3", "tokens": False}], "vfio_allow": ["0000:00:01.0"]},
    "number-for-text": {"vm_uids": 5},
    "list-for-text": {"vm_uids": ["200000-265535"]},
    "unknown": {"colour": "blue", "qemu": [{"colour": "blue"}]},
    "template": {"data_dir": "/d/${attr.unique.hostname}"},
    "escaped": {"data_dir": "/d/$${x}"},
    "null": {"data_dir": None, "qemu": None, "image_paths": None},
}

VARIABLES = {
    "NOMAD_TASK_DIR": "/local",
    "NOMAD_PORT_http": "8080",
    "NOMAD_META_vcpus": "4",
    "node": {"unique": {"name": "n1"}},
}


@pytest.mark.parametrize("body", TASK_BODIES.values(), ids=TASK_BODIES.keys())
def test_task_body_is_packed_alike(encoder: Encoder, body: str) -> None:
    spec, text = task_spec(), body + "\n"
    assert outcome(_by_devhost, spec, text, VARIABLES) == outcome(encoder.of_hcl, spec, text, VARIABLES)


@pytest.mark.parametrize("body", PLUGIN_BODIES.values(), ids=PLUGIN_BODIES.keys())
def test_plugin_body_is_packed_alike(encoder: Encoder, body: dict[str, Any]) -> None:
    spec = plugin_spec()
    assert outcome(hclspec.encode, spec, body) == outcome(encoder.of_json, spec, body)


def _by_devhost(spec: pb.Spec, body: str, variables: dict[str, Any]) -> bytes:
    return hclspec.encode(spec, config_json(parse(body, Path("job"))), variables)


@pytest.mark.parametrize(
    ("spec", "body"),
    [
        pytest.param(spec, body, id=f"{kind}-{name}")
        for kind, spec, bodies in (("task", task_spec(), TASK_BODIES), ("plugin", plugin_spec(), PLUGIN_BODIES))
        for name, body in bodies.items()
    ],
)
def test_complaints_are_about_the_same_things(encoder: Encoder, spec: pb.Spec, body: str | dict[str, Any]) -> None:
    """People see all that is wrong at once, here as on a cluster."""
    if isinstance(body, str):
        form: dict[str, Any] = config_json(parse(body + "\n", Path("job")))
        variables: dict[str, Any] | None = VARIABLES
    else:
        form, variables = body, None
    assert _complaints(hclspec.encode, spec, form, variables) == _complaints(encoder.of_json, spec, form, variables)


def _complaints(encode: Any, spec: pb.Spec, body: Any, variables: Any) -> set[tuple[str, ...]]:
    """What is complained of: the kind, and all that is quoted. The rest of the words changes between releases."""
    try:
        encode(spec, body, variables)
    except (RefusedError, SchemaError) as exc:
        return {_gist(complaint) for complaint in exc.complaints}
    return set()


def _gist(complaint: str) -> tuple[str, ...]:
    summary, _, detail = complaint.partition(": ")
    # Nomad shows this one under another name, because nobody wrote any JSON.
    kind = "Invalid label" if summary == "Extraneous JSON object property" else summary
    return (kind, *re.findall(r'"([^"]*)"', detail))
