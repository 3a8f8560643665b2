"""The client of Cloud Hypervisor's API against a server that does as a script says: every way that a call may go."""

import array
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmlib.errors import HypervisorError
from vmlib.hypervisor.ch_api import ApiClosedError, ApiError, ApiTimeoutError, ChApi
from vmlib.hypervisor.ch_socket import MAX_ANSWER_BYTES, MAX_BODY_BYTES

Behave = Callable[[socket.socket], None]


class Server:
    """Serves one connection after the other, each by the next step of a script; the last one stays."""

    def __init__(self, path: Path, *script: Behave) -> None:
        self.requests: list[bytes] = []
        self.fds: list[int] = []
        self._script = list(script)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with conn:
                self.requests.append(self._request(conn))
                step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
                try:
                    step(conn)
                except OSError:
                    continue  # the client has gone

    def _request(self, conn: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data or len(data) < data.index(b"\r\n\r\n") + 4 + _length(data):
            piece, rights, _, _ = conn.recvmsg(1 << 16, socket.CMSG_SPACE(64))
            for _, _, raw in rights:
                self.fds += array.array("i", raw)
            if not piece:
                break
            data += piece
        return data

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5.0)


def _length(data: bytes) -> int:
    for line in data.partition(b"\r\n\r\n")[0].splitlines():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


Serve = Callable[..., tuple[Server, ChApi]]


@pytest.fixture
def serve(short_dir: Path) -> Iterator[Serve]:
    servers = []

    def begin(*script: Behave, timeout_s: float = 5.0) -> tuple[Server, ChApi]:
        server = Server(short_dir / "api", *script)
        servers.append(server)
        return server, ChApi(short_dir / "api", timeout_s=timeout_s)

    yield begin
    for server in servers:
        server.close()


def answer(status: str, body: bytes = b"", *, more: str = "") -> Behave:
    head = f"HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return lambda conn: conn.sendall(head.encode() + body)


def raw(data: bytes) -> Behave:
    return lambda conn: conn.sendall(data)


def silent(conn: socket.socket) -> None:
    conn.recv(1)  # until the client has gone


def trickle(conn: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000:
        conn.sendall(bytes([byte]))
        time.sleep(0.1)


NO_CONTENT = answer("204 ")


def test_a_question_is_answered_with_an_object(serve: Serve) -> None:
    server, api = serve(answer("200 ", b'{"version": "53.0.0"}'))
    assert api.get("vmm.ping") == {"version": "53.0.0"}
    assert server.requests[0].startswith(b"GET /api/v1/vmm.ping HTTP/1.1\r\n")


def test_a_call_without_a_body_sends_none(serve: Serve) -> None:
    server, api = serve(NO_CONTENT)
    api.put("vm.boot")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /api/v1/vm.boot HTTP/1.1\r\n")
    assert (body, _length(server.requests[0])) == (b"", 0)
    assert b"chunked" not in head


def test_a_body_is_json(serve: Serve) -> None:
    server, api = serve(NO_CONTENT)
    api.put("vm.create", {"payload": {"kernel": "/k"}})
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2]) == {"payload": {"kernel": "/k"}}


def test_descriptors_go_along_with_a_call(serve: Serve, short_dir: Path) -> None:
    server, api = serve(NO_CONTENT)
    with open(short_dir / "one", "w+b") as one, open(short_dir / "two", "w+b") as two:
        api.put("vm.add-net", {"id": "net0"}, fds=(one.fileno(), two.fileno()))
        os.write(server.fds[1], b"here")
        for fd in server.fds:
            os.close(fd)
        two.seek(0)
        assert two.read() == b"here"
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2]) == {"id": "net0"}


@pytest.mark.parametrize("fds", [(), (0,)])
@pytest.mark.parametrize(
    ("behave", "error", "message"),
    [
        (
            answer("500 ", b'["Error from API","The VM could not boot","Kernel is missing"]'),
            ApiError,
            "vm.add-net: Error from API: The VM could not boot: Kernel is missing",
        ),
        (answer("400 ", b'{"error":"Unsupported"}'), ApiError, "vm.add-net: Unsupported"),
        (answer("400 "), ApiError, "vm.add-net: status 400 without a word"),
        (answer("500 ", b"plain words\n of before"), ApiError, "vm.add-net: plain words of before"),
        (answer("500 ", b'[1, {"a": 2}]'), ApiError, "vm.add-net: status 500 without a word"),
        (lambda _: None, ApiClosedError, "vm.add-net: the VMM closed the connection"),
        (raw(b"garbage\r\n\r\n"), ApiError, "vm.add-net: .*expected an HTTP answer"),
        (
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
            ApiClosedError,
            "vm.add-net: the connection ended in the middle of the answer",
        ),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000), ApiError, "vm.add-net: "),
        (silent, ApiTimeoutError, r"vm\.add-net: no answer from the VMM within 0\.5 s"),
        (trickle, ApiTimeoutError, r"vm\.add-net: no answer from the VMM within 0\.5 s"),
    ],
)
def test_whatever_else_comes_is_an_error_that_names_the_call(
    serve: Serve, behave: Behave, error: type[ApiError], message: str, fds: tuple[int, ...]
) -> None:
    _, api = serve(behave, timeout_s=0.5)
    begin = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        api.put("vm.add-net", {"id": "net0"}, fds=fds)
    assert time.monotonic() - begin < 3.0
    assert (caught.value.verb, caught.value.call) == ("PUT", "vm.add-net")
    assert isinstance(caught.value, HypervisorError)


def test_an_endless_answer_is_not_read_to_its_end(serve: Serve) -> None:
    def endless(conn: socket.socket) -> None:
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            conn.sendall(b"x" * (1 << 16))

    _, api = serve(endless)
    with pytest.raises(ApiError, match=str(MAX_ANSWER_BYTES)):
        api.get("vm.info")


def test_a_body_that_the_vmm_would_refuse_is_not_sent(serve: Serve) -> None:
    server, api = serve(NO_CONTENT)
    with pytest.raises(ApiError, match=str(MAX_BODY_BYTES)):
        api.put("vm.create", {"x": "y" * MAX_BODY_BYTES})
    assert server.requests == []


def test_nobody_who_listens_is_told_at_once(short_dir: Path) -> None:
    with pytest.raises(ApiClosedError, match="no such file"):
        ChApi(short_dir / "api").get("vmm.ping")


def test_what_is_no_object_is_no_answer(serve: Serve) -> None:
    _, api = serve(answer("200 ", b"[1]"))
    with pytest.raises(ApiError, match="expected an object"):
        api.get("vm.info")


def test_a_second_call_waits_for_the_first_and_no_longer_than_it_may(serve: Serve) -> None:
    _, api = serve(silent)

    def hang() -> None:
        with pytest.raises(ApiTimeoutError):
            api.get("vm.info", timeout_s=1.5)

    first = threading.Thread(target=hang)
    first.start()
    time.sleep(0.3)
    with pytest.raises(ApiTimeoutError, match=r"still busy with another call after 0\.2 s"):
        api.get("vmm.ping", timeout_s=0.2)
    first.join()


def test_each_call_has_a_connection_of_its_own_that_it_closes(serve: Serve) -> None:
    closed = threading.Event()

    def until_closed(conn: socket.socket) -> None:
        NO_CONTENT(conn)
        conn.settimeout(5.0)
        if conn.recv(1) == b"":
            closed.set()

    server, api = serve(until_closed)
    for call in ("vm.pause", "vm.resume"):
        closed.clear()
        api.put(call)
        assert closed.wait(5.0)
    assert len(server.requests) == 2
