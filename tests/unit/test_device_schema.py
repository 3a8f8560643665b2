"""The block of the device plugin: its schema, its default and its complaints."""

from pathlib import Path

import msgspec
import pytest

from driver._pb import hclspec_pb2 as pb
from driver.cores_device import holder_words
from driver.device_schema import CORES_DEVICE, decode_device_config, device_spec
from driver.keys import PLUGIN, plugin_spec
from vmlib.errors import HostError


def test_every_key_is_in_the_schema_and_looks_as_in_the_drivers_block() -> None:
    attributes = device_spec().object.attributes
    assert sorted(attributes) == sorted(member.name for member in CORES_DEVICE) == ["data_dir"]
    assert attributes["data_dir"] == plugin_spec().object.attributes["data_dir"]
    assert next(one for one in PLUGIN if one.name == "data_dir") in CORES_DEVICE
    assert device_spec().WhichOneof("block") == pb.Spec.DESCRIPTOR.fields_by_name["object"].name


def test_an_empty_block_means_the_drivers_own_default() -> None:
    assert decode_device_config(b"\x80").data_dir == Path("/var/lib/chv")


def test_the_directory_is_taken_as_the_driver_takes_it() -> None:
    block = msgspec.msgpack.encode({"data_dir": "//srv//chv/"})
    assert decode_device_config(block).data_dir == Path("/srv/chv")


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ({"data_dir": "chv"}, "data_dir = 'chv': expected an absolute path without \"..\""),
        ({"data_dir": "/srv/../etc"}, "data_dir = '/srv/../etc': expected an absolute path without \"..\""),
        ({"data_dir": ""}, "data_dir = '': expected an absolute path without \"..\""),
        ({"data_dir": 7}, "data_dir = 7: expected text"),
        ({"run_dir": "/run/chv"}, "run_dir: no such key"),
    ],
)
def test_what_is_wrong_is_said_by_name(block: dict[str, object], complaint: str) -> None:
    with pytest.raises(HostError) as refused:
        decode_device_config(msgspec.msgpack.encode(block))
    assert str(refused.value) == complaint


@pytest.mark.parametrize(
    ("name", "owner", "words"),
    [
        ("1a2b3c4d-0000-1111-2222-333344445555/web", "nomad", "web of alloc 1a2b3c4d"),
        ("1a2b3c4d-0000-1111-2222-333344445555/web", "dev", "1a2b3c4d-0000-1111-2222-333344445555/web (dev)"),
        ("box", "run", "box (run)"),
        ("box", "nomad", "box (nomad)"),
    ],
)
def test_a_holder_is_named_as_its_owner_knows_it(name: str, owner: str, words: str) -> None:
    assert holder_words(name, owner) == words
