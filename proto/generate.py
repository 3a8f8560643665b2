#!/usr/bin/env python3
"""Makes `driver/_pb` from the `.proto` files beside this script: `make proto`.

    proto/generate.py            writes driver/_pb anew
    proto/generate.py --check    writes nothing; says what differs and exits 1

protoc only parses. What is written comes from here, for three reasons: protoc's own Python output refuses every
protobuf and grpcio older than the ones it was made with, changes with each of its releases, and puts everything into
the one pool of the process, where a second copy of gRPC's health service or google.rpc.Status is an error at import.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as d
from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parent / "driver/_pb"
PREFIX = "chv/"  # all our files: no other package has files of these names

# Packages that are not Nomad's and that other Python packages bring along too: they get a pool of their own.
PRIVATE = ("google.rpc", "grpc.health.v1")

F = d.FieldDescriptorProto
SCALARS = {
    F.TYPE_DOUBLE: "float",
    F.TYPE_INT32: "int",
    F.TYPE_INT64: "int",
    F.TYPE_UINT32: "int",
    F.TYPE_UINT64: "int",
    F.TYPE_BOOL: "bool",
    F.TYPE_STRING: "str",
    F.TYPE_BYTES: "bytes",
}
STUB_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    wanted = generate()
    found = {path.name: path.read_text() for path in TARGET.glob("*.py*") if path.is_file()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if arguments:
        for name in differing:
            print(f"driver/_pb/{name}: differs from what proto/ gives; run `make proto`", file=sys.stderr)
        return 1 if differing else 0
    TARGET.mkdir(exist_ok=True)
    for name in differing:
        path = TARGET / name
        if name in wanted:
            path.write_text(wanted[name])
        else:
            path.unlink()
    print(f"driver/_pb: {len(differing)} of {len(wanted)} files written")
    return 0


def generate() -> dict[str, str]:
    """File name to content of everything in driver/_pb."""
    files = {file.name: file for file in compile_sources()}
    made = {
        "__init__.py": '"""Protobuf messages and gRPC services, made by proto/generate.py. Never edited by hand."""\n',
        "_pools.py": _POOLS,
    }
    types = {name: (python, full) for file in files.values() for name, python, full in _names_of(file)}
    for file in files.values():
        if not file.name.startswith(PREFIX):
            continue
        module = _module(file.name)
        made[f"{module}.py"] = _messages(file, files)
        made[f"{module}.pyi"] = _message_stubs(file, types)
        if file.service:
            made[f"{module}_grpc.py"] = _services(file, types)
            made[f"{module}_grpc.pyi"] = _service_stubs(file, types)
    return made


def compile_sources() -> list[d.FileDescriptorProto]:
    """Every file of ours and what they import, in an order in which each comes after its imports."""
    sources = sorted(str(path.relative_to(SOURCES)) for path in (SOURCES / PREFIX).glob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile(suffix=".pb") as out:
        # Not --include_source_info: comments are no part of the result.
        arguments = [f"-I{SOURCES}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={out.name}"]
        if protoc.main(["protoc", *arguments, *sources]) != 0:
            sys.exit("protoc did not understand the files in proto/")
        files = list(d.FileDescriptorSet.FromString(Path(out.name).read_bytes()).file)
    for file in files:
        for message in file.message_type:
            _drop_json_names(message)
    return files


def _drop_json_names(message: d.DescriptorProto) -> None:
    """protoc fills them in; the runtime derives them by itself."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _drop_json_names(nested)


# ---------------------------------------------------------------------------------------------------------------------
# names


def _module(file_name: str) -> str:
    return file_name.removeprefix(PREFIX).removesuffix(".proto").replace("/", ".") + "_pb2"


def _import(file_name: str) -> str:
    """`google/protobuf/any.proto` is in `google.protobuf`, ours are in `driver._pb`."""
    if file_name.startswith(PREFIX):
        return f"from driver._pb import {_module(file_name)}"
    package, _, module = _module(file_name).rpartition(".")
    return f"from {package} import {module}"


def _is_private(file: d.FileDescriptorProto) -> bool:
    return file.package in PRIVATE


def _names_of(file: d.FileDescriptorProto) -> Iterator[tuple[str, str, str]]:
    """Full proto name, Python expression, and file of every message and enum."""
    module = _module(file.name).rpartition(".")[2]

    def walk(message: d.DescriptorProto, outer: str) -> Iterator[str]:
        name = f"{outer}{message.name}"
        yield name
        for nested in message.nested_type:
            yield from walk(nested, f"{name}.")
        yield from (f"{name}.{enum.name}" for enum in message.enum_type)

    names = [name for message in file.message_type for name in walk(message, "")]
    for name in [*names, *(enum.name for enum in file.enum_type)]:
        yield f".{file.package}.{name}", f"{module}.{name}", file.name


# ---------------------------------------------------------------------------------------------------------------------
# messages

_POOLS = '''"""Where descriptors are registered. Made by proto/generate.py; never edited by hand."""

from google.protobuf import descriptor_pool

SHARED = descriptor_pool.Default()

# For what other packages define too (gRPC's health service, google.rpc.Status): nobody else looks in here.
PRIVATE = descriptor_pool.DescriptorPool()
'''


def _messages(file: d.FileDescriptorProto, files: dict[str, d.FileDescriptorProto]) -> str:
    pool = "PRIVATE" if _is_private(file) else "SHARED"
    lines = [_header(file, "messages"), "from google.protobuf.internal import builder as _builder", ""]
    if _is_private(file):
        # A pool of its own needs its own copy of what the file imports.
        imports = [f"_pools.{pool}.AddSerializedFile({_literal(files[name])})" for name in file.dependency]
    else:
        # Imported for their registration, which the one below needs.
        lines += [f"{_import(name)}  # noqa: F401" for name in file.dependency]
        imports = []
    lines += [
        "from driver._pb import _pools",
        "",
        *imports,
        f"DESCRIPTOR = _pools.{pool}.AddSerializedFile({_literal(file)})",
        "_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())",
        f'_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.{_module(file.name)}", globals())',
    ]
    return "\n".join(lines) + "\n"


def _literal(file: d.FileDescriptorProto) -> str:
    data = file.SerializeToString(deterministic=True)
    pieces = [f"    {data[start : start + 32]!r}" for start in range(0, len(data), 32)]
    return "\n" + "\n".join(pieces) + "\n"


def _header(file: d.FileDescriptorProto, what: str) -> str:
    return f'"""The {what} of proto/{file.name}. Made by proto/generate.py; never edited by hand."""\n'


def _message_stubs(file: d.FileDescriptorProto, types: dict[str, tuple[str, str]]) -> str:
    used = sorted({types[name][1] for message in file.message_type for name in _types_used(message)})
    lines = [
        _header(file, "messages"),
        "from collections.abc import Iterable, Mapping",
        "from typing import ClassVar",
        "",
        "from google.protobuf.descriptor import Descriptor, FileDescriptor",
        "from google.protobuf.internal.containers import (",
        "    MessageMap,",
        "    RepeatedCompositeFieldContainer,",
        "    RepeatedScalarFieldContainer,",
        "    ScalarMap,",
        ")",
        "from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper",
        "from google.protobuf.message import Message",
        "",
        *map(_import, used),
        "",
        "DESCRIPTOR: FileDescriptor",
    ]
    stubs = _Stubs(file, types)
    for enum in file.enum_type:
        lines += ["", *stubs.enum(enum, _own_name(file, enum.name), class_level=False)]
    for message in file.message_type:
        lines += ["", *stubs.message(message)]
    return "\n".join(lines) + "\n"


def _own_name(file: d.FileDescriptorProto, name: str) -> str:
    return f".{file.package}.{name}"


def _types_used(message: d.DescriptorProto) -> Iterator[str]:
    yield from (field.type_name for field in message.field if field.type_name)
    for nested in message.nested_type:
        yield from _types_used(nested)


class _Stubs:
    """Writes the type stubs of one file. An enum's values are `int`: that is what they are at run time."""

    def __init__(self, file: d.FileDescriptorProto, types: dict[str, tuple[str, str]]) -> None:
        self.file = file
        self.types = types

    def enum(self, enum: d.EnumDescriptorProto, full: str, *, class_level: bool) -> list[str]:
        name = full.rpartition(".")[2]
        if class_level:
            values = [f"{value.name}: ClassVar[int]" for value in enum.value]
            return [f"{name}: ClassVar[EnumTypeWrapper]", *values]
        return [f"{name}: EnumTypeWrapper", *(f"{value.name}: int" for value in enum.value)]

    def message(self, message: d.DescriptorProto) -> list[str]:
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        body = ["DESCRIPTOR: ClassVar[Descriptor]"]
        for enum in message.enum_type:
            body += self.enum(enum, enum.name, class_level=True)
        for nested in message.nested_type:
            if nested.name not in maps:
                body += ["", *self.message(nested), ""]
        attributes, parameters = [], []
        for field in message.field:
            reads, accepts, settable = self.field(field, maps)
            attributes += [f"{field.name}: {reads}"] if settable else self.read_only(field.name, reads)
            parameters.append(f"{field.name}: {accepts} | None = ...")
        signature = f"def __init__(self, *, {', '.join(parameters)}) -> None: ..." if parameters else ""
        if len(signature) > 110:
            signature = (
                "def __init__(\n    self,\n    *,\n" + "".join(f"    {p},\n" for p in parameters) + ") -> None: ..."
            )
        body += [*attributes, *(signature or "def __init__(self) -> None: ...").split("\n")]
        return [f"class {message.name}(Message):", *(f"    {line}".rstrip() for line in body)]

    def read_only(self, name: str, type_: str) -> list[str]:
        """Messages and containers are filled, never assigned."""
        return ["@property", f"def {name}(self) -> {type_}: ..."]

    def field(self, field: d.FieldDescriptorProto, maps: dict[str, d.DescriptorProto]) -> tuple[str, str, bool]:
        """What reading gives, what the constructor takes, and whether the field can be assigned."""
        if (entry := maps.get(field.type_name.rpartition(".")[2])) and field.label == F.LABEL_REPEATED:
            key, value = (self.single(part) for part in entry.field)
            kind = "MessageMap" if entry.field[1].type == F.TYPE_MESSAGE else "ScalarMap"
            return f"{kind}[{key}, {value}]", f"Mapping[{key}, {value}]", False
        one = self.single(field)
        if field.label == F.LABEL_REPEATED:
            kind = "Composite" if field.type == F.TYPE_MESSAGE else "Scalar"
            return f"Repeated{kind}FieldContainer[{one}]", f"Iterable[{one}]", False
        return one, one, field.type != F.TYPE_MESSAGE

    def single(self, field: d.FieldDescriptorProto) -> str:
        if field.type == F.TYPE_ENUM:
            return "int"
        if field.type != F.TYPE_MESSAGE:
            return SCALARS[field.type]
        python, owner = self.types[field.type_name]
        local = python.partition(".")[2]
        # A field named like its type would hide the type inside the class.
        return local if owner == self.file.name and local != field.name else python


# ---------------------------------------------------------------------------------------------------------------------
# services


def _services(file: d.FileDescriptorProto, types: dict[str, tuple[str, str]]) -> str:
    lines = [_header(file, "services"), "import grpc", "", *_service_imports(file, types), ""]
    for service in file.service:
        full = f"{file.package}.{service.name}"
        stub, servicer, handlers = [], [], []
        for rpc in service.method:
            kind = STUB_KINDS[rpc.client_streaming, rpc.server_streaming]
            request, response = types[rpc.input_type][0], types[rpc.output_type][0]
            stub += [
                f"        self.{rpc.name} = channel.{kind}(",
                f'            "/{full}/{rpc.name}",',
                f"            request_serializer={request}.SerializeToString,",
                f"            response_deserializer={response}.FromString,",
                "        )",
            ]
            servicer += [
                "",
                f"    async def {rpc.name}(self, request, context):",
                f'        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "{rpc.name} is not implemented")',
            ]
            handlers += [
                f'        "{rpc.name}": grpc.{kind}_rpc_method_handler(',
                f"            servicer.{rpc.name},",
                f"            request_deserializer={request}.FromString,",
                f"            response_serializer={response}.SerializeToString,",
                "        ),",
            ]
        lines += [
            "",
            f"class {service.name}Stub:",
            f'    """Calls {full} over a channel."""',
            "",
            "    def __init__(self, channel):",
            *stub,
            "",
            "",
            f"class {service.name}Servicer:",
            f'    """Answers {full}; what is not overridden is UNIMPLEMENTED."""',
            *servicer,
            "",
            "",
            f"def add_{service.name}Servicer_to_server(servicer, server):",
            "    handlers = {",
            *handlers,
            "    }",
            f'    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("{full}", handlers),))',
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _service_stubs(file: d.FileDescriptorProto, types: dict[str, tuple[str, str]]) -> str:
    lines = [
        _header(file, "services"),
        "from collections.abc import AsyncIterator",
        "from typing import Any",
        "",
        *_service_imports(file, types),
        "",
    ]
    for service in file.service:
        calls, methods = [], []
        for rpc in service.method:
            request, response = types[rpc.input_type][0], types[rpc.output_type][0]
            calls.append(
                f"    {rpc.name}: Any  # {STUB_KINDS[rpc.client_streaming, rpc.server_streaming]}, of grpc or grpc.aio"
            )
            taken = f"AsyncIterator[{request}]" if rpc.client_streaming else request
            given = f"AsyncIterator[{response}]" if rpc.server_streaming else response
            start = "def" if rpc.server_streaming else "async def"
            methods.append(f"    {start} {rpc.name}(self, request: {taken}, context: Any, /) -> {given}: ...")
        lines += [
            f"class {service.name}Stub:",
            "    def __init__(self, channel: Any) -> None: ...",
            *calls,
            "",
            f"class {service.name}Servicer:",
            *methods,
            "",
            f"def add_{service.name}Servicer_to_server(servicer: {service.name}Servicer, server: Any) -> None: ...",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _service_imports(file: d.FileDescriptorProto, types: dict[str, tuple[str, str]]) -> list[str]:
    names = [name for service in file.service for rpc in service.method for name in (rpc.input_type, rpc.output_type)]
    used = {types[name][1] for name in names}
    return sorted(map(_import, used), key=lambda line: (line.startswith("from driver"), line))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
