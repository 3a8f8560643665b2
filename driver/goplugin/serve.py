"""Serves a plugin's gRPC services to the host, from the handshake line to the end of the process.

The plugin ends when the host says so (GRPCController.Shutdown) or at SIGTERM, and at nothing else: not when the host
dies, nor at the end of stdin, nor without clients, nor at ^C (`process.prepare` sees to that). A host that comes back
finds it by its socket.
"""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import grpc.aio

from driver.goplugin import services
from driver.goplugin.handshake import Handshake, HandshakeError, Line, choose_version, socket_dirs
from driver.goplugin.process import Streams
from driver.goplugin.socket_dir import private_socket

log = logging.getLogger(__name__)

_MESSAGE_MAX_BYTES = 64 * 1024 * 1024
_MANY = 1_000_000

# A host that was restarted asks for everything at once, with several open calls for each task. gRPC's own limits
# would refuse calls beyond a thousand that wait to be taken up.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_MAX_BYTES),
    ("grpc.max_concurrent_streams", _MANY),
    ("grpc.server.max_pending_requests", _MANY),
    ("grpc.server.max_pending_requests_hard_limit", _MANY),
    ("grpc.server_max_unrequested_time_in_server", 600),
    ("grpc.http2.max_ping_strikes", 0),
)

# The host kills what has not ended two seconds after Shutdown. Calls get a moment, the plugin's own farewell another.
_CALLS_S, _FAREWELL_S, _LAST_S = 0.3, 1.0, 1.5

Register = Callable[[grpc.aio.Server], None]
Farewell = Callable[[], Awaitable[None]]


def run(
    streams: Streams,
    handshake: Handshake,
    register: Register,
    *,
    name: str,
    on_shutdown: Farewell | None = None,
) -> NoReturn:
    """Serve until the host wants no more, then end the process, whatever its threads are doing.

    `register` adds the plugin's own services; it is called on the running loop. `name` is for the socket's directory.
    """
    code = 1
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(serve(streams, handshake, register, name=name, on_shutdown=on_shutdown))
        code = 0
    except HandshakeError as exc:
        log.error("%s", exc)
    except Exception:  # the top of the process: what it was goes to the host's log
        log.critical("plugin ends", exc_info=True)
    if streams.log is not None:
        streams.log.flush(timeout_s=0.3)
    # Not sys.exit: that joins threads, and one of them may be waiting for a dead disk.
    os._exit(code)


async def serve(
    streams: Streams, handshake: Handshake, register: Register, *, name: str, on_shutdown: Farewell | None = None
) -> None:
    """As `run`, on a loop that is there already; returns at the end of service. Raises HandshakeError."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with private_socket(socket_dirs(os.environ, tempfile.gettempdir()), f"{name}-plugin-") as path:
        async with _listening(path, register, stop.set) as server:
            version = choose_version(os.environ, handshake.versions)
            _greet(streams, Line(version=version, address=str(path)))
            log.info("plugin serves pid=%d socket=%s", os.getpid(), path)
            await stop.wait()
            with _end_for_certain(path):
                await _end(server, on_shutdown)
    log.info("plugin ends pid=%d", os.getpid())


@contextlib.asynccontextmanager
async def _listening(path: Path, register: Register, stop: Callable[[], None]) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(options=OPTIONS)
    services.register(server, stop)
    register(server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


def _greet(streams: Streams, line: Line) -> None:
    if streams.handshake_fd is None:
        raise HandshakeError("stdout is closed: no host can read the handshake line")
    try:
        os.write(streams.handshake_fd, line.render().encode())
    except OSError as exc:
        raise HandshakeError("stdout has no reader: the host is gone") from exc


async def _end(server: grpc.aio.Server, on_shutdown: Farewell | None) -> None:
    stopped = asyncio.create_task(server.stop(_CALLS_S))
    if on_shutdown is not None:
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await on_shutdown()
        except TimeoutError:
            log.warning("plugin ends in the middle of its farewell timeout_s=%g", _FAREWELL_S)
        except Exception:  # it ends either way
            log.exception("plugin ends without its farewell")
    await stopped


@contextlib.contextmanager
def _end_for_certain(path: Path) -> Iterator[None]:
    """From here on the process ends in time, even when something blocks the loop."""

    def end() -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            path.parent.rmdir()
        os._exit(0)

    timer = threading.Timer(_LAST_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
