"""The messages of proto/chv/health.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from driver._pb import _pools

DESCRIPTOR = _pools.PRIVATE.AddSerializedFile(
    b'\n\x10chv/health.proto\x12\x0egrpc.health.'
    b'v1"%\n\x12HealthCheckRequest\x12\x0f\n\x07serv'
    b'ice\x18\x01 \x01(\t"\xa9\x01\n\x13HealthCheckRespons'
    b'e\x12A\n\x06status\x18\x01 \x01(\x0e21.grpc.health.'
    b'v1.HealthCheckResponse.ServingSt'
    b'atus"O\n\rServingStatus\x12\x0b\n\x07UNKNOWN'
    b'\x10\x00\x12\x0b\n\x07SERVING\x10\x01\x12\x0f\n\x0bNOT_SERVING\x10\x02'
    b'\x12\x13\n\x0fSERVICE_UNKNOWN\x10\x03"\x13\n\x11HealthL'
    b'istRequest"\xae\x01\n\x12HealthListRespons'
    b'e\x12B\n\x08statuses\x18\x01 \x03(\x0b20.grpc.healt'
    b'h.v1.HealthListResponse.Statuses'
    b'Entry\x1aT\n\rStatusesEntry\x12\x0b\n\x03key\x18\x01 '
    b'\x01(\t\x122\n\x05value\x18\x02 \x01(\x0b2#.grpc.health'
    b'.v1.HealthCheckResponse:\x028\x012\xfd\x01\n\x06'
    b'Health\x12P\n\x05Check\x12".grpc.health.v1'
    b'.HealthCheckRequest\x1a#.grpc.healt'
    b'h.v1.HealthCheckResponse\x12M\n\x04List'
    b'\x12!.grpc.health.v1.HealthListRequ'
    b'est\x1a".grpc.health.v1.HealthListR'
    b'esponse\x12R\n\x05Watch\x12".grpc.health.v'
    b'1.HealthCheckRequest\x1a#.grpc.heal'
    b'th.v1.HealthCheckResponse0\x01B#Z!c'
    b'hv.invalid/proto/health;healthpb'
    b'b\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.health_pb2", globals())
