"""The keeper's loop: who comes first, and that nobody is called for a descriptor that was closed a moment ago."""

import contextlib
import functools
import os
from collections.abc import Iterator

import pytest

from vmlib.keeper.loop import Loop


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(4)]
    for _, write in made:
        os.write(write, b"x")
    yield made
    for pair in made:
        for fd in pair:
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.mark.parametrize("which", range(4))
def test_the_console_is_read_before_all_else_that_is_ready(pipes: list[tuple[int, int]], which: int) -> None:
    loop = Loop()
    called: list[int] = []
    for index, (read, _) in enumerate(pipes):
        loop.on_read(read, functools.partial(called.append, index), first=index == which)
    loop.turn()
    assert called[0] == which
    assert sorted(called) == [0, 1, 2, 3]


def test_nobody_is_called_for_what_another_has_closed(pipes: list[tuple[int, int]]) -> None:
    loop, called = Loop(), []

    def close_the_others() -> None:
        called.append("first")
        for read, _ in pipes[1:]:
            loop.forget(read)
            os.close(read)

    loop.on_read(pipes[0][0], close_the_others, first=True)
    for read, _ in pipes[1:]:
        loop.on_read(read, lambda: called.append("closed"))
    loop.turn()
    assert called == ["first"]


def test_a_number_that_means_something_new_waits_for_the_next_turn(pipes: list[tuple[int, int]]) -> None:
    loop, called = Loop(), []
    old = pipes[1][0]

    def replace() -> None:
        loop.forget(pipes[0][0])
        loop.forget(old)
        os.dup2(pipes[2][0], old)
        loop.on_read(old, lambda: called.append("new"))

    loop.on_read(pipes[0][0], replace, first=True)
    loop.on_read(old, lambda: called.append("old"))
    loop.turn()
    assert called == []
    loop.turn()
    assert called == ["new"]
