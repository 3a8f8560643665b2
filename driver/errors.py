"""From what went wrong to what Nomad is told: the one place that makes gRPC statuses.

Nomad decides by the status whether it tries again. A `RecoverableError` detail makes it restart the task, whatever the
code is; UNAVAILABLE and CANCELLED make it wait for the plugin's death, so they are never sent.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from vmlib.errors import HostError, HypervisorError, LaunchError, NoCapacityError, SpecError, VmError

log = logging.getLogger(__name__)

Method = TypeVar("Method", bound=Callable[..., Any])

DETAILS_KEY = "grpc-status-details-bin"
# A status travels in HTTP/2 headers, text and details both; gRPC's own limit for all of them is 8 KiB.
_TEXT_MAX_BYTES = 3000


class NotFoundError(VmError):
    """The call names a task that this driver does not know."""


class UnimplementedError(VmError):
    """This version of the driver cannot do that, for any job on any node."""


class NoAgentError(UnimplementedError):
    """The machine's guest has no agent that answers."""


class AgentLostError(VmError):
    """The guest's agent has gone away, or the guest with it, before it was known how something ended."""


class CommandTimeoutError(VmError):
    """A command in the guest took longer than its caller waits."""


STATUS: dict[type[VmError], grpc.StatusCode] = {
    VmError: grpc.StatusCode.INTERNAL,
    SpecError: grpc.StatusCode.INVALID_ARGUMENT,
    HostError: grpc.StatusCode.FAILED_PRECONDITION,
    NoCapacityError: grpc.StatusCode.FAILED_PRECONDITION,
    HypervisorError: grpc.StatusCode.INTERNAL,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    CommandTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Another try may well succeed.
RECOVERABLE = (NoCapacityError, LaunchError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcStatus:
    """How a failure looks on the wire."""

    code: grpc.StatusCode
    text: str
    recoverable: bool = False

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The detail that makes Nomad's restart policy apply; empty when a retry does not help."""
        if not self.recoverable:
            return ()
        # Only failures need these messages.
        from driver._pb import recoverable_error_pb2, status_pb2

        status = status_pb2.Status(code=self.code.value[0], message=self.text)
        status.details.add().Pack(recoverable_error_pb2.RecoverableError(recoverable=True))
        return ((DETAILS_KEY, status.SerializeToString()),)


def status_of(exc: BaseException) -> RpcStatus:
    """The status for anything that a method may raise."""
    if not isinstance(exc, VmError):
        first = next(iter(str(exc).splitlines()), "")
        text = f"{type(exc).__name__}: {first}" if first else type(exc).__name__
        return RpcStatus(code=grpc.StatusCode.INTERNAL, text=_cut(text))
    text = f"{exc} ({exc.hint})" if exc.hint else str(exc)
    if isinstance(exc, HypervisorError) and (tail := exc.log_tail.strip()):
        # Often the last of the VMM's words is the message already.
        text = tail if tail.endswith(text) else f"{text}: {tail}"
    code = next(STATUS[cls] for cls in type(exc).__mro__ if cls in STATUS)
    return RpcStatus(code=code, text=_cut(text), recoverable=isinstance(exc, RECOVERABLE))


def rpc(method: Method) -> Method:
    """For an async method `(self, request, context)` of a servicer, unary or stream: what it raises becomes a status.

    The call's own cancellation and the servicer's own `context.abort` pass through untouched.
    """
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def stream(self: object, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                # Closed here and now: an iterator left to the garbage collector runs its `finally` much later.
                async with contextlib.aclosing(method(self, request, context)) as answers:
                    async for answer in answers:
                        yield answer
            except (Exception, asyncio.CancelledError) as exc:
                if _passes(exc):
                    raise
                await _abort(method.__name__, request, context, exc)

        return cast(Method, stream)

    @functools.wraps(method)
    async def unary(self: object, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except (Exception, asyncio.CancelledError) as exc:
            if _passes(exc):
                raise
            return await _abort(method.__name__, request, context, exc)

    return cast(Method, unary)


def _passes(exc: BaseException) -> bool:
    """What gRPC itself is to see. Something else that was cancelled inside the call would reach Nomad as CANCELLED."""
    if isinstance(exc, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(exc, grpc.aio.AbortError)


async def _abort(name: str, request: object, context: Any, exc: BaseException) -> None:
    status = status_of(exc)
    task = f" task_id={task_id}" if (task_id := _task_id(request)) else ""
    if not isinstance(exc, VmError):
        log.error("%s failed%s: %s", name, task, status.text, exc_info=exc)
    elif isinstance(exc, UnimplementedError | NotFoundError | AgentLostError | CommandTimeoutError):
        log.info("%s refused%s: %s", name, task, status.text)
    else:
        log.error("%s failed%s: %s", name, task, status.text)
    await context.abort(status.code, status.text, status.trailing_metadata())


def _task_id(request: object) -> str:
    """The task that a call is about, for the log; empty where it is about none."""
    handle = getattr(request, "handle", None)
    ids = (
        getattr(request, "task_id", ""),
        getattr(getattr(request, "task", None), "id", ""),
        getattr(getattr(handle, "config", None), "id", ""),
    )
    return next((str(one) for one in ids if one), "")


def _cut(text: str) -> str:
    data = text.encode(errors="replace")
    if len(data) <= _TEXT_MAX_BYTES:
        return data.decode()
    kept = data[:_TEXT_MAX_BYTES].decode(errors="ignore")
    return f"{kept}… ({len(data) - len(kept.encode())} bytes more)"
