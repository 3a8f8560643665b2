"""The executable `chv`: a plugin when a Nomad agent starts it, a tool for people otherwise."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from driver.goplugin.handshake import Handshake

NOMAD = Handshake(
    cookie_name="NOMAD_PLUGIN_MAGIC_COOKIE",
    cookie_value="e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
    versions=(2,),
)

DRIVER = "chv"
CORES_DEVICE = "chv-cores"


def main() -> int:
    """Returns the exit code of the tool; a plugin does not return."""
    # Nomad knows a plugin by its file's name, and a link is a name of its own.
    name = Path(sys.argv[0]).name
    if not NOMAD.greets(os.environ):
        # The plugin's start must not wait for what only the tool needs.
        from driver import cli

        return cli.main(sys.argv[1:])
    if name == CORES_DEVICE:
        return serve_cores_device()
    return serve_driver()


def serve_driver() -> NoReturn:
    """Be the task driver until the agent wants no more."""
    from driver.goplugin import process

    streams = process.prepare()

    # Only now: whatever goes wrong in these imports is a log line for the agent, and no thread of gRPC's runs before.
    from driver._pb import base_pb2_grpc, driver_pb2_grpc
    from driver.goplugin.serve import run
    from driver.keys import plugin_spec
    from driver.plugin import BasePlugin
    from driver.task_driver import build

    def register(server: object) -> None:
        driver = build()
        base = BasePlugin(name=DRIVER, spec=plugin_spec(), configure=driver.configure)
        base_pb2_grpc.add_BasePluginServicer_to_server(base, server)
        driver_pb2_grpc.add_DriverServicer_to_server(driver, server)

    run(streams, NOMAD, register, name=DRIVER)


def serve_cores_device() -> NoReturn:
    """Be the device plugin until the agent wants no more."""
    from driver.goplugin import process

    streams = process.prepare()

    # As above: only now.
    from driver._pb import base_pb2, base_pb2_grpc, device_pb2_grpc
    from driver.cores_device import CoresDevice
    from driver.device_schema import device_spec
    from driver.goplugin.serve import run
    from driver.plugin import BasePlugin

    def register(server: object) -> None:
        device = CoresDevice()
        base = BasePlugin(name=CORES_DEVICE, spec=device_spec(), configure=device.configure, kind=base_pb2.DEVICE)
        base_pb2_grpc.add_BasePluginServicer_to_server(base, server)
        device_pb2_grpc.add_DevicePluginServicer_to_server(device, server)

    run(streams, NOMAD, register, name=CORES_DEVICE)
