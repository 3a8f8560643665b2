"""An agent waits for the plugin's start three times before its API opens: what is not needed yet stays unloaded."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from driver._pb import base_pb2, base_pb2_grpc, controller_pb2, controller_pb2_grpc, driver_pb2, driver_pb2_grpc
from driver.goplugin.handshake import parse_line
from driver.main import NOMAD

CHECKOUT = Path(__file__).resolve().parents[2]

# Needed by the tool, by a start of a machine, or by nobody here.
NOT_YET = {
    "driver.cli",
    "driver.devhost",
    "hcl2",
    "lark",
    "pycdlib",
    "pyroute2",
    "requests",
    "requests_unixsocket",
    "rich",
    "urllib3",
}

# Runs the executable's main, and writes the name of each import as it happens.
WATCHED = """
import os, sys
fd = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(lambda event, args: event == "import" and os.write(fd, f"{args[0]}\\n".encode()))
from driver.main import main
sys.argv[0] = "chv"
sys.exit(main())
"""


def plugin_environment(short_dir: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT),
        "TMPDIR": str(short_dir),
        NOMAD.cookie_name: NOMAD.cookie_value,
        "PLUGIN_PROTOCOL_VERSIONS": "2",
    }


@contextlib.contextmanager
def watched(name: str, short_dir: Path) -> Iterator[tuple[grpc.Channel, Path]]:
    """The plugin of that name, and a file with everything that it imports; it ends when it is told to."""
    imports = short_dir / "imports"
    command = [sys.executable, "-c", WATCHED.replace('"chv"', f'"{name}"'), str(imports)]
    with subprocess.Popen(
        command, env=plugin_environment(short_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as plugin:
        assert plugin.stdout is not None
        assert plugin.stderr is not None
        try:
            line = plugin.stdout.readline().decode()
            if not line:
                pytest.fail(f"the plugin did not start:\n{plugin.stderr.read().decode()}")
            with grpc.insecure_channel(f"unix:{parse_line(line).address}") as channel:
                yield channel, imports
                controller_pb2_grpc.GRPCControllerStub(channel).Shutdown(controller_pb2.Empty(), timeout=2)
            assert plugin.wait(5) == 0
        finally:
            plugin.kill()


def too_early(loaded: set[str], *more: str) -> list[str]:
    return sorted(name for name in loaded for no in (*NOT_YET, *more) if name == no or name.startswith(f"{no}."))


def test_the_driver_starts_without_what_it_does_not_need_yet(short_dir: Path) -> None:
    with watched("chv", short_dir) as (channel, imports):
        base = base_pb2_grpc.BasePluginStub(channel)
        info = base.PluginInfo(base_pb2.PluginInfoRequest(), timeout=10)
        assert base.ConfigSchema(base_pb2.ConfigSchemaRequest(), timeout=10).spec.object.attributes
        base.SetConfig(base_pb2.SetConfigRequest(msgpack_config=b"\x80"), timeout=10)
        driver_pb2_grpc.DriverStub(channel).TaskConfigSchema(driver_pb2.TaskConfigSchemaRequest(), timeout=10)
    assert info.name == "chv"
    loaded = set(imports.read_text().split())
    assert {"grpc", "driver.task_driver"} <= loaded
    assert too_early(loaded) == []


def test_the_device_plugin_starts_without_the_driver(short_dir: Path) -> None:
    with watched("chv-cores", short_dir) as (channel, imports):
        base = base_pb2_grpc.BasePluginStub(channel)
        info = base.PluginInfo(base_pb2.PluginInfoRequest(), timeout=10)
        base.SetConfig(base_pb2.SetConfigRequest(msgpack_config=b"\x80"), timeout=10)
    assert info.name == "chv-cores"
    loaded = set(imports.read_text().split())
    assert {"grpc", "driver.cores_device"} <= loaded
    unwanted = (
        "driver.task_driver",
        "driver.node",
        "driver.config_plugin",
        "driver.config_task",
        "vmlib.machine",
        "vmlib.cores",
    )
    assert too_early(loaded, *unwanted) == []


def test_without_the_cookie_it_is_a_tool(chv: Path) -> None:
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run([chv, "--version"], env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("chv ")
