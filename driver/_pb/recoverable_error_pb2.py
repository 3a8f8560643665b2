"""The messages of proto/chv/recoverable_error.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x1bchv/recoverable_error.proto\x12&h'
    b'ashicorp.nomad.plugins.shared.st'
    b'ructs"\'\n\x10RecoverableError\x12\x13\n\x0brec'
    b'overable\x18\x01 \x01(\x08B8Z6chv.invalid/pr'
    b'oto/recoverable_error;recoverabl'
    b'eerrorpbb\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.recoverable_error_pb2", globals())
