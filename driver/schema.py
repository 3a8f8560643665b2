"""The plugin block and the task block as data: every key of the design, also those that this version refuses.

Nomad checks names and types by the `Spec` made from these tables, in its own words. All that is refused beyond that
is refused by `driver.decode` and the `driver.config_*` modules, in ours.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from driver._pb import hclspec_pb2 as pb

Value = str | int | bool | tuple[str, ...] | None
ANY: Final = "any"

_TYPES = {"string": "string", "number": "number", "bool": "bool", "strings": "list(string)"}

# Limits in bytes. A value that is far too long has to be stopped here: it may travel on in a VMM's own messages.
_WORD = 64
_NAME = 255
PATH_MAX_BYTES = 1024
_CMDLINE = 2047  # Linux on x86 reads 2048 with the final NUL
_FILE = 1 << 20  # of the seed
_CPU_LIST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One attribute. An absent one arrives as nil where it has no default that Nomad can put in."""

    name: str
    kind: Literal["string", "number", "bool", "strings"] = "string"
    default: Value = ""
    works: tuple[Value, ...] | None = None  # values that this version accepts; None = all
    planned: tuple[Value, ...] | Literal["any"] = ()  # values that it refuses as not built yet
    hidden: tuple[Value, ...] = ()  # work where CHV_ENABLE_FAKE=1
    max_bytes: int = _WORD  # of the string, or of each in a list
    max_items: int = 64
    many_lines: bool = False
    secret: bool = False  # never shown in a message

    @property
    def type(self) -> str:
        """In HCL's words."""
        return _TYPES[self.kind]

    @property
    def built(self) -> bool:
        """False when nothing but the default is accepted."""
        return not (self.works == (self.default,) and self.planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A nested block: at most `one`, a `list` of them, or a `map` by label."""

    name: str
    form: Literal["one", "list", "map"]
    members: tuple["Key | Block", ...]
    built: bool = True
    max_items: int = 64
    label: str = field(default="name")


Members = tuple[Key | Block, ...]


def _choice(name: str, *works: str, planned: tuple[str, ...] = (), hidden: tuple[str, ...] = ()) -> Key:
    """One of several words; the first is the default."""
    return Key(name=name, default=works[0], works=works, planned=planned, hidden=hidden)


def _path(name: str) -> Key:
    return Key(name=name, max_bytes=PATH_MAX_BYTES)


def _switch(name: str, *, default: bool = False) -> Key:
    return Key(name=name, kind="bool", default=default)


def _later(name: str, default: str = "", max_bytes: int = PATH_MAX_BYTES) -> Key:
    return Key(name=name, default=default, works=(default,), planned=ANY, max_bytes=max_bytes)


PLUGIN: Members = (
    Key(name="data_dir", default="/var/lib/chv", max_bytes=PATH_MAX_BYTES),
    Key(name="run_dir", default="/run/chv", max_bytes=PATH_MAX_BYTES),
    _choice("hypervisor", "auto", "cloud-hypervisor", "qemu", hidden=("fake",)),
    Key(name="vm_uids"),
    Key(name="vm_user", default="chv"),
    Block(
        name="cloud_hypervisor",
        form="one",
        members=(Key(name="binary", default="cloud-hypervisor", max_bytes=PATH_MAX_BYTES), _path("firmware")),
    ),
    Block(
        name="qemu",
        form="one",
        members=(
            Key(name="binary", default="qemu-system-x86_64", max_bytes=PATH_MAX_BYTES),
            _choice("accel", "auto", "kvm", "tcg"),
        ),
    ),
    Block(
        name="cores",
        form="one",
        members=(
            Key(name="dedicated", max_bytes=_CPU_LIST),
            Key(name="housekeeping", max_bytes=_CPU_LIST),
            _choice("smt", "core", "thread"),
            _switch("tokens"),
            _choice("partition", "", "root", "isolated"),
        ),
    ),
    Key(name="image_max_size", default="2TiB"),
    Key(name="image_paths", kind="strings", default=(), max_bytes=PATH_MAX_BYTES),
    Key(name="default_network"),
    Block(
        name="network",
        form="map",
        members=(
            Key(name="mode", works=("user", "macvtap", "bridge")),
            Key(name="parent"),
            _choice("macvtap_mode", "", "bridge", "private", "vepa", "passthru"),
            Key(name="filter", kind="bool", default=False),
            Key(name="host_shim"),
            Key(name="bridge"),
        ),
    ),
    Block(
        name="nfs",
        form="map",
        members=(
            Key(name="server", max_bytes=_NAME),
            _path("export"),
            Key(name="options", max_bytes=_NAME),
            _switch("read_only"),
        ),
    ),
    Key(name="vfio_allow", kind="strings", default=()),
    Key(name="hooks", kind="strings", default=(), max_bytes=PATH_MAX_BYTES),
    Block(
        name="gc",
        form="one",
        members=(
            Key(name="image_cache_max", default="50GiB"),
            Key(name="image_cache_max_age", default="30d"),
            Key(name="orphan_grace", default="5m"),
            _switch("dry_run"),
        ),
    ),
)

TASK: Members = (
    _path("image"),
    _choice("image_format", "", "raw", "qcow2"),
    _choice("root_mode", "overlay", "copy", "direct"),
    Key(name="root_size"),
    _path("kernel"),
    _path("initrd"),
    Key(name="cmdline", max_bytes=_CMDLINE),
    _path("firmware"),  # or a word
    _choice("guest_os", "linux", "windows"),
    _switch("tpm"),
    Key(name="vcpus", kind="number", default=None),
    _choice("placement", "exclusive", "shared"),
    _choice("threads", "hide", "expose"),
    _choice("numa", "prefer", "strict", "spread"),
    _choice("emulator", "shared", "isolate"),
    _switch("hugepages"),
    Key(name="hostname", max_bytes=253),
    Key(name="ssh_authorized_keys", kind="strings", default=(), max_bytes=8192, secret=True),
    Key(name="user_data", max_bytes=_FILE, many_lines=True, secret=True),
    Key(name="network_config", max_bytes=_FILE, many_lines=True, secret=True),
    Block(
        name="disk",
        form="list",
        max_items=24,
        members=(
            Key(name="name"),
            Key(name="size"),
            _switch("persistent"),
            Key(name="serial"),
            Key(name="rate_limit"),
            _path("source"),
            _switch("readonly"),
            _choice("format", "", "raw", "qcow2"),
        ),
    ),
    Block(
        name="network_interface",
        form="list",
        max_items=16,
        members=(
            Key(name="network"),
            Key(name="mac"),
            Key(name="address", kind="strings", default=()),
            Key(name="gateway", max_bytes=128),
            Key(name="dns", kind="strings", default=()),
            Key(name="rate_limit"),
        ),
    ),
    _choice("on_reboot", "restart", "exit"),
    _choice("on_panic", "exit", "restart"),
    _switch("agent", default=True),
    _choice("wait_for", "", planned=("agent",)),
    Key(name="share", kind="strings", default=()),
    _switch("balloon"),
    Key(name="vfio", kind="strings", default=(), max_items=8),
    _choice("hypervisor", "", "cloud-hypervisor", "qemu", hidden=("fake",)),
)


def plugin_spec() -> pb.Spec:
    """What ConfigSchema answers."""
    return _object(PLUGIN)


def task_spec() -> pb.Spec:
    """What TaskConfigSchema answers."""
    return _object(TASK)


def walk(members: Members, prefix: str = "") -> Iterator[tuple[str, Key | Block]]:
    """Every key and block with its dotted name."""
    for member in members:
        yield prefix + member.name, member
        if isinstance(member, Block):
            yield from walk(member.members, f"{prefix}{member.name}.")


def literal(value: Value) -> str:
    """A default as HCL writes it."""
    return json.dumps(value)


def _object(members: Members) -> pb.Spec:
    return pb.Spec(object=pb.Object(attributes={member.name: _member(member) for member in members}))


def _member(member: Key | Block) -> pb.Spec:
    if isinstance(member, Block):
        nested = _object(member.members)
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
