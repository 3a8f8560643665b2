"""The messages of proto/chv/broker.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x10chv/broker.proto\x12\x06plugin"\x9b\x01\n\x08C'
    b'onnInfo\x12\x12\n\nservice_id\x18\x01 \x01(\r\x12\x0f\n\x07n'
    b'etwork\x18\x02 \x01(\t\x12\x0f\n\x07address\x18\x03 \x01(\t\x12%\n'
    b'\x05knock\x18\x04 \x01(\x0b2\x16.plugin.ConnInfo.K'
    b'nock\x1a2\n\x05Knock\x12\r\n\x05knock\x18\x01 \x01(\x08\x12\x0b\n\x03'
    b'ack\x18\x02 \x01(\x08\x12\r\n\x05error\x18\x03 \x01(\t2C\n\nGRPC'
    b'Broker\x125\n\x0bStartStream\x12\x10.plugin.C'
    b'onnInfo\x1a\x10.plugin.ConnInfo(\x010\x01B#Z'
    b'!chv.invalid/proto/broker;broker'
    b'pbb\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.broker_pb2", globals())
