"""A plugin process with the real serving code and almost nothing behind it, for tests of that code.

Started as a Nomad agent starts a plugin. `SMALL_PLUGIN_DOES` in its environment is a comma-separated list of things it
does before it serves; its BasePlugin's SetConfig does what the bytes of the config say.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
import warnings

from driver.goplugin import process
from driver.main import NOMAD


class NobodyCatchesThisError(Exception):
    pass


def at_start(what: str) -> None:
    match what:
        case "print":
            print("a stray line")
            sys.stdout.flush()
            os.write(1, b"a stray write\n")
            os.write(2, b"a stray write to stderr\n")
        case "child":
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            os.environ["SMALL_PLUGIN_CHILD"] = str(child.pid)
        case "raise":
            raise NobodyCatchesThisError("a start that fails")
        case _:
            raise ValueError(what)


async def on_demand(config: bytes, nomad: object) -> None:
    from vmlib.errors import NoCapacityError, SpecError

    match config.decode():
        case "":
            return
        case "warn":
            warnings.warn("a warning of Python", RuntimeWarning, stacklevel=1)
        case "lose task":
            asyncio.get_running_loop().call_exception_handler({"message": "a task was lost"})
        case "thread":
            thread = threading.Thread(target=lambda: 1 / 0, name="careless")
            thread.start()
            thread.join()
        case "flood":
            import logging

            for number in range(5000):
                logging.getLogger("flood").info("%d %s", number, "x" * 1000)
        case "pause":
            asyncio.get_running_loop().call_soon(time.sleep, 1)
        case "end blocked" | "end dawdling" | "end failing":
            threading.Thread(target=time.sleep, args=(60,)).start()
            at_end.append(config.decode())
        case "print":
            print("a stray line while serving")
            os.write(1, b"a stray write while serving\n")
        case "full":
            raise NoCapacityError("not now")
        case text:
            raise SpecError(text)


at_end: list[str] = []


async def farewell() -> None:
    match at_end:
        case ["end blocked"]:
            time.sleep(60)  # noqa: ASYNC251  the loop stands still: that is what it is for
        case ["end dawdling"]:
            await asyncio.sleep(60)
        case ["end failing"]:
            raise RuntimeError("no farewell")


def main() -> None:
    streams = process.prepare()
    for what in filter(None, os.environ.get("SMALL_PLUGIN_DOES", "").split(",")):
        at_start(what)

    from driver._pb import base_pb2_grpc, hclspec_pb2
    from driver.goplugin.serve import run
    from driver.plugin import BasePlugin

    spec = hclspec_pb2.Spec(object=hclspec_pb2.Object())
    if child := os.environ.get("SMALL_PLUGIN_CHILD"):
        spec.object.attributes["child"].Attr.name = child

    def register(server: object) -> None:
        base = BasePlugin(name="small", spec=spec, configure=on_demand)
        base_pb2_grpc.add_BasePluginServicer_to_server(base, server)

    run(streams, NOMAD, register, name="small", on_shutdown=farewell)


if __name__ == "__main__":
    main()
