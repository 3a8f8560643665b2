"""A driver plugin that does what a script says, for the odd things that plugins do and ours should not.

`CHV_SCRIPT` names a directory. `script.json` in it has, by RPC, the answers to the first, second, … call, counted over
all processes: {"status": "INTERNAL", "text": "…", "recoverable": true}, {"exit": 3, "signal": 0, "err": "…"}, "die",
"hang", {"after": SECONDS, …}; a call beyond the list gets the usual answer. `calls` in it records every call, a line
each: the process's number, the RPC and the task's id.
"""

# ruff: noqa: ARG002, N802  names and signatures of methods are gRPC's

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from driver._pb import (
    attribute_pb2,
    base_pb2,
    base_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    driver_pb2_grpc,
    hclspec_pb2,
    recoverable_error_pb2,
    status_pb2,
)
from driver._pb import driver_pb2 as pb

DIRECTORY = Path(os.environ["CHV_SCRIPT"])
SCRIPT: dict[str, list[Any]] = json.loads((DIRECTORY / "script.json").read_text())


def spec(**members: str) -> hclspec_pb2.Spec:
    attributes = {
        name: hclspec_pb2.Spec(Attr=hclspec_pb2.Attr(name=name, type=type_)) for name, type_ in members.items()
    }
    return hclspec_pb2.Spec(object=hclspec_pb2.Object(attributes=attributes))


class Player:
    """Counts calls and plays the script."""

    def __init__(self) -> None:
        self.number = sum(1 for line in self.lines() if line.split()[1] == "launch") + 1
        self.record("launch")

    def lines(self) -> list[str]:
        path = DIRECTORY / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def record(self, rpc: str, task_id: str = "-") -> int:
        """Returns how often this RPC was called before."""
        before = sum(1 for line in self.lines() if line.split()[1] == rpc)
        with (DIRECTORY / "calls").open("a") as calls:
            calls.write(f"{self.number} {rpc} {task_id or '-'}\n")
        return before

    async def play(self, rpc: str, context: Any, task_id: str = "-") -> Any:
        before = self.record(rpc, task_id)
        actions = SCRIPT.get(rpc, [])
        action = actions[before] if before < len(actions) else None
        if isinstance(action, dict) and "after" in action:
            await asyncio.sleep(action["after"])
        if action == "die" or (isinstance(action, dict) and action.get("die")):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            await asyncio.Event().wait()
        if isinstance(action, dict) and "status" in action:
            details: tuple[tuple[str, bytes], ...] = ()
            if "recoverable" in action:
                status = status_pb2.Status(code=9, message=action.get("text", ""))
                status.details.add().Pack(recoverable_error_pb2.RecoverableError(recoverable=action["recoverable"]))
                details = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode[action["status"]], action.get("text", ""), details)
        return action


class Base(base_pb2_grpc.BasePluginServicer):
    def __init__(self, player: Player) -> None:
        self.player = player

    async def PluginInfo(self, request: base_pb2.PluginInfoRequest, context: Any) -> base_pb2.PluginInfoResponse:
        await self.player.play("PluginInfo", context)
        return base_pb2.PluginInfoResponse(
            type=base_pb2.DRIVER, plugin_api_versions=["v0.1.0"], plugin_version="0.1.0", name="scripted"
        )

    async def ConfigSchema(self, request: base_pb2.ConfigSchemaRequest, context: Any) -> base_pb2.ConfigSchemaResponse:
        await self.player.play("ConfigSchema", context)
        return base_pb2.ConfigSchemaResponse(spec=spec(data_dir="string"))

    async def SetConfig(self, request: base_pb2.SetConfigRequest, context: Any) -> base_pb2.SetConfigResponse:
        told = "with-topology" if request.nomad_config.driver.Topology.cores else "alone"
        await self.player.play("SetConfig", context, told)
        return base_pb2.SetConfigResponse()


def write_console(task: pb.TaskConfig) -> None:
    """The task's whole output; the reader is there already."""
    Path(task.stdout_path).write_text(f"started {task.id}\n")


class Driver(driver_pb2_grpc.DriverServicer):
    def __init__(self, player: Player) -> None:
        self.player = player
        self.ended: dict[str, asyncio.Event] = {}

    async def Init(self, request: pb.InitRequest, context: Any) -> pb.InitResponse:
        await self.player.play("Init", context)
        return pb.InitResponse()

    async def Shutdown(self, request: pb.ShutdownRequest, context: Any) -> pb.ShutdownResponse:
        await self.player.play("Shutdown", context)
        return pb.ShutdownResponse()

    async def TaskConfigSchema(self, request: pb.TaskConfigSchemaRequest, context: Any) -> pb.TaskConfigSchemaResponse:
        await self.player.play("TaskConfigSchema", context)
        return pb.TaskConfigSchemaResponse(spec=spec(say="string", size="number"))

    async def Capabilities(self, request: pb.CapabilitiesRequest, context: Any) -> pb.CapabilitiesResponse:
        await self.player.play("Capabilities", context)
        return pb.CapabilitiesResponse(capabilities=pb.DriverCapabilities(fs_isolation=pb.DriverCapabilities.IMAGE))

    async def Fingerprint(self, request: pb.FingerprintRequest, context: Any) -> Any:
        await self.player.play("Fingerprint", context)
        attributes = {"driver.scripted": attribute_pb2.Attribute(bool_val=True)}
        yield pb.FingerprintResponse(attributes=attributes, health=pb.FingerprintResponse.HEALTHY)
        await asyncio.Event().wait()

    async def TaskEvents(self, request: pb.TaskEventsRequest, context: Any) -> Any:
        await self.player.play("TaskEvents", context)
        yield pb.DriverTaskEvent(message=f"process {self.player.number}")
        await asyncio.Event().wait()

    async def StartTask(self, request: pb.StartTaskRequest, context: Any) -> pb.StartTaskResponse:
        task = request.task
        await self.player.play("StartTask", context, task.id)
        self.ended[task.id] = asyncio.Event()
        (DIRECTORY / "task.bin").write_bytes(task.SerializeToString())
        write_console(task)
        return pb.StartTaskResponse(handle=pb.TaskHandle(version=1, config=task, state=pb.RUNNING, driver_state=b"s"))

    async def RecoverTask(self, request: pb.RecoverTaskRequest, context: Any) -> pb.RecoverTaskResponse:
        config = request.handle.config
        await self.player.play("RecoverTask", context, config.id)
        self.player.record("recovered-with-config" if config.msgpack_driver_config else "recovered-without", config.id)
        self.ended.setdefault(config.id, asyncio.Event())
        return pb.RecoverTaskResponse()

    async def WaitTask(self, request: pb.WaitTaskRequest, context: Any) -> pb.WaitTaskResponse:
        action = await self.player.play("WaitTask", context, request.task_id)
        if not isinstance(action, dict) or "exit" not in action:
            await self.ended[request.task_id].wait()
            return pb.WaitTaskResponse(result=pb.ExitResult())
        result = pb.ExitResult(exit_code=action["exit"], signal=action.get("signal", 0))
        return pb.WaitTaskResponse(result=result, err=action.get("err", ""))

    async def StopTask(self, request: pb.StopTaskRequest, context: Any) -> pb.StopTaskResponse:
        await self.player.play("StopTask", context, request.task_id)
        self.player.record(f"stop-in-{request.timeout.seconds}s-{request.signal}", request.task_id)
        self.ended[request.task_id].set()
        return pb.StopTaskResponse()

    async def DestroyTask(self, request: pb.DestroyTaskRequest, context: Any) -> pb.DestroyTaskResponse:
        await self.player.play("DestroyTask", context, request.task_id)
        return pb.DestroyTaskResponse()

    async def SignalTask(self, request: pb.SignalTaskRequest, context: Any) -> pb.SignalTaskResponse:
        await self.player.play("SignalTask", context, request.task_id)
        self.ended[request.task_id].set()
        return pb.SignalTaskResponse()


class Controller(controller_pb2_grpc.GRPCControllerServicer):
    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop

    async def Shutdown(self, request: controller_pb2.Empty, context: Any) -> controller_pb2.Empty:
        self.stop.set()
        return controller_pb2.Empty()


async def serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    player = Player()
    stop = asyncio.Event()
    server = grpc.aio.server()
    base_pb2_grpc.add_BasePluginServicer_to_server(Base(player), server)
    driver_pb2_grpc.add_DriverServicer_to_server(Driver(player), server)
    controller_pb2_grpc.add_GRPCControllerServicer_to_server(Controller(stop), server)
    with tempfile.TemporaryDirectory(prefix="scripted-") as directory:
        path = Path(directory) / "p.sock"
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        print('{"@level":"info","@message":"serving","@module":"scripted"}', file=sys.stderr, flush=True)
        print(f"1|2|unix|{path}|grpc", flush=True)
        await stop.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop(0.1)


if __name__ == "__main__":
    asyncio.run(serve())
