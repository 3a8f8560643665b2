"""The block of the device plugin `chv-cores` as data, and its content as a value."""

import posixpath
from dataclasses import dataclass
from pathlib import Path

from driver._pb import hclspec_pb2 as pb
from driver.decode import Complaints, decode
from driver.keys import PLUGIN
from driver.schema import Members, spec
from vmlib.errors import HostError

CORES_DEVICE: Members = tuple(member for member in PLUGIN if member.name == "data_dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The plugin block of the device plugin."""

    data_dir: Path  # the driver's: there it publishes its cores


def device_spec() -> pb.Spec:
    """What ConfigSchema answers."""
    return spec(CORES_DEVICE)


def decode_device_config(msgpack_config: bytes, complaints: Complaints | None = None) -> DeviceConfig:
    """An empty map gives the defaults. Raises HostError with every complaint, one a line; with `complaints` given they
    go there.
    """
    alone = complaints is None
    complaints = Complaints() if complaints is None else complaints
    data_dir = decode(msgpack_config, CORES_DEVICE, complaints)["data_dir"]
    if not data_dir.startswith("/") or ".." in data_dir.split("/"):
        complaints.add("data_dir", 'expected an absolute path without ".."', value=data_dir)
    if alone:
        complaints.raise_as(HostError)
    return DeviceConfig(data_dir=Path(posixpath.normpath("/" + data_dir.lstrip("/"))))
