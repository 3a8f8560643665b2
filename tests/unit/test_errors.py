import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from driver._pb import driver_pb2, recoverable_error_pb2, status_pb2
from driver.errors import DETAILS_KEY, STATUS, NotFoundError, UnimplementedError, rpc, status_of
from vmlib.errors import HostError, HypervisorError, LaunchError, NoCapacityError, SpecError, VmError

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("exc", "code", "recoverable"),
    [
        (SpecError("m"), Code.INVALID_ARGUMENT, False),
        (HostError("m"), Code.FAILED_PRECONDITION, False),
        (NoCapacityError("m"), Code.FAILED_PRECONDITION, True),
        (HypervisorError("m"), Code.INTERNAL, False),
        (LaunchError("m"), Code.INTERNAL, True),
        (NotFoundError("m"), Code.NOT_FOUND, False),
        (UnimplementedError("m"), Code.UNIMPLEMENTED, False),
        (VmError("m"), Code.INTERNAL, False),
        (type("OwnError", (HostError,), {})("m"), Code.FAILED_PRECONDITION, False),
    ],
)
def test_status_follows_who_can_act(exc: VmError, code: grpc.StatusCode, recoverable: bool) -> None:
    status = status_of(exc)
    assert (status.code, status.text, status.recoverable) == (code, "m", recoverable)


@pytest.mark.parametrize(
    "exc", [grpc.RpcError("x"), TimeoutError(), asyncio.CancelledError(), OSError(5, "x"), KeyError("k")]
)
def test_nothing_unexpected_looks_like_a_dead_plugin(exc: BaseException) -> None:
    assert status_of(exc).code == Code.INTERNAL
    assert not status_of(exc).recoverable


def test_no_error_of_ours_looks_like_a_dead_plugin() -> None:
    assert not {Code.UNAVAILABLE, Code.CANCELLED} & set(STATUS.values())


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (SpecError("image: missing", hint="name one"), "image: missing (name one)"),
        (SpecError("one\ntwo"), "one\ntwo"),
        (LaunchError("no start", log_tail="qemu: bad\n"), "no start: qemu: bad"),
        (LaunchError("qemu: bad", log_tail="qemu: warning\nqemu: bad\n"), "qemu: warning\nqemu: bad"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
    ],
)
def test_text_says_what_there_is_to_say(exc: Exception, text: str) -> None:
    assert status_of(exc).text == text


def test_a_text_too_long_for_the_headers_is_cut() -> None:
    text = status_of(SpecError("ü" * 5000)).text
    assert len(text.encode()) < 3100
    assert text.endswith("(7000 bytes more)")


def test_the_detail_is_what_nomad_looks_for() -> None:
    [(key, value)] = status_of(NoCapacityError("full")).trailing_metadata()
    assert key == DETAILS_KEY == "grpc-status-details-bin"
    status = status_pb2.Status.FromString(value)
    assert (status.code, status.message, len(status.details)) == (9, "full", 1)
    detail = recoverable_error_pb2.RecoverableError()
    assert status.details[0].type_url == ("type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError")
    assert status.details[0].Unpack(detail)
    assert detail.recoverable


def test_without_hope_there_is_no_detail() -> None:
    assert status_of(SpecError("m")).trailing_metadata() == ()


# -- the decorator ----------------------------------------------------------------------------------------------------


class Context:
    """As much of a servicer's context as the decorator uses; abort raises, as gRPC's does."""

    def __init__(self) -> None:
        self.aborted: list[tuple[Any, ...]] = []

    async def abort(self, *status: Any) -> None:
        self.aborted.append(status)
        raise grpc.aio.AbortError


class Servicer:  # the signatures are gRPC's
    def __init__(self, exc: BaseException | None = None) -> None:
        self.exc = exc
        self.closed = False

    @rpc
    async def unary(self, _request: Any, _context: Any) -> str:
        if self.exc:
            raise self.exc
        return "answer"

    @rpc
    async def stream(self, _request: Any, _context: Any) -> AsyncIterator[int]:
        try:
            yield 1
            if self.exc:
                raise self.exc
            yield 2
        finally:
            self.closed = True

    @rpc
    async def wait(self, _request: Any, _context: Any) -> None:
        await asyncio.Event().wait()


async def drain(stream: AsyncIterator[int]) -> list[int]:
    return [item async for item in stream]


def test_what_goes_well_is_left_alone() -> None:
    assert asyncio.run(Servicer().unary(None, Context())) == "answer"
    assert asyncio.run(drain(Servicer().stream(None, Context()))) == [1, 2]


def test_a_raised_error_becomes_the_status_of_a_call() -> None:
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(Servicer(SpecError("bad", hint="cure")).unary(None, context))
    assert context.aborted == [(Code.INVALID_ARGUMENT, "bad (cure)", ())]


def test_a_raised_error_becomes_the_status_of_a_stream() -> None:
    context = Context()
    servicer = Servicer(NoCapacityError("full"))
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(drain(servicer.stream(None, context)))
    [(code, text, metadata)] = context.aborted
    assert (code, text, [key for key, _ in metadata]) == (Code.FAILED_PRECONDITION, "full", [DETAILS_KEY])


def test_a_stream_that_is_dropped_is_closed_at_once() -> None:
    async def take_one() -> bool:
        servicer = Servicer()
        stream = servicer.stream(None, Context())
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        return servicer.closed

    assert asyncio.run(take_one())


def test_the_servicers_own_abort_passes_through() -> None:
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(Servicer(grpc.aio.AbortError()).unary(None, context))
    assert context.aborted == []


def test_cancellation_of_the_call_passes_through() -> None:
    context = Context()

    async def cancel() -> None:
        task = asyncio.create_task(Servicer().wait(None, context))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert context.aborted == []


def test_something_else_that_was_cancelled_is_a_failure_of_the_call() -> None:
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        asyncio.run(Servicer(asyncio.CancelledError()).unary(None, context))
    assert context.aborted == [(Code.INTERNAL, "CancelledError", ())]


def test_the_unexpected_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    request = driver_pb2.StopTaskRequest(task_id="alloc/web/12345678")
    with contextlib.suppress(grpc.aio.AbortError):
        asyncio.run(Servicer(ValueError("why")).unary(request, Context()))
    [record] = caplog.records
    assert record.getMessage() == "unary failed task_id=alloc/web/12345678: ValueError: why"
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_the_log_names_the_task_of_a_start(caplog: pytest.LogCaptureFixture) -> None:
    request = driver_pb2.StartTaskRequest(task=driver_pb2.TaskConfig(id="alloc/web/12345678"))
    with contextlib.suppress(grpc.aio.AbortError):
        asyncio.run(Servicer(HostError("no kvm")).unary(request, Context()))
    [record] = caplog.records
    assert record.getMessage() == "unary failed task_id=alloc/web/12345678: no kvm"
    assert not record.exc_info
