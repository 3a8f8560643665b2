"""The messages of proto/chv/status.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

_pools.PRIVATE.AddSerializedFile(
    b'\n\x19google/protobuf/any.proto\x12\x0fgoo'
    b'gle.protobuf"&\n\x03Any\x12\x10\n\x08type_url\x18'
    b'\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\x0cBv\n\x13com.goog'
    b'le.protobufB\x08AnyProtoP\x01Z,google.'
    b'golang.org/protobuf/types/known/'
    b'anypb\xa2\x02\x03GPB\xaa\x02\x1eGoogle.Protobuf.We'
    b'llKnownTypesb\x06proto3'
)
DESCRIPTOR = _pools.PRIVATE.AddSerializedFile(
    b'\n\x10chv/status.proto\x12\ngoogle.rpc\x1a\x19'
    b'google/protobuf/any.proto"N\n\x06Sta'
    b'tus\x12\x0c\n\x04code\x18\x01 \x01(\x05\x12\x0f\n\x07message\x18\x02 \x01'
    b'(\t\x12%\n\x07details\x18\x03 \x03(\x0b2\x14.google.pro'
    b'tobuf.AnyB#Z!chv.invalid/proto/s'
    b'tatus;statuspbb\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.status_pb2", globals())
