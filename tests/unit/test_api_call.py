"""Answers of an HTTP server that may be broken: understood, incomplete, or refused, and nothing else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.api_call import parse_answer

INFO = (
    b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    b'Content-Type: application/json\r\nContent-Length: 11\r\n\r\n{"a": "b"}\n'
)


def test_an_answer_is_status_and_body() -> None:
    assert parse_answer(INFO) == (200, b'{"a": "b"}\n')
    assert parse_answer(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n") == (204, b"")


@given(cut=st.integers(0, len(INFO) - 1))
def test_one_that_is_not_complete_is_waited_for(cut: int) -> None:
    assert parse_answer(INFO[:cut]) is None


@pytest.mark.parametrize(
    "junk",
    [b"\r\n\r\n", b"SSH-2.0\r\n\r\n", b"x" * (1 << 15), b"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n"],
)
def test_what_is_no_answer_is_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_answer(junk)


@given(junk=st.binary(max_size=200))
def test_nothing_else_comes_of_junk(junk: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_answer(junk)
