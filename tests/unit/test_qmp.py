"""QMP: framing for any chunking of the bytes, and the client against a scripted peer on a socket pair."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.errors import HypervisorError
from vmlib.hypervisor.qmp import QmpClient, QmpClosedError, QmpFraming, QmpProtocolError, QmpVmm, encode

MESSAGES = st.lists(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4), max_size=6)


@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=12), end=st.sampled_from([b"\n", b"\r\n"]))
def test_any_chunking_gives_the_same_messages(messages: list[dict[str, Any]], cuts: list[int], end: bytes) -> None:
    data = b"".join(json.dumps(message).encode() + end for message in messages)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    framing = QmpFraming()
    got = [message for start, stop in pairwise(edges) for message in framing.feed(data[start:stop])]
    assert got == messages


def test_empty_lines_are_passed_over() -> None:
    assert QmpFraming().feed(b'\r\n\n{"a": 1}\n\n') == [{"a": 1}]


@pytest.mark.parametrize("line", [b"junk\n", b"[1]\n", b'{"a": \n', b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_junk_is_refused(line: bytes) -> None:
    with pytest.raises(QmpProtocolError):
        QmpFraming().feed(line)


def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    framing = QmpFraming(max_line=100)
    framing.feed(b"x" * 100)
    with pytest.raises(QmpProtocolError, match="more than 100 bytes"):
        framing.feed(b"x")


def test_a_request_is_one_line_with_its_id() -> None:
    assert encode("stop", None, 3) == b'{"execute":"stop","id":3}\n'
    assert json.loads(encode("x", {"a": "b\n"}, 4)) == {"execute": "x", "id": 4, "arguments": {"a": "b\n"}}


Peer = Callable[[socket.socket], None]


@contextmanager
def client_of(peer: Peer) -> Iterator[QmpClient]:
    """A client whose peer runs in a thread; whatever the peer raises fails the test through pytest's thread hook."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            peer(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with QmpClient(ours) as client:
            yield client
    finally:
        thread.join(5)
        assert not thread.is_alive()


def test_events_and_late_answers_are_passed_over() -> None:
    def peer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b'{"event": "STOP"}\r\n{"return": "late", "id": 77}\r\n{"return": {"ok": 1}, "id": 1}\r\n')

    with client_of(peer) as client:
        assert client.execute("query-status", timeout_s=2) == {"ok": 1}


def test_a_refusal_names_command_and_answer_and_the_connection_lives_on() -> None:
    def peer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(
            b'{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": 1}\r\n'
        )
        sock.recv(4096)
        sock.sendall(b'{"return": {}, "id": 2}\r\n')

    with client_of(peer) as client:
        with pytest.raises(HypervisorError) as caught:
            client.execute("x", timeout_s=2)
        assert str(caught.value) == "x: The command x has not been found (CommandNotFound)"
        assert not client.broken
        assert client.execute("y", timeout_s=2) == {}


def test_an_answer_of_the_vmm_cannot_flood_a_message() -> None:
    def peer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(json.dumps({"error": {"class": "E", "desc": "x" * 100_000}, "id": 1}).encode() + b"\n")

    with client_of(peer) as client, pytest.raises(HypervisorError) as caught:
        client.execute("x", timeout_s=2)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "quit: the VMM closed the connection"),
        (b'{"return"', "quit: the VMM closed the connection"),
    ],
)
def test_a_hang_up_is_told_apart(answer: bytes, message: str) -> None:
    def peer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(answer)

    with client_of(peer) as client, pytest.raises(QmpClosedError) as caught:
        client.execute("quit", timeout_s=2)
    assert str(caught.value) == message


def test_silence_ends_at_the_deadline_and_breaks_the_connection() -> None:
    done = threading.Event()

    def peer(sock: socket.socket) -> None:
        done.wait(5)

    with client_of(peer) as client:
        with pytest.raises(HypervisorError, match="stop: no answer from the VMM in time"):
            client.execute("stop", timeout_s=0.02)
        assert client.broken
        done.set()


def test_junk_breaks_the_connection() -> None:
    def peer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n")

    with client_of(peer) as client:
        with pytest.raises(HypervisorError, match="stop: not JSON"):
            client.execute("stop", timeout_s=2)
        assert client.broken


HANG_UP: dict[str, object] = {}


def serve(listener: socket.socket, answers: list[dict[str, object] | None]) -> None:
    """Greet one client, agree to its capabilities, then give these answers.

    None hangs up instead of an answer, HANG_UP without waiting for a question.
    """
    sock, _ = listener.accept()
    with sock, sock.makefile("rb") as requests:
        sock.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        capabilities: dict[str, object] = {"return": {}}
        for answer in [capabilities, *answers]:
            line = requests.readline() if answer is not HANG_UP else b""
            if answer is None or answer is HANG_UP:
                return
            request = json.loads(line)
            sock.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\r\n")
        requests.readline()


@contextmanager
def vmm_of(directory: Path, *conversations: list[dict[str, object] | None], timeout_s: float = 2) -> Iterator[QmpVmm]:
    path = directory / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            for answers in conversations:
                serve(listener, answers)

        thread = threading.Thread(target=run)
        thread.start()
        vmm = QmpVmm(path, timeout_s=timeout_s)
        try:
            yield vmm
        finally:
            vmm.close()
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("prelaunch", "created"),
        ("running", "running"),
        ("paused", "paused"),
        ("guest-panicked", "panicked"),
        ("shutdown", "shutdown"),
    ],
)
def test_states_in_the_words_of_the_door(state: str, expected: str, short_dir: Path) -> None:
    with vmm_of(short_dir, [{"return": {"status": state}}]) as vmm:
        assert vmm.status() == expected


def test_an_unknown_state_is_an_error_with_the_answer(short_dir: Path) -> None:
    with vmm_of(short_dir, [{"return": {"status": "colo"}}]) as vmm, pytest.raises(HypervisorError, match="colo"):
        vmm.status()


def test_vcpus_come_sorted(short_dir: Path) -> None:
    cpus = [{"cpu-index": 1, "thread-id": 12}, {"cpu-index": 0, "thread-id": 11}]
    with vmm_of(short_dir, [{"return": cpus}]) as vmm:
        assert [(vcpu.index, vcpu.thread_id) for vcpu in vmm.vcpus()] == [(0, 11), (1, 12)]


def test_files_that_an_image_names_are_told_from_those_that_the_vmm_was_given(short_dir: Path) -> None:
    nodes = [
        {"drv": "file", "file": "/etc/passwd"},
        {"drv": "qcow2", "file": 'json:{"driver": "qcow2"}'},
        {"drv": "raw", "file": "/dev/fdset/2"},
        {"drv": "file", "file": "/dev/fdset/2"},
        {"drv": "host_device", "file": "/dev/fdset/3"},
        {"drv": "nbd", "file": "nbd://192.0.2.1/x"},
    ]
    with vmm_of(short_dir, [{"return": nodes}]) as vmm:
        assert vmm.foreign_files() == ("/etc/passwd", "nbd://192.0.2.1/x")


def test_a_broken_connection_is_replaced_at_the_next_call(short_dir: Path) -> None:
    with vmm_of(short_dir, [None], [{"return": {"status": "running"}}]) as vmm:
        with pytest.raises(QmpClosedError):
            vmm.pause()
        assert vmm.status() == "running"


@pytest.mark.parametrize("answers", [[None], [{"return": {}}, HANG_UP]])
def test_an_end_of_file_after_quit_is_success(answers: list[dict[str, object] | None], short_dir: Path) -> None:
    with vmm_of(short_dir, answers) as vmm:
        vmm.quit()


def test_quit_is_not_over_before_the_end_of_file(short_dir: Path) -> None:
    with (
        vmm_of(short_dir, [{"return": {}}], timeout_s=0.05) as vmm,
        pytest.raises(HypervisorError, match="quit: the VMM still runs"),
    ):
        vmm.quit()


def test_no_socket_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="/qmp: no such file or directory"):
        QmpVmm(tmp_path / "qmp").connect()


def test_a_second_client_waits_no_longer_than_its_deadline(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "qmp"))
        listener.listen()
        with pytest.raises(HypervisorError, match="greeting: no answer from the VMM in time"):
            QmpClient.connect(short_dir / "qmp", timeout_s=0.02)


def test_whoever_finds_the_queue_full_waits_for_a_place_in_it(short_dir: Path) -> None:
    """As with QEMU, which lets few wait behind the one that it serves."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as before:
        listener.bind(str(short_dir / "qmp"))
        listener.listen(0)
        before.connect(str(short_dir / "qmp"))
        with pytest.raises(HypervisorError, match=r"qmp: no connection within 0\.05 s"):
            QmpClient.connect(short_dir / "qmp", timeout_s=0.05)

        def serve_both() -> None:
            listener.accept()[0].close()
            serve(listener, [{"return": {"status": "running"}}])

        serving = threading.Timer(0.1, serve_both)
        serving.start()
        with QmpClient.connect(short_dir / "qmp", timeout_s=5) as client:
            assert client.execute("query-status") == {"status": "running"}
        serving.join(5)
