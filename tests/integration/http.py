"""HTTP of a few lines in network namespaces: a server that always says the same, and who asks one."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.integration.networks import Namespace


@contextlib.contextmanager
def serving(where: Namespace, address: str, port: int, text: str) -> Iterator[None]:
    """A server in there that answers every request with `text`."""
    with where.do(lambda: socket.create_server((address, port))) as listener:
        thread = threading.Thread(target=_serve, args=(listener, text))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def get(where: Namespace, address: str, port: int) -> str:
    """What a server answers, asked from in there. Raises OSError."""
    with where.do(lambda: socket.create_connection((address, port), timeout=10)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := client.recv(4096):
            answer += data
    return answer.partition(b"\r\n\r\n")[2].decode()


def _serve(listener: socket.socket, text: str) -> None:
    answer = f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    with contextlib.suppress(OSError):  # that is how it ends
        while True:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.settimeout(5)
                client.recv(4096)
                client.sendall(answer)
