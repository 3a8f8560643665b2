"""The leftover check sees what it is meant to see."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.leftovers import look, none_left


def test_a_process_of_ours_that_holds_a_file_of_the_run_directory_is_left(short_dir: Path) -> None:
    fifo = short_dir / "console.out"
    os.mkfifo(fifo)
    before = look(run_dir=short_dir)
    fd = os.open(fifo, os.O_RDWR)
    with subprocess.Popen(["chv-test-sleep", "60"], executable="/bin/sleep", pass_fds=(fd,)) as ours:
        os.close(fd)
        fifo.unlink()
        try:
            assert look(run_dir=short_dir).processes - before.processes == {f"{ours.pid} chv-test-sleep 60"}
        finally:
            ours.kill()


def test_another_runs_process_is_not_ours(short_dir: Path) -> None:
    before = look(run_dir=short_dir)
    with subprocess.Popen(["chv-test-sleep", "60"], executable="/bin/sleep") as other:
        try:
            # Groups may come from a test beside this one that is just starting a machine: they name no directory.
            assert look(run_dir=short_dir).processes == before.processes
        finally:
            other.kill()


def test_a_child_that_nobody_waited_for_is_left(short_dir: Path) -> None:
    before = look(run_dir=short_dir)
    child = subprocess.Popen(["true"])
    deadline = time.monotonic() + 10
    # Of processes alone: a test beside this one makes groups of its own.
    while not (left := look(run_dir=short_dir).processes - before.processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.wait()
    assert left == {f"{child.pid} zombie, a child of this one that nobody waited for"}


def test_sockets_and_files_are_left_but_records_may_stay(short_dir: Path) -> None:
    run_dir, data_dir = short_dir / "run", short_dir / "data"
    run_dir.mkdir()
    (data_dir / "machines/a/web").mkdir(parents=True)

    def leave(listener: socket.socket) -> None:
        with none_left(run_dir=run_dir, data_dir=data_dir, settle_s=0):
            listener.bind(str(run_dir / "qmp"))
            (data_dir / "machines/a/web/spec.json").touch()
            (data_dir / "stray").touch()

    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(AssertionError) as caught:
        leave(listener)
    assert str(caught.value).splitlines()[1:] == [
        f"  sockets: {run_dir / 'qmp'}",
        f"  files: {data_dir / 'stray'}",
        f"  files: {run_dir / 'qmp'}",
    ]


def test_what_ends_by_itself_in_time_is_not_left(short_dir: Path) -> None:
    with none_left(run_dir=short_dir, settle_s=10):
        (short_dir / "late").touch()
        helper = subprocess.Popen(["sh", "-c", f"sleep 0.3; rm '{short_dir / 'late'}'"])
        with helper:
            pass
