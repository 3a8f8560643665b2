"""A connection to Cloud Hypervisor's API that keeps a deadline whatever comes, and may carry descriptors."""

import array
import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BASE = "/api/v1/"
MAX_BODY_BYTES = 51_200  # what it takes, up to v53.0
MAX_ANSWER_BYTES = 4 << 20


class DeadlineSocket(socket.socket):
    """A unix socket on which nothing waits longer than until `deadline`, on the monotonic clock: TimeoutError then."""

    def __init__(self, deadline: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.deadline = deadline

    def connect_to(self, path: Path) -> None:
        self._arm()
        self.connect(str(path))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:  # what reading a file of it calls
        self._arm()
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._arm()
        super().sendall(data, flags)

    def send_with(self, data: bytes, fds: Sequence[int]) -> None:
        """The descriptors go along with the first bytes."""
        self._arm()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sent = self.sendmsg([data], rights)
        if sent < len(data):  # sending nothing is an error, too, once the other side has answered and gone
            self.sendall(data[sent:])

    def _arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        self.settimeout(left)


def put_with_fds(
    path: Path, call: str, body: Mapping[str, object], fds: Sequence[int], *, deadline: float
) -> tuple[int, bytes]:
    """The one request that other clients cannot make. Returns status and body of the answer.

    Raises OSError, http.client.HTTPException.
    """
    text = json.dumps(body, separators=(",", ":")).encode()
    head = f"PUT {BASE}{call} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    with DeadlineSocket(deadline) as sock:
        sock.connect_to(path)
        sock.send_with(head.encode("ascii") + text, fds)
        response = http.client.HTTPResponse(sock, method="PUT")
        try:
            response.begin()
            return response.status, read_bounded(response)
        finally:
            response.close()


def read_bounded(response: Any) -> bytes:
    """The body of an answer. Raises http.client.HTTPException when it is longer than anything that we ask for."""
    data: bytes = response.read(MAX_ANSWER_BYTES + 1)
    if len(data) > MAX_ANSWER_BYTES:
        raise http.client.HTTPException(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    if response.length if isinstance(response, http.client.HTTPResponse) else response.length_remaining:
        raise ConnectionResetError("the connection ended in the middle of the answer")
    return data
