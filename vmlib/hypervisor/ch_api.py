"""Cloud Hypervisor's API as a client calls it: one call at a time, each with a deadline, and all it says in errors."""

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmlib.errors import HypervisorError
from vmlib.hypervisor.ch_socket import MAX_BODY_BYTES, put_with_fds

CALL_TIMEOUT_S = 5.0
_MAX_MESSAGES = 12
_MAX_MESSAGE = 300
_DEAD = "closed channel"


class ApiError(HypervisorError):
    """A call that did not succeed. `status` is 0 without an answer; `chain` is what was said, outermost first."""

    def __init__(self, verb: str, call: str, *, status: int = 0, chain: tuple[str, ...] = (), why: str = "") -> None:
        words = why or ": ".join(chain) or f"status {status} without a word"
        # A VMM thread that died leaves an API that knows nothing but that; its log knows more.
        super().__init__(f"{call}: {words}", says_why=bool(chain) and not any(_DEAD in line for line in chain))
        self.verb = verb
        self.call = call
        self.status = status
        self.chain = chain


class ApiTimeoutError(ApiError):
    """No answer in time. The VMM does one thing after another: it may be slow, or hang."""


class ApiClosedError(ApiError):
    """Nobody listens, or the connection ended before the answer."""


def messages(body: bytes) -> tuple[str, ...]:
    """What an answer that is no success says, in any of the shapes that there have been."""
    text = body.decode(errors="replace").strip()
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    match said:
        case list():
            found = [one for one in said if isinstance(one, str)]
        case {"error": str(one)}:
            found = [one]
        case str():
            found = [said]
        case _:
            found = [text]
    lines = (" ".join(one.split())[:_MAX_MESSAGE] for one in found[:_MAX_MESSAGES])
    return tuple(line for line in lines if line)


class ChApi:
    """The API at one socket. Calls from several threads take their turn."""

    def __init__(self, path: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def get(self, call: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The JSON object that a question is answered with."""
        answer = self._call("GET", call, None, (), timeout_s)
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError) as exc:
            raise ApiError("GET", call, status=200, why=f"{answer[:100]!r}, expected JSON") from exc
        if not isinstance(found, dict):
            raise ApiError("GET", call, status=200, why=f"{answer[:100]!r}, expected an object")
        return found

    def put(
        self,
        call: str,
        body: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> None:
        """Have something done; `fds` go along. Raises ApiError, and ApiTimeoutError or ApiClosedError among them."""
        self._call("PUT", call, body, fds, timeout_s)

    def _call(
        self, verb: str, call: str, body: Mapping[str, object] | None, fds: Sequence[int], timeout_s: float | None
    ) -> bytes:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        if body is not None and len(json.dumps(body)) > MAX_BODY_BYTES:
            raise ApiError(verb, call, why=f"a body of more than {MAX_BODY_BYTES} bytes")
        if not self._lock.acquire(timeout=limit_s):
            raise ApiTimeoutError(verb, call, why=f"the VMM is still busy with another call after {limit_s:g} s")
        try:
            status, answer = self._transfer(verb, call, body, fds, deadline)
        except TimeoutError as exc:
            raise ApiTimeoutError(verb, call, why=f"no answer from the VMM within {limit_s:g} s") from exc
        except http.client.RemoteDisconnected as exc:
            raise ApiClosedError(verb, call, why="the VMM closed the connection") from exc
        except OSError as exc:
            raise ApiClosedError(verb, call, why=(exc.strerror or str(exc)).lower()) from exc
        except http.client.HTTPException as exc:
            raise ApiError(verb, call, why=f"{repr(exc)[:100]}, expected an HTTP answer") from exc
        finally:
            self._lock.release()
        if not 200 <= status < 300:
            raise ApiError(verb, call, status=status, chain=messages(answer))
        return answer

    def _transfer(
        self, verb: str, call: str, body: Mapping[str, object] | None, fds: Sequence[int], deadline: float
    ) -> tuple[int, bytes]:
        if fds:
            return put_with_fds(self._path, call, body or {}, fds, deadline=deadline)
        from vmlib.hypervisor.ch_session import request  # here: it loads three packages

        return request(self._path, verb, call, body, deadline=deadline)
