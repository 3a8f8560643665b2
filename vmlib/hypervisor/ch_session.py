"""Ordinary calls of Cloud Hypervisor's API by requests-unixsocket. Costly to import: only who makes a call does."""

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
import urllib3
from requests_unixsocket.adapters import UnixAdapter, UnixHTTPConnection, UnixHTTPConnectionPool

from vmlib.hypervisor.ch_socket import BASE, DeadlineSocket, read_bounded


class _Connection(UnixHTTPConnection):  # type: ignore[misc]  # it has no types
    """One whose every wait ends at one deadline: its time-out would begin anew with each byte."""

    deadline: float
    path: Path

    def connect(self) -> None:
        sock = DeadlineSocket(self.deadline)
        try:
            sock.connect_to(self.path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _Adapter(UnixAdapter):  # type: ignore[misc]
    def __init__(self, path: Path, deadline: float) -> None:
        super().__init__(max_retries=0)
        self._path, self._deadline = path, deadline

    def get_connection(self, url: str, proxies: Any = None) -> Any:  # noqa: ARG002  a socket has none
        pool = UnixHTTPConnectionPool(url)
        path, deadline = self._path, self._deadline

        def connection() -> _Connection:
            made = _Connection(url)
            made.path, made.deadline = path, deadline
            return made

        pool._new_conn = connection
        self.pools[url] = pool
        return pool


def request(
    path: Path, verb: str, call: str, body: Mapping[str, object] | None, *, deadline: float
) -> tuple[int, bytes]:
    """One call on a connection of its own: the server has ten, and each that stays open is one less for others.

    Returns status and body of the answer. Raises OSError, http.client.HTTPException.
    """
    data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http+unix://", _Adapter(path, deadline))
        url = f"http+unix://{quote(str(path), safe='')}{BASE}{call}"
        try:
            with session.request(verb, url, data=data, stream=True, allow_redirects=False) as response:
                return response.status_code, read_bounded(response.raw)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise _cause(exc) from exc


def _cause(exc: BaseException) -> Exception:
    """What happened to the connection, beneath the words of three libraries."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, TimeoutError | ConnectionError | FileNotFoundError | PermissionError):
            return seen
        if isinstance(seen, http.client.HTTPException) and not isinstance(seen, http.client.IncompleteRead):
            return seen
        seen = seen.__cause__ or seen.__context__
    return ConnectionResetError(str(exc)[:200])
