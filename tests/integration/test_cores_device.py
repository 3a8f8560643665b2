"""The device plugin as a process: what it shows follows the file that the driver publishes, and its streams stay."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf import duration_pb2

from driver._pb import base_pb2, base_pb2_grpc, controller_pb2, controller_pb2_grpc, device_pb2, device_pb2_grpc
from driver.goplugin.handshake import parse_line
from tests.integration.test_cold_start import plugin_environment
from vmlib import process

STAYS_S = 60.0


@dataclass(frozen=True, slots=True)
class Plugin:
    device: device_pb2_grpc.DevicePluginStub
    base: base_pb2_grpc.BasePluginStub
    data_dir: Path

    def publish(self, *units: tuple[int, int], boot_id: str = "") -> None:
        """Units as (id, NUMA node), in one replacement as the driver does it."""
        content = {
            "version": 1,
            "boot_id": boot_id or process.boot_id(),
            "smt": "core",
            "units": [
                {"id": unit, "cpus": [unit], "node": node, "l3": 0, "package": 0, "kind": "", "mhz": 2000}
                for unit, node in units
            ],
        }
        new = self.data_dir / "new"
        new.write_text(json.dumps(content))
        new.rename(self.data_dir / "cores.json")

    def fingerprint(self) -> Any:
        return self.device.Fingerprint(device_pb2.FingerprintRequest(), timeout=STAYS_S)


def ids(answer: Any) -> dict[str, list[str]]:
    return {group.device_name: [one.ID for one in group.devices] for group in answer.device_group}


@pytest.fixture
def plugin(chv: Path, short_dir: Path) -> Iterator[Plugin]:
    data = short_dir / "data"
    data.mkdir()
    link = short_dir / "chv-cores"
    link.symlink_to(chv)
    with subprocess.Popen(
        [link], env=plugin_environment(short_dir), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdout is not None
        try:
            with grpc.insecure_channel(f"unix:{parse_line(running.stdout.readline().decode()).address}") as channel:
                base = base_pb2_grpc.BasePluginStub(channel)
                packed = msgspec.msgpack.encode({"data_dir": str(data)})
                base.SetConfig(base_pb2.SetConfigRequest(msgpack_config=packed), timeout=10)
                yield Plugin(device_pb2_grpc.DevicePluginStub(channel), base, data)
                controller_pb2_grpc.GRPCControllerStub(channel).Shutdown(controller_pb2.Empty(), timeout=2)
            assert running.wait(5) == 0
        finally:
            running.kill()


def test_shows_what_is_published_from_before_the_file_to_after_it(plugin: Plugin) -> None:
    stream = plugin.fingerprint()
    assert ids(next(stream)) == {}
    plugin.publish((2, 0), (4, 0), (8, 1))
    assert ids(next(stream)) == {"numa0": ["core-2", "core-4"], "numa1": ["core-8"]}
    plugin.publish((2, 0))
    assert ids(next(stream)) == {"numa0": ["core-2"]}
    (plugin.data_dir / "cores.json").write_text("{")
    assert ids(next(stream)) == {}
    plugin.publish((4, 0))
    assert ids(next(stream)) == {"numa0": ["core-4"]}
    (plugin.data_dir / "cores.json").unlink()
    assert ids(next(stream)) == {}
    stream.cancel()


def test_what_an_earlier_boot_published_is_not_shown(plugin: Plugin) -> None:
    plugin.publish((2, 0), boot_id="another")
    stream = plugin.fingerprint()
    assert ids(next(stream)) == {}
    plugin.publish((2, 0))
    assert ids(next(stream)) == {"numa0": ["core-2"]}
    stream.cancel()


def test_a_reservation_tells_the_driver_node_and_number(plugin: Plugin) -> None:
    plugin.publish((2, 0), (4, 0), (8, 1))
    answer = plugin.device.Reserve(device_pb2.ReserveRequest(device_ids=["core-4", "core-2"]), timeout=10)
    assert dict(answer.container_res.envs) == {"CHV_CORES_NUMA0_2": "core-2,core-4"}
    with pytest.raises(grpc.RpcError, match="device core-6: not among the dedicated cores of this node"):
        plugin.device.Reserve(device_pb2.ReserveRequest(device_ids=["core-6"]), timeout=10)


def test_statistics_come_again_and_again_also_without_cores(plugin: Plugin) -> None:
    interval = duration_pb2.Duration(nanos=200_000_000)
    stream = plugin.device.Stats(device_pb2.StatsRequest(collection_interval=interval), timeout=STAYS_S)
    assert list(next(stream).groups) == []
    plugin.publish((0, 0))
    words = ""
    while "busy" not in words:
        for group in next(stream).groups:
            words = group.instance_stats["core-0"].summary.string_val.value
    assert words.startswith("free, ")
    stream.cancel()


@pytest.mark.parametrize("data_dir", ["data", "/var/../etc"])
def test_a_path_that_is_none_is_refused_by_name(plugin: Plugin, data_dir: str) -> None:
    packed = msgspec.msgpack.encode({"data_dir": data_dir})
    with pytest.raises(grpc.RpcError, match=f"data_dir.*{data_dir}.*expected an absolute path"):
        plugin.base.SetConfig(base_pb2.SetConfigRequest(msgpack_config=packed), timeout=10)
