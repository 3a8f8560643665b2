"""The embedded host against a plugin that misbehaves as a script says: what the agent would do is what it does."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from driver._pb import driver_pb2 as pb
from driver.devhost import pluginproc
from driver.devhost.errors import PluginError, SchemaError
from driver.devhost.events import ExitResult
from driver.devhost.host import DevHost
from driver.devhost.jobfile import job_of
from driver.goplugin.handshake import Line

CHECKOUT = Path(__file__).parents[2]
PLUGIN = [sys.executable, str(CHECKOUT / "tests/fakes/scripted_plugin.py")]

JOB = """
job "j" {
  type = "batch"
  group "g" {
    restart {
      attempts = ATTEMPTS
      delay    = "0s"
      mode     = "fail"
    }
    task "t" {
      driver       = "scripted"
      kill_timeout = "7s"
      kill_signal  = "SIGHUP"
      config {
        say = "CONFIG"
      }
    }
  }
}
"""


class Stage:
    """One host on one script."""

    def __init__(self, directory: Path, script: dict[str, Any], *, attempts: int = 0, config: str = "hello") -> None:
        self.directory = directory
        (directory / "script.json").write_text(json.dumps(script))
        job = job_of(JOB.replace("ATTEMPTS", str(attempts)).replace("CONFIG", config), directory / "j.nomad.hcl")
        self.host = DevHost(
            job,
            plugin_argv=PLUGIN,
            alloc_parent=directory,
            env={"CHV_SCRIPT": str(directory), "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(directory)},
        )

    def calls(self, *rpcs: str) -> list[str]:
        """`PROCESS RPC` of each call, of these RPCs only."""
        lines = [line.split() for line in (self.directory / "calls").read_text().splitlines()]
        return [f"{number} {rpc}" for number, rpc, _ in lines if not rpcs or rpc in rpcs]

    def ids(self, rpc: str) -> list[str]:
        lines = [line.split() for line in (self.directory / "calls").read_text().splitlines()]
        return [task_id for _, name, task_id in lines if name == rpc]

    def shown(self) -> list[str]:
        """Events but those of the driver."""
        return [f"{event.type}: {event.message}" for event in self.host.events if event.type != "Driver"]

    def play(self, act: Callable[[DevHost], Awaitable[Any]] | None = None) -> Any:
        async def whole() -> Any:
            async with asyncio.timeout(60), self.host as host:
                return await (act(host) if act else host.run())

        return asyncio.run(whole())


BEGINNING = ["Received: Task received by client", "Task Setup: Building Task Directory"]
STARTED = "Started: Task started by client"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  it looks at a file that another process writes
            await asyncio.sleep(0.02)


def test_three_launches_in_the_agents_order(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"exit": 0}]})
    assert stage.play() == ExitResult()
    assert stage.calls("launch", "PluginInfo", "ConfigSchema", "SetConfig", "Init", "StartTask", "Shutdown") == [
        "1 launch",
        "1 PluginInfo",
        "1 ConfigSchema",
        "2 launch",
        "2 SetConfig",
        "2 SetConfig",
        "3 launch",
        "3 SetConfig",
        "3 Init",
        "3 StartTask",
        "3 Shutdown",
    ]
    assert stage.ids("SetConfig") == ["alone", "alone", "with-topology"]
    assert stage.shown() == [*BEGINNING, STARTED, "Terminated: Exit Code: 0"]


def test_start_task_carries_what_nomad_sends(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"exit": 0}]}, config="${NOMAD_TASK_NAME} in ${attr.driver.scripted}")
    stage.play()
    sent = pb.TaskConfig.FromString((short_dir / "task.bin").read_bytes())
    alloc_id, task, start = sent.id.split("/")
    assert (alloc_id, task, len(start)) == (sent.alloc_id, "t", 8)
    assert sent.msgpack_driver_config == b"\x82\xa3say\xa9t in true\xa4size\xc0"
    assert sent.alloc_dir == str(short_dir / alloc_id)
    assert sent.stdout_path == f"{sent.alloc_dir}/alloc/logs/.t.stdout.fifo"
    assert (sent.job_id, sent.job_name, sent.task_group_name, sent.namespace) == ("j", "j", "g", "default")
    assert sent.env["NOMAD_ALLOC_DIR"] == "/alloc"
    assert not [name for name in sent.env if not name.startswith("NOMAD_")]
    assert sent.resources.linux_resources.memory_limit_bytes == 300 * 1024 * 1024


def test_console_is_read_to_its_end(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"exit": 0}]})
    stage.host.keep = True
    stage.play()
    assert stage.host.console() == f"started {stage.ids('StartTask')[0]}\n"


def test_the_alloc_is_gone_afterwards(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"exit": 0}]})
    stage.play()
    assert sorted(path.name for path in short_dir.iterdir()) == ["calls", "script.json", "task.bin"]


def test_a_wait_that_fails_is_a_failed_task_and_is_restarted(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"status": "INTERNAL", "text": "odd"}, {"exit": 0}]}, attempts=1)
    assert stage.play() == ExitResult()
    assert stage.shown() == [
        *BEGINNING,
        STARTED,
        'Terminated: Exit Code: 0, Exit Message: "rpc error: code = Internal desc = odd"',
        "Restarting: Task restarting in 0s",
        STARTED,
        "Terminated: Exit Code: 0",
    ]
    first, second = stage.ids("StartTask")
    assert first != second
    assert stage.ids("DestroyTask") == [first, second]


def test_exit_code_signal_and_message_are_shown(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": [{"exit": 0, "signal": 11, "err": "the VMM ended"}]})
    result = stage.play()
    assert result == ExitResult(signal=11, message="the VMM ended")
    assert stage.shown()[3:] == [
        'Terminated: Exit Code: 0, Signal: 11, Exit Message: "the VMM ended"',
        "Not Restarting: Policy allows no restarts",
    ]


def test_a_plugin_that_dies_in_start_task_gets_the_same_id_again(short_dir: Path) -> None:
    stage = Stage(short_dir, {"StartTask": ["die"], "WaitTask": [{"exit": 0}]})
    assert stage.play() == ExitResult()
    assert stage.calls("StartTask") == ["3 StartTask", "4 StartTask"]
    first, second = stage.ids("StartTask")
    assert first == second
    assert stage.shown() == [*BEGINNING, STARTED, "Terminated: Exit Code: 0"]


def test_a_plugin_that_dies_is_relaunched_and_recovers_the_task(short_dir: Path) -> None:
    stage = Stage(short_dir, {"WaitTask": ["die", {"exit": 4}]})
    assert stage.play().exit_code == 4
    after = [call for call in stage.calls() if call.startswith("4 ")]
    assert after[:3] == ["4 launch", "4 SetConfig", "4 Init"]
    assert sorted(after[3:7]) == ["4 Capabilities", "4 Fingerprint", "4 TaskConfigSchema", "4 TaskEvents"]
    assert after[7:10] == ["4 RecoverTask", "4 recovered-with-config", "4 WaitTask"]


def test_a_refused_recovery_destroys_twice_and_starts_anew(short_dir: Path) -> None:
    script = {"WaitTask": ["die", {"exit": 0}], "RecoverTask": [{"status": "INTERNAL", "text": "cannot"}]}
    stage = Stage(short_dir, script, attempts=1)
    assert stage.play() == ExitResult()
    first, second = stage.ids("StartTask")
    assert first != second
    assert stage.ids("DestroyTask") == [first, first, second]
    assert stage.shown() == [
        *BEGINNING,
        STARTED,
        "Restarting: Task restarting in 0s",
        STARTED,
        "Terminated: Exit Code: 0",
    ]


def test_a_recoverable_start_error_is_tried_again_with_a_new_id(short_dir: Path) -> None:
    refusal = {"status": "FAILED_PRECONDITION", "text": "not now", "recoverable": True}
    stage = Stage(short_dir, {"StartTask": [refusal], "WaitTask": [{"exit": 0}]}, attempts=1)
    assert stage.play() == ExitResult()
    first, second = stage.ids("StartTask")
    assert first != second
    assert stage.shown()[2:4] == [
        "Driver Failure: rpc error: code = FailedPrecondition desc = not now",
        "Restarting: Task restarting in 0s",
    ]


@pytest.mark.parametrize("detail", [{}, {"recoverable": False}])
def test_any_other_start_error_is_final(short_dir: Path, detail: dict[str, bool]) -> None:
    stage = Stage(short_dir, {"StartTask": [{"status": "FAILED_PRECONDITION", "text": "never", **detail}]}, attempts=3)
    with pytest.raises(PluginError, match="rpc error: code = FailedPrecondition desc = never"):
        stage.play()
    assert stage.shown()[2:] == [
        "Driver Failure: rpc error: code = FailedPrecondition desc = never",
        "Not Restarting: Error was unrecoverable",
    ]
    assert len(stage.ids("StartTask")) == 1


def test_a_config_that_does_not_fit_never_reaches_the_driver(short_dir: Path) -> None:
    stage = Stage(short_dir, {}, attempts=3, config="${HOME}")
    with pytest.raises(SchemaError):
        stage.play()
    assert stage.shown()[2:] == [
        'Failed Validation: 1 error occurred:\n\t* Unknown variable: There is no variable named "HOME".',
        "Not Restarting: Error was unrecoverable",
    ]
    assert stage.ids("StartTask") == []


def test_kill_waits_once_more_and_stops(short_dir: Path) -> None:
    stage = Stage(short_dir, {})

    async def act(host: DevHost) -> ExitResult:
        running = asyncio.create_task(host.run())
        await until(lambda: any(event.type == "Started" for event in host.events))
        host.kill()
        return await running

    assert stage.play(act) == ExitResult()
    assert stage.calls("WaitTask", "StopTask", "stop-in-7s-SIGHUP", "DestroyTask") == [
        "3 WaitTask",
        "3 WaitTask",
        "3 StopTask",
        "3 stop-in-7s-SIGHUP",
        "3 DestroyTask",
    ]
    assert stage.shown() == [
        *BEGINNING,
        STARTED,
        "Killing: Sent interrupt. Waiting 7s before force killing",
        "Terminated: Exit Code: 0",
        "Killed: Task successfully killed",
    ]


@pytest.mark.parametrize("crash", [True, False])
def test_an_agent_that_comes_back_recovers_without_the_config(short_dir: Path, crash: bool) -> None:
    stage = Stage(short_dir, {"WaitTask": ["hang", {"exit": 5}]})

    async def act(host: DevHost) -> ExitResult:
        running = asyncio.create_task(host.run())
        await until(lambda: any(event.type == "Started" for event in host.events))
        await until(lambda: len(stage.ids("WaitTask")) == 1)
        await host.agent_down(crash=crash)
        await host.agent_up()
        return await running

    assert stage.play(act).exit_code == 5
    assert stage.calls("RecoverTask", "recovered-without", "recovered-with-config") == [
        "6 RecoverTask",
        "6 recovered-without",
    ]


def test_a_plugin_that_does_not_start_says_why(short_dir: Path) -> None:
    stage = Stage(short_dir, {})
    stage.host.supervisor.argv = [sys.executable, "-c", "import sys; sys.exit('no luck today')"]
    with pytest.raises(PluginError, match="ended without a handshake line: no luck today"):
        stage.play()


def test_a_host_that_ends_in_the_middle_of_a_start_destroys_what_comes_of_it(short_dir: Path) -> None:
    stage = Stage(short_dir, {"StartTask": [{"after": 1.0}]})

    async def act(host: DevHost) -> None:
        running = asyncio.create_task(host.run())
        await until(lambda: len(stage.ids("StartTask")) == 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    stage.play(act)
    assert stage.ids("DestroyTask") == stage.ids("StartTask")


def test_a_host_that_ends_leaves_no_task_behind(short_dir: Path) -> None:
    stage = Stage(short_dir, {})
    stage.play(lambda host: host.start())
    assert stage.ids("DestroyTask") == stage.ids("StartTask")


def test_a_plugin_that_dies_while_it_stops_the_task_is_asked_again(short_dir: Path) -> None:
    stage = Stage(short_dir, {"StopTask": ["die"]})

    async def act(host: DevHost) -> ExitResult:
        running = asyncio.create_task(host.run())
        await until(lambda: len(stage.ids("WaitTask")) == 1)
        host.kill()
        return await running

    assert stage.play(act) == ExitResult()
    assert stage.calls("StopTask", "RecoverTask", "DestroyTask") == [
        "3 StopTask",
        "4 RecoverTask",
        "4 StopTask",
        "4 DestroyTask",
    ]


async def test_a_stop_at_the_moment_of_the_handshake_is_not_lost(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives when the line has been read and nobody has gone on yet: the host must not start the job after all."""
    handshake = pluginproc._handshake

    async def then_stopped(process: asyncio.subprocess.Process) -> Line:
        line = await handshake(process)
        asyncio.get_running_loop().call_soon(life.cancel)
        return line

    async def whole_life() -> ExitResult:
        async with Stage(short_dir, {}).host as host:
            return await host.run()

    monkeypatch.setattr(pluginproc, "_handshake", then_stopped)
    life = asyncio.create_task(whole_life())
    with pytest.raises(asyncio.CancelledError):
        await life
