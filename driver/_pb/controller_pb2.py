"""The messages of proto/chv/controller.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x14chv/controller.proto\x12\x06plugin"\x07'
    b'\n\x05Empty2:\n\x0eGRPCController\x12(\n\x08Shu'
    b'tdown\x12\r.plugin.Empty\x1a\r.plugin.Em'
    b'ptyB+Z)chv.invalid/proto/control'
    b'ler;controllerpbb\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.controller_pb2", globals())
