"""The messages of proto/chv/stdio.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from google.protobuf import empty_pb2  # noqa: F401
from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x0fchv/stdio.proto\x12\x06plugin\x1a\x1bgoogl'
    b'e/protobuf/empty.proto"u\n\tStdioD'
    b'ata\x12*\n\x07channel\x18\x01 \x01(\x0e2\x19.plugin.St'
    b'dioData.Channel\x12\x0c\n\x04data\x18\x02 \x01(\x0c".\n'
    b'\x07Channel\x12\x0b\n\x07INVALID\x10\x00\x12\n\n\x06STDOUT\x10'
    b'\x01\x12\n\n\x06STDERR\x10\x022G\n\tGRPCStdio\x12:\n\x0bSt'
    b'reamStdio\x12\x16.google.protobuf.Empt'
    b'y\x1a\x11.plugin.StdioData0\x01B!Z\x1fchv.in'
    b'valid/proto/stdio;stdiopbb\x06proto'
    b'3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.stdio_pb2", globals())
