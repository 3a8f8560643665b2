"""The messages of proto/chv/attribute.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x13chv/attribute.proto\x12&hashicorp'
    b'.nomad.plugins.shared.structs"t\n'
    b'\tAttribute\x12\x13\n\tfloat_val\x18\x01 \x01(\x01H\x00\x12'
    b'\x11\n\x07int_val\x18\x02 \x01(\x03H\x00\x12\x14\n\nstring_val'
    b'\x18\x03 \x01(\tH\x00\x12\x12\n\x08bool_val\x18\x04 \x01(\x08H\x00\x12\x0c\n\x04'
    b"unit\x18\x05 \x01(\tB\x07\n\x05valueB)Z'chv.inval"
    b'id/proto/attribute;attributepbb\x06'
    b'proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.attribute_pb2", globals())
