"""A real plugin process, started as an agent starts one: the real serving code with almost nothing behind it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import pytest
from google.protobuf import empty_pb2

from driver._pb import (
    base_pb2,
    base_pb2_grpc,
    broker_pb2,
    broker_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    status_pb2,
    stdio_pb2_grpc,
)
from driver.goplugin.handshake import Line, parse_line
from driver.main import NOMAD
from vmlib.process import identify, send_signal, wait_gone

CHECKOUT = Path(__file__).resolve().parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING


def environment(sockets: Path) -> dict[str, str]:
    """What a plugin gets from its host."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT),
        "TMPDIR": str(sockets),
        NOMAD.cookie_name: NOMAD.cookie_value,
        "PLUGIN_PROTOCOL_VERSIONS": "2",
    }


class Plugin:
    """The host's side of one plugin process: both of its pipes are read to their end."""

    def __init__(
        self,
        sockets: Path,
        *,
        does: str = "",
        environ: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        read_stderr: bool = True,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.small_plugin"],
            env=environment(sockets) | {"SMALL_PLUGIN_DOES": does} | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = [_reader(self.process.stdout, self.stdout)]
        if read_stderr:
            self._readers.append(_reader(self.process.stderr, self.stderr))
        self.channel: grpc.Channel | None = None

    @property
    def line(self) -> Line:
        wait_for(lambda: self.stdout or self.process.poll() is not None, "the handshake line", timeout_s=30)
        return parse_line(self.stdout[0])

    def connect(self) -> grpc.Channel:
        if self.channel is None:
            self.channel = grpc.insecure_channel(f"unix:{self.line.address}")
        return self.channel

    def set_config(self, text: str) -> None:
        request = base_pb2.SetConfigRequest(msgpack_config=text.encode())
        base_pb2_grpc.BasePluginStub(self.connect()).SetConfig(request, timeout=20)

    def serves(self) -> bool:
        request = health_pb2.HealthCheckRequest(service="plugin")
        answer = health_pb2_grpc.HealthStub(self.connect()).Check(request, timeout=20)
        return bool(answer.status == SERVING)

    def shut_down(self) -> float:
        """Ask it to end as a host does; returns how long that took."""
        begin = time.monotonic()
        controller_pb2_grpc.GRPCControllerStub(self.connect()).Shutdown(controller_pb2.Empty(), timeout=2)
        self.process.wait(10)
        return time.monotonic() - begin

    def log(self) -> list[dict[str, Any]]:
        """All log lines until the end of the pipe. Raises when one of them is not JSON."""
        for reader in self._readers:
            reader.join(5)
            assert not reader.is_alive(), "somebody still holds the plugin's stdout or stderr"
        return [json.loads(line) for line in self.stderr]

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def _reader(stream: IO[bytes], lines: list[str]) -> threading.Thread:
    def read() -> None:
        for line in iter(stream.readline, b""):
            lines.append(line.decode())  # noqa: PERF401  the test looks at them meanwhile

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def wait_for(done: Callable[[], object], what: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.01)


@pytest.fixture
def start(short_dir: Path) -> Iterator[Callable[..., Plugin]]:
    """Starts plugins whose sockets are beneath `short_dir`, and ends what is left of them."""
    plugins: list[Plugin] = []

    def start(**how: Any) -> Plugin:
        plugins.append(Plugin(short_dir, **how))
        return plugins[-1]

    yield start
    for plugin in plugins:
        plugin.close()


Start = Callable[..., Plugin]


def test_says_one_line_and_serves(start: Start, short_dir: Path) -> None:
    plugin = start()
    line = plugin.line
    assert (line.core, line.version, line.network, line.protocol) == (1, 2, "unix", "grpc")
    directory = Path(line.address).parent
    assert directory.parent == short_dir
    assert directory.stat().st_mode & 0o777 == 0o700
    assert plugin.serves()
    info = base_pb2_grpc.BasePluginStub(plugin.connect()).PluginInfo(base_pb2.PluginInfoRequest(), timeout=5)
    assert (info.name, info.type, list(info.plugin_api_versions)) == ("small", base_pb2.DRIVER, ["v0.1.0"])

    assert plugin.shut_down() < 2
    assert plugin.process.returncode == 0
    messages = [line["@message"] for line in plugin.log()]
    assert messages[0].startswith("plugin serves pid=")
    assert len(plugin.stdout) == 1
    assert list(short_dir.iterdir()) == []


def test_health_knows_its_services(start: Start) -> None:
    plugin = start()
    stub = health_pb2_grpc.HealthStub(plugin.connect())
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == SERVING
    assert stub.List(health_pb2.HealthListRequest(), timeout=5).statuses["plugin"].status == SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="plugin"))
    assert next(watch).status == SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_shutdown_is_quick_with_streams_open(start: Start) -> None:
    plugin = start()
    stdio = stdio_pb2_grpc.GRPCStdioStub(plugin.connect()).StreamStdio(empty_pb2.Empty())
    watch = health_pb2_grpc.HealthStub(plugin.connect()).Watch(health_pb2.HealthCheckRequest(service="plugin"))
    assert next(watch).status == SERVING
    assert plugin.shut_down() < 2
    assert plugin.process.returncode == 0
    stdio.cancel()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("end blocked", None),
        ("end dawdling", "plugin ends in the middle of its farewell"),
        ("end failing", "plugin ends without its farewell"),
    ],
)
def test_shutdown_is_quick_whatever_hangs(start: Start, short_dir: Path, config: str, words: str | None) -> None:
    plugin = start()
    plugin.set_config(config)
    assert plugin.shut_down() < 2
    assert plugin.process.returncode == 0
    assert list(short_dir.iterdir()) == []
    messages = " ".join(line["@message"] for line in plugin.log())
    assert words is None or words in messages


def test_stdio_stream_stays_open_until_it_is_cancelled(start: Start) -> None:
    plugin = start()
    stream = stdio_pb2_grpc.GRPCStdioStub(plugin.connect()).StreamStdio(empty_pb2.Empty())
    ended = threading.Event()
    stream.add_callback(ended.set)
    assert not ended.wait(1)
    stream.cancel()
    assert ended.wait(5)


def test_broker_stream_takes_what_it_is_told_and_says_nothing(start: Start) -> None:
    plugin = start()
    offers = [broker_pb2.ConnInfo(service_id=1, network="unix", address="/x")]
    assert list(broker_pb2_grpc.GRPCBrokerStub(plugin.connect()).StartStream(iter(offers), timeout=5)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_of_the_terminal_do_not_end_it(start: Start, number: signal.Signals) -> None:
    plugin = start()
    assert plugin.serves()
    for _ in range(3):
        os.killpg(plugin.process.pid, number)
    time.sleep(0.2)
    assert plugin.serves()
    assert plugin.shut_down() < 2


def test_interrupt_during_its_start_does_not_end_it(start: Start) -> None:
    plugin = start(does="print")
    wait_for(lambda: plugin.process.poll() is not None or _catches(plugin.process.pid, signal.SIGINT), "handler")
    plugin.process.send_signal(signal.SIGINT)
    assert plugin.serves()


def _catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    # Python itself catches SIGINT from early on; ours are there when SIGHUP is caught too.
    mask = int(caught.split()[1], 16)
    return all(mask >> (one - 1) & 1 for one in (number, signal.SIGHUP))


def test_terminate_ends_it_gracefully(start: Start, short_dir: Path) -> None:
    plugin = start()
    assert plugin.serves()
    begin = time.monotonic()
    plugin.process.terminate()
    assert plugin.process.wait(10) == 0
    assert time.monotonic() - begin < 2
    assert plugin.log()[-1]["@message"].startswith("plugin ends pid=")
    assert list(short_dir.iterdir()) == []


def test_the_next_one_removes_what_a_killed_one_left(start: Start, short_dir: Path) -> None:
    first, alive = start(), start()
    left = Path(first.line.address).parent
    assert alive.serves()
    first.process.kill()
    first.process.wait()
    assert left.exists()
    assert start().serves()
    assert not left.exists()
    assert alive.serves()


def test_lives_on_when_nobody_reads_its_log(start: Start) -> None:
    plugin = start(read_stderr=False)
    assert plugin.serves()
    plugin.set_config("flood")  # the pipe is full now, and there is a backlog
    assert plugin.serves()
    assert plugin.process.stderr is not None
    plugin.process.stderr.close()  # as after the agent's death
    plugin.set_config("flood")
    assert plugin.serves()
    assert plugin.shut_down() < 2
    assert plugin.process.returncode == 0


HOST = """
import subprocess, sys, time
pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
plugin = subprocess.Popen([sys.executable, "-m", "tests.fakes.small_plugin"], **pipes)
print(plugin.pid, plugin.stdout.readline().decode(), end="", flush=True)
time.sleep(60)
"""


def test_lives_on_when_its_host_is_killed(short_dir: Path) -> None:
    """All three pipes are gone then and no client is there. Another host finds it by its socket."""
    command = [sys.executable, "-c", HOST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(short_dir), start_new_session=True) as host:
        assert host.stdout is not None
        pid, _, line = host.stdout.readline().decode().partition(" ")
        plugin = identify(int(pid))
        assert plugin is not None
        host.kill()
    try:
        time.sleep(0.5)
        with grpc.insecure_channel(f"unix:{parse_line(line).address}") as channel:
            request = health_pb2.HealthCheckRequest(service="plugin")
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status == SERVING
            controller_pb2_grpc.GRPCControllerStub(channel).Shutdown(controller_pb2.Empty(), timeout=2)
        assert wait_gone(plugin, 2)
    finally:
        send_signal(plugin, signal.SIGKILL)


def test_what_is_printed_goes_nowhere(start: Start) -> None:
    plugin = start(does="print")
    plugin.set_config("print")
    assert plugin.serves()
    assert plugin.shut_down() < 2
    assert all("stray" not in line["@message"] for line in plugin.log())
    assert len(plugin.stdout) == 1


def test_no_child_holds_its_pipes(start: Start) -> None:
    """The child of this test was even started with close_fds=False, as careless code of a library might."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    plugin = start(does="child", pass_fds=(theirs.fileno(),))
    theirs.close()
    schema = base_pb2_grpc.BasePluginStub(plugin.connect()).ConfigSchema(base_pb2.ConfigSchemaRequest(), timeout=5)
    child = int(schema.spec.object.attributes["child"].Attr.name)
    try:
        held = {fd: os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")}
        assert held == {"0": "/dev/null", "1": "/dev/null", "2": "/dev/null"}
        plugin.process.kill()
        plugin.process.wait()
        plugin.log()  # both pipes are at their end although the child lives
        assert Path(f"/proc/{child}").exists()
        ours.settimeout(5)
        assert ours.recv(1) == b""  # and so is what the plugin itself had inherited
    finally:
        os.kill(child, signal.SIGKILL)
        ours.close()


@pytest.mark.parametrize(
    ("config", "level", "message", "traceback"),
    [
        ("warn", "warn", "RuntimeWarning: a warning of Python", ""),
        ("lose task", "error", "a task was lost", ""),
        ("thread", "error", "ZeroDivisionError: division by zero", "ZeroDivisionError: division by zero"),
    ],
)
def test_python_speaks_in_log_lines(start: Start, config: str, level: str, message: str, traceback: str) -> None:
    plugin = start()
    plugin.set_config(config)
    assert plugin.shut_down() < 2
    [line] = [line for line in plugin.log() if message in line["@message"]]
    assert line["@level"] == level
    assert line.get("traceback", "").endswith(traceback)


def test_a_start_that_fails_says_why_in_a_log_line(start: Start) -> None:
    plugin = start(does="raise")
    assert plugin.process.wait(20) == 1
    [line] = plugin.log()
    assert (line["@level"], line["@message"]) == ("error", "NobodyCatchesThisError: a start that fails")
    assert plugin.stdout == []


def test_a_refused_config_is_told_with_its_line_breaks_every_time(start: Start) -> None:
    plugin = start()
    plugin.set_config("")
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            plugin.set_config("accel: one\nbinary: two")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "accel: one\nbinary: two"
    plugin.set_config("")
    assert plugin.serves()


def test_the_detail_that_makes_nomad_try_again_arrives(start: Start) -> None:
    plugin = start()
    with pytest.raises(grpc.RpcError) as caught:
        plugin.set_config("full")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    [details] = [pair.value for pair in caught.value.trailing_metadata() if pair.key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (9, "not now")
    assert status.details[0].type_url.endswith("/hashicorp.nomad.plugins.shared.structs.RecoverableError")


def test_socket_is_where_the_host_wants_it(start: Start, short_dir: Path) -> None:
    wanted = short_dir / "wanted"
    wanted.mkdir()
    plugin = start(environ={"PLUGIN_UNIX_SOCKET_DIR": str(wanted)})
    assert Path(plugin.line.address).parent.parent == wanted
    assert plugin.serves()


def test_says_why_it_has_no_place_for_its_socket(start: Start) -> None:
    plugin = start(environ={"PLUGIN_UNIX_SOCKET_DIR": "/absent"})
    assert plugin.process.wait(20) == 1
    assert plugin.log()[-1]["@message"] == ("no directory for the plugin's socket: /absent: no such file or directory")
    assert plugin.stdout == []


def test_a_burst_of_calls_loses_none(start: Start) -> None:
    """As after a restart of the agent with thousands of tasks, and with a loop that is busy just then."""
    plugin = start()
    plugin.set_config("pause")
    stub = health_pb2_grpc.HealthStub(plugin.connect())
    request = health_pb2.HealthCheckRequest(service="plugin")
    calls = [stub.Check.future(request, timeout=30) for _ in range(5000)]
    assert all(call.result().status == SERVING for call in calls)
