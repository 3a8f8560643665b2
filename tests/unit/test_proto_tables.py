"""The messages and services that we speak, against the tables of what Nomad and go-plugin speak.

`data/wire_tables.json` holds the tables; `data/make_wire_tables.py` makes it from the page with the facts. Where that
page lies beside the checkout, the two are compared as well.
"""

import copy
import importlib
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2 as d
from google.protobuf import descriptor_pool

from driver._pb import driver_pb2, driver_pb2_grpc, recoverable_error_pb2, status_pb2

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_name("data")
PAGE = CHECKOUT.parent / "shared/facts/nomad-driver-proto.md"
TABLES: dict[str, Any] = json.loads((DATA / "wire_tables.json").read_text())

KINDS = {
    (False, False): "unary",
    (False, True): "server stream",
    (True, False): "client stream",
    (True, True): "bidi stream",
}
F = d.FieldDescriptorProto
SCALARS = {value: name.removeprefix("TYPE_").lower() for name, value in F.Type.items()}


def ours(section: str) -> d.FileDescriptorProto:
    """What the generated module really registered."""
    module = importlib.import_module(f"driver._pb.{section}_pb2")
    file = d.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def tables_of(file: d.FileDescriptorProto) -> dict[str, Any]:
    """A file in the form of wire_tables.json."""
    messages: dict[str, Any] = {}
    enums = {enum.name: {value.name: value.number for value in enum.value} for enum in file.enum_type}
    for message in file.message_type:
        _add_message(message, "", file.package, messages, enums)
    services = {
        service.name: {
            rpc.name: [
                KINDS[rpc.client_streaming, rpc.server_streaming],
                _name(rpc.input_type, file.package),
                _name(rpc.output_type, file.package),
            ]
            for rpc in service.method
        }
        for service in file.service
    }
    return {"package": file.package, "services": services, "messages": messages, "enums": enums}


def _add_message(
    message: d.DescriptorProto, outer: str, package: str, messages: dict[str, Any], enums: dict[str, Any]
) -> None:
    name = f"{outer}{message.name}"
    maps = {f".{package}.{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    messages[name] = {
        "fields": {field.name: _field(field, message, maps, package) for field in message.field},
        "reserved": [number for reserved in message.reserved_range for number in range(reserved.start, reserved.end)],
        "reserved_names": list(message.reserved_name),
    }
    for enum in message.enum_type:
        enums[f"{name}.{enum.name}"] = {value.name: value.number for value in enum.value}
    for nested in message.nested_type:
        if not nested.options.map_entry:
            _add_message(nested, f"{name}.", package, messages, enums)


def _field(
    field: d.FieldDescriptorProto, message: d.DescriptorProto, maps: dict[str, d.DescriptorProto], package: str
) -> list[Any]:
    if (entry := maps.get(field.type_name)) is not None:
        key, value = (_type(part, package) for part in entry.field)
        return [field.number, f"map<{key}, {value}>", "map"]
    label = "repeated" if field.label == F.LABEL_REPEATED else ""
    if field.options.packed:
        label = "repeated packed"
    if field.HasField("oneof_index"):
        # A field with presence of its own would show here as one too, under a name with an underscore.
        label = f"oneof {message.oneof_decl[field.oneof_index].name}"
    return [field.number, _type(field, package), label]


def _type(field: d.FieldDescriptorProto, package: str) -> str:
    return _name(field.type_name, package) if field.type_name else SCALARS[field.type]


def _name(full: str, package: str) -> str:
    return full.removeprefix(f".{package}.").removeprefix(".")


@pytest.mark.parametrize("section", TABLES)
def test_speaks_what_the_tables_say(section: str) -> None:
    assert tables_of(ours(section)) == TABLES[section]


def test_every_generated_file_has_its_table() -> None:
    generated = {path.name.removesuffix("_pb2.py") for path in (CHECKOUT / "driver/_pb").glob("*_pb2.py")}
    assert generated == TABLES.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.message_type[0].field[0].__setattr__("number", 100),
        lambda file: file.message_type[0].field[0].__setattr__("name", "other"),
        lambda file: file.message_type[0].field[1].__setattr__("type", F.TYPE_STRING),
        lambda file: file.message_type[0].field[0].__setattr__("label", F.LABEL_REPEATED),
        lambda file: file.message_type[0].field.pop(),
        lambda file: file.message_type[0].enum_type[0].value[0].__setattr__("number", 100),
        lambda file: file.message_type.pop(),
        lambda file: file.service[0].method.pop(),
        lambda file: file.service[0].method[0].__setattr__("server_streaming", False),
        lambda file: file.service[0].method[0].__setattr__("output_type", ".plugin.Empty"),
    ],
)
def test_the_comparison_sees_every_kind_of_change(change: Any) -> None:
    file = copy.deepcopy(ours("stdio"))
    change(file)
    assert tables_of(file) != TABLES["stdio"]


def test_json_is_what_the_page_says_where_there_is_one() -> None:
    if not PAGE.exists():
        pytest.skip("the page with the facts does not lie beside this checkout")
    maker = runpy.run_path(str(DATA / "make_wire_tables.py"))
    assert (DATA / "wire_tables.json").read_text() == maker["render"](maker["parse"](PAGE.read_text()))


def test_generated_code_is_what_proto_gives() -> None:
    generate = runpy.run_path(str(CHECKOUT / "proto/generate.py"))["generate"]
    found = {path.name: path.read_text() for path in (CHECKOUT / "driver/_pb").glob("*.py*") if path.is_file()}
    assert found == generate()


def test_stubs_call_and_servers_answer_under_the_names_on_the_wire() -> None:
    """Paths are strings in the generated code: the tables say what they must be."""
    for section, tables in TABLES.items():
        if not tables["services"]:
            continue
        module = importlib.import_module(f"driver._pb.{section}_pb2_grpc")
        for service, rpcs in tables["services"].items():
            wanted = {f"/{tables['package']}.{service}/{rpc}": kind for rpc, (kind, _, _) in rpcs.items()}
            channel = _Recorder()
            getattr(module, f"{service}Stub")(channel)
            assert channel.calls == wanted
            server = _Recorder()
            getattr(module, f"add_{service}Servicer_to_server")(getattr(module, f"{service}Servicer")(), server)
            assert server.handlers == wanted


class _Recorder:
    """Stands for a channel and for a server, and remembers what it is told."""

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}
        self.handlers: dict[str, str] = {}

    def __getattr__(self, kind: str) -> Any:
        streams = tuple(word == "stream" for word in kind.split("_"))

        def call(path: str, **_: Any) -> None:
            self.calls[path] = KINDS[streams[0], streams[1]]

        return call

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        for handler in handlers:
            for path, method in handler._method_handlers.items():
                self.handlers[path] = KINDS[method.request_streaming, method.response_streaming]


def test_a_second_copy_of_foreign_packages_does_no_harm() -> None:
    """googleapis-common-protos and grpcio-health-checking register these names in the pool of the process."""
    pool = descriptor_pool.Default()
    for package, message in (("google.rpc", "Status"), ("grpc.health.v1", "HealthCheckRequest")):
        foreign = d.FileDescriptorProto(name=f"foreign/{package}.proto", package=package, syntax="proto3")
        foreign.message_type.add(name=message)
        try:
            pool.FindMessageTypeByName(f"{package}.{message}")
        except KeyError:
            pool.AddSerializedFile(foreign.SerializeToString())
    status = status_pb2.Status(code=9)
    status.details.add().Pack(recoverable_error_pb2.RecoverableError(recoverable=True))
    assert status_pb2.Status.FromString(status.SerializeToString()) == status


def test_a_rich_status_has_the_bytes_that_nomad_reads() -> None:
    status = status_pb2.Status(code=9, message="m")
    status.details.add().Pack(recoverable_error_pb2.RecoverableError(recoverable=True))
    url = b"type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError"
    any_ = b"\x0a" + bytes([len(url)]) + url + b"\x12\x02\x08\x01"
    assert status.SerializeToString() == b"\x08\x09\x12\x01m\x1a" + bytes([len(any_)]) + any_


def test_type_stubs_name_every_field() -> None:
    for section, tables in TABLES.items():
        stub = (CHECKOUT / f"driver/_pb/{section}_pb2.pyi").read_text()
        for message, content in tables["messages"].items():
            assert re.search(rf"class {message.rpartition('.')[2]}\(Message\):", stub)
            for field in content["fields"]:
                assert re.search(rf"^ +(def )?{field}(\(self\))?( ->|:)", stub, re.MULTILINE), f"{message}.{field}"


def test_messages_of_newer_releases_are_read_by_older_ones_and_back() -> None:
    """Unknown fields are kept out of the way, not refused."""
    data = driver_pb2.TaskConfig(id="a").SerializeToString() + b"\xf8\x7f\x01"  # field 2047, varint 1
    assert driver_pb2.TaskConfig.FromString(data).id == "a"
    assert driver_pb2_grpc.DriverServicer is not None
