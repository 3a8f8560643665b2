"""The block of the device plugin `chv-cores` as data, and its content as a value."""

import posixpath
from dataclasses import dataclass
from pathlib import Path

from driver._pb import hclspec_pb2 as pb
from driver.decode import Complaints, decode
from driver.schema import PATH_MAX_BYTES, Key, Members, literal
from vmlib.errors import HostError

_DATA_DIR = Key(name="data_dir", default="/var/lib/chv", max_bytes=PATH_MAX_BYTES)

CORES_DEVICE: Members = (_DATA_DIR,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The plugin block of the device plugin."""

    data_dir: Path  # the driver's: there it publishes its cores


def device_spec() -> pb.Spec:
    """What ConfigSchema answers."""
    attribute = pb.Spec(Attr=pb.Attr(name=_DATA_DIR.name, type=_DATA_DIR.type))
    default = pb.Spec(literal=pb.Literal(value=literal(_DATA_DIR.default)))
    value = pb.Spec(default=pb.Default(primary=attribute, default=default))
    return pb.Spec(object=pb.Object(attributes={_DATA_DIR.name: value}))


def decode_device_config(msgpack_config: bytes) -> DeviceConfig:
    """An empty map gives the defaults. Raises HostError with every complaint, one a line."""
    complaints = Complaints()
    data_dir = decode(msgpack_config, CORES_DEVICE, complaints)["data_dir"]
    if not data_dir.startswith("/") or ".." in data_dir.split("/"):
        complaints.add("data_dir", 'expected an absolute path without ".."', value=data_dir)
    complaints.raise_as(HostError)
    return DeviceConfig(data_dir=Path(posixpath.normpath("/" + data_dir.lstrip("/"))))
