"""Changes of files are told, and losing some is told too."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmlib import inotify
from vmlib.inotify import Event, Inotify


@pytest.fixture
def queue() -> Iterator[Inotify]:
    with Inotify() as one:
        yield one


def test_reading_never_waits(queue: Inotify) -> None:
    assert queue.read() == []


def test_a_write_into_a_watched_file_is_told(queue: Inotify, tmp_path: Path) -> None:
    path = tmp_path / "cpuset.cpus"
    path.write_text("0-1")
    assert queue.watch(path, inotify.MODIFY | inotify.CLOSE_WRITE) is not None
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"2")
    assert queue.read() == [Event(path, "", inotify.MODIFY)]
    os.close(fd)
    assert queue.read() == [Event(path, "", inotify.CLOSE_WRITE)]


def test_what_comes_and_goes_in_a_directory_is_told_by_name(queue: Inotify, tmp_path: Path) -> None:
    queue.watch(tmp_path, inotify.CREATE | inotify.DELETE)
    (tmp_path / "a.scope").mkdir()
    (tmp_path / "a name of another length: é").touch()
    (tmp_path / "a.scope").rmdir()
    assert queue.read() == [
        Event(tmp_path, "a.scope", inotify.CREATE | inotify.ISDIR),
        Event(tmp_path, "a name of another length: é", inotify.CREATE),
        Event(tmp_path, "a.scope", inotify.DELETE | inotify.ISDIR),
    ]


@pytest.mark.parametrize("below", ["missing", "file/below"])
def test_a_path_that_is_not_there_is_no_mistake(queue: Inotify, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    assert queue.watch(tmp_path / below, inotify.MODIFY) is None


def test_the_end_of_what_is_watched_is_told_and_it_can_be_watched_anew(queue: Inotify, tmp_path: Path) -> None:
    path = tmp_path / "group"
    path.mkdir()
    first = queue.watch(path, inotify.CREATE)
    assert first is not None
    path.rmdir()
    assert queue.read() == [Event(path, "", inotify.IGNORED)]
    queue.unwatch(first)
    path.mkdir()
    assert queue.watch(path, inotify.CREATE) is not None
    (path / "x").touch()
    assert [event.name for event in queue.read()] == ["x"]


def test_what_is_no_longer_watched_is_silent_also_about_what_was_not_read_yet(queue: Inotify, tmp_path: Path) -> None:
    watch = queue.watch(tmp_path, inotify.CREATE)
    assert watch is not None
    (tmp_path / "a").touch()
    queue.unwatch(watch)
    (tmp_path / "b").touch()
    assert queue.read() == []


def test_lost_events_are_told(queue: Inotify, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip("the queue is too long to fill it here")
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.touch()
        queue.watch(path, inotify.ATTRIB)
    for _ in range(limit // 2 + 1):  # two files by turns: equal events in a row are one
        for path in paths:
            os.utime(path)
    assert queue.read()[-1] == Event(None, "", inotify.Q_OVERFLOW)
    os.utime(paths[0])
    assert queue.read() == [Event(paths[0], "", inotify.ATTRIB)]


def test_an_event_loop_is_woken(queue: Inotify, tmp_path: Path) -> None:
    async def wait() -> list[Event]:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[list[Event]] = loop.create_future()
        loop.add_reader(queue.fd, lambda: told.set_result(queue.read()))
        loop.call_soon((tmp_path / "new").touch)
        try:
            return await asyncio.wait_for(told, 5)
        finally:
            loop.remove_reader(queue.fd)

    queue.watch(tmp_path, inotify.CREATE)
    assert asyncio.run(wait()) == [Event(tmp_path, "new", inotify.CREATE)]


def test_closing_gives_the_descriptor_back_once() -> None:
    queue = Inotify()
    fd = queue.fd
    queue.close()
    queue.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
