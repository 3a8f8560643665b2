"""One plugin process, launched as the agent launches it: cookie, pipes, handshake, log lines, ways to end it."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from driver.devhost.client import PluginClient, RpcError
from driver.devhost.errors import PluginError
from driver.goplugin.handshake import HandshakeError, Line, parse_line

START_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 2.0
# What a driver plugin finds in its environment, beside all that the agent has itself.
AGENT_ENVIRONMENT = {
    "NOMAD_PLUGIN_MAGIC_COOKIE": "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
    "PLUGIN_PROTOCOL_VERSIONS": "2",
    "PLUGIN_MIN_PORT": "10000",
    "PLUGIN_MAX_PORT": "25000",
}
_LEVELS = ("trace", "debug", "info", "warn", "error")
_LINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of the plugin's log, as the agent understands it."""

    level: str
    message: str
    module: str = ""
    pairs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        pairs = "".join(f" {key}={value}" for key, value in self.pairs.items())
        module = f"{self.module}: " if self.module else ""
        return f"[{self.level.upper()}] {module}{self.message}{pairs}"


OnLog = Callable[[LogLine], None]


def parse_log_line(line: str) -> LogLine:
    """By the agent's rules: what it does not understand is a debug line, whole."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("@message"), str):
            level = str(found.pop("@level", "debug")).lower()
            message, module = found.pop("@message"), str(found.pop("@module", ""))
            found.pop("@timestamp", None)
            if level in _LEVELS:
                return LogLine(level=level, message=message, module=module, pairs=found)
    for level in _LEVELS:
        if line.startswith(f"[{level.upper()}]"):
            return LogLine(level=level, message=line[len(level) + 2 :].strip())
    return LogLine(level="debug", message=line)


class PluginProcess:
    """Made by `launch`. `exited` is done when the process is over *and* nobody holds its stdout or stderr any more:
    that is what the agent waits for, so a child that keeps one open hides the plugin's death from it.
    """

    def __init__(self, process: asyncio.subprocess.Process, line: Line, client: PluginClient, on_log: OnLog) -> None:
        self._process = process
        self._on_log = on_log
        self.line = line
        self.client = client
        self._tasks = [
            asyncio.create_task(self._read(process.stdout, "stdout")),
            asyncio.create_task(self._read(process.stderr, "stderr")),
        ]
        self.exited = asyncio.create_task(self._exit(), name="plugin exited")
        # Both may fail, and the agent does not mind.
        self._streams = [asyncio.create_task(_drain(one)) for one in (client.stdio(), client.broker())]

    @classmethod
    async def launch(
        cls, argv: Sequence[str], *, on_log: OnLog, env: Mapping[str, str] | None = None
    ) -> "PluginProcess":
        """Start it and read the handshake line. Raises PluginError with what it said instead."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=None,  # the plugin has our own
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **AGENT_ENVIRONMENT, **(env or {})},
            limit=2 * _LINE_BYTES,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await _handshake(process)
        except (HandshakeError, TimeoutError, OSError, ValueError) as exc:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            said = await _last_words(process)
            why = f"no handshake line within {START_TIMEOUT_S:g} s" if isinstance(exc, TimeoutError) else str(exc)
            raise PluginError(f"plugin {argv[0]}: {why}{said}") from exc
        except asyncio.CancelledError:
            await _end_unheard(process)
            raise
        return cls(process, line, PluginClient(f"{line.network}:{line.address}"), on_log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def stop(self, *, driver_shutdown: bool) -> None:
        """End it as the agent does: ask, wait two seconds, kill. Nothing is left of it afterwards, also at ^C."""
        ending = asyncio.create_task(self._stop(driver_shutdown=driver_shutdown))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _stop(self, *, driver_shutdown: bool) -> None:
        if driver_shutdown:
            with contextlib.suppress(RpcError):
                await self.client.shutdown_driver()
        with contextlib.suppress(RpcError):
            await self.client.shutdown()
        await self._close_calls()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._process.wait()
        self.kill()
        await asyncio.shield(self.exited)

    def kill(self) -> None:
        """SIGKILL to this process alone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def forget(self) -> None:
        """After its death: close what is still open on our side."""
        await self._close_calls()
        await asyncio.shield(self.exited)

    async def exits_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait([self.exited], timeout=seconds)
        return bool(done)

    async def _close_calls(self) -> None:
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        await self.client.close()

    async def _exit(self) -> int:
        await asyncio.gather(*self._tasks)
        return await self._process.wait()

    async def _read(self, stream: asyncio.StreamReader | None, name: str) -> None:
        assert stream is not None
        async for line in _lines(stream):
            text = line.decode(errors="replace").rstrip("\r\n")
            self._on_log(
                parse_log_line(text) if name == "stderr" else LogLine(level="debug", message=f"stdout: {text}")
            )


async def _handshake(process: asyncio.subprocess.Process) -> Line:
    assert process.stdout is not None
    first = await process.stdout.readline()
    if not first:
        raise HandshakeError("it ended without a handshake line")
    line = parse_line(first.decode(errors="replace"))
    if line.version != 2 or line.protocol != "grpc" or line.network not in ("unix", "tcp"):
        raise HandshakeError(f"handshake line {first.decode(errors='replace').strip()!r}: expected version 2 over grpc")
    return line


async def _end_unheard(process: asyncio.subprocess.Process) -> None:
    """End one that has not said where it listens: at SIGTERM it takes its socket along."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _last_words(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    try:
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            rest = await process.stderr.read(_LINE_BYTES)
    except TimeoutError:
        rest = b""
    await process.wait()
    lines = [parse_log_line(line).message for line in rest.decode(errors="replace").splitlines() if line.strip()]
    return f": {' / '.join(lines[-5:])}" if lines else ""


async def _lines(stream: asyncio.StreamReader) -> Any:
    """Lines, a long one in pieces."""
    rest = b""
    while chunk := await stream.read(_LINE_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > _LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


async def _drain(answers: Any) -> None:
    with contextlib.suppress(RpcError):
        async for _ in answers:
            pass
