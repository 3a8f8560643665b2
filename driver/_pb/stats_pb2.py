"""The messages of proto/chv/stats.proto. Made by proto/generate.py; never edited by hand."""

from google.protobuf.internal import builder as _builder

from google.protobuf import wrappers_pb2  # noqa: F401
from driver._pb import _pools

DESCRIPTOR = _pools.SHARED.AddSerializedFile(
    b'\n\x0fchv/stats.proto\x12&hashicorp.nom'
    b'ad.plugins.shared.structs\x1a\x1egoogl'
    b'e/protobuf/wrappers.proto"\xfd\x02\n\nSt'
    b'atObject\x12N\n\x06nested\x18\x01 \x03(\x0b2>.hashi'
    b'corp.nomad.plugins.shared.struct'
    b's.StatObject.NestedEntry\x12V\n\nattr'
    b'ibutes\x18\x02 \x03(\x0b2B.hashicorp.nomad.p'
    b'lugins.shared.structs.StatObject'
    b'.AttributesEntry\x1aa\n\x0bNestedEntry\x12'
    b'\x0b\n\x03key\x18\x01 \x01(\t\x12A\n\x05value\x18\x02 \x01(\x0b22.ha'
    b'shicorp.nomad.plugins.shared.str'
    b'ucts.StatObject:\x028\x01\x1ad\n\x0fAttribute'
    b'sEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12@\n\x05value\x18\x02 \x01'
    b'(\x0b21.hashicorp.nomad.plugins.sha'
    b'red.structs.StatValue:\x028\x01"\xf1\x02\n\tSt'
    b'atValue\x129\n\x13float_numerator_val\x18\x01'
    b' \x01(\x0b2\x1c.google.protobuf.DoubleVal'
    b'ue\x12;\n\x15float_denominator_val\x18\x02 \x01('
    b'\x0b2\x1c.google.protobuf.DoubleValue\x12'
    b'6\n\x11int_numerator_val\x18\x03 \x01(\x0b2\x1b.goo'
    b'gle.protobuf.Int64Value\x128\n\x13int_d'
    b'enominator_val\x18\x04 \x01(\x0b2\x1b.google.pr'
    b'otobuf.Int64Value\x120\n\nstring_val\x18'
    b'\x05 \x01(\x0b2\x1c.google.protobuf.StringVa'
    b'lue\x12,\n\x08bool_val\x18\x06 \x01(\x0b2\x1a.google.p'
    b'rotobuf.BoolValue\x12\x0c\n\x04unit\x18\x07 \x01(\t\x12'
    b'\x0c\n\x04desc\x18\x08 \x01(\tB!Z\x1fchv.invalid/pro'
    b'to/stats;statspbb\x06proto3'
)
_builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
_builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "driver._pb.stats_pb2", globals())
