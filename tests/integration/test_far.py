"""What the children do that touch files on servers, shown with files on this host and a server that never answers."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmlib import far, process, remote
from vmlib.errors import NoCapacityError, SpecError
from vmlib.spec import FileRef, NfsExport

MIB = 1 << 20
VMS = NfsExport(name="vms", server="10.0.0.5", export="/srv/vms")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """As a mount of a machine's, with a directory of ours around it."""
    (tmp_path / "vms").mkdir()
    return tmp_path / "vms"


def ref(top: Path, relative: str) -> FileRef:
    return FileRef(root=top, relative=relative, nfs=VMS)


def children() -> list[str]:
    mine = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        fields = process.stat_fields(int(pid))
        if fields is not None and int(fields[1]) == os.getpid():
            mine.append(Path(f"/proc/{pid}/cmdline").read_text())
    return [line for line in mine if "far_child" in line]


def test_a_file_comes_as_a_descriptor_with_all_that_is_to_be_known_of_it(top: Path) -> None:
    (top / "x.raw").write_bytes(b"head" * 30_000)
    source = remote.open_source(ref(top, "x.raw"), key="image", hold="shared")
    status = (top / "x.raw").stat()
    assert (source.inode, source.size_bytes, source.mtime_ns) == (status.st_ino, 120_000, status.st_mtime_ns)
    assert source.head == b"head" * (remote.HEAD_BYTES // 4)
    assert source.remote
    assert os.pread(source.fd, 4, 0) == b"head"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(source.fd, b"x", 0)
    with pytest.raises(NoCapacityError, match=r"^image = 'nfs://vms/x\.raw': in use by another machine$"):
        remote.open_source(ref(top, "x.raw"), key="image", write=True, hold="alone")
    os.close(source.fd)
    alone = remote.open_source(ref(top, "x.raw"), key="image", write=True, hold="alone")
    alone.resize(MIB, ref(top, "x.raw"), key="image")
    assert (top / "x.raw").stat().st_size == MIB
    alone.close()
    assert children() == []


@pytest.mark.parametrize("how", [remote.open_source, remote.fetch])
@pytest.mark.parametrize(
    ("relative", "words"),
    [
        ("none", "no such file or directory, expected a readable file"),
        ("out", "leads out of nfs://vms, expected a file beneath it"),
        ("fifo", "not a regular file"),
        (".", "not a regular file"),
    ],
)
def test_what_is_no_file_of_the_exports_is_refused(
    top: Path, how: Callable[..., object], relative: str, words: str
) -> None:
    (top / "out").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo")
    more = {"max_bytes": MIB} if how is remote.fetch else {}
    with pytest.raises(SpecError) as exc:
        how(ref(top, relative), key="image", **more)
    assert str(exc.value) == f"image = 'nfs://vms{'' if relative == '' else '/' + relative}': {words}"
    assert list(top.parent.iterdir()) == [top]


def test_a_copy_has_the_data_and_the_holes_and_no_name(top: Path) -> None:
    with (top / "x.raw").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data" * MIB)
    fd = remote.fetch(ref(top, "x.raw"), key="image", max_bytes=64 * MIB)
    status = os.fstat(fd)
    assert (status.st_size, status.st_nlink) == (64 * MIB, 0)
    assert status.st_blocks * 512 < 8 * MIB
    assert os.pread(fd, 8, 32 * MIB) == b"datadata"
    assert os.pread(fd, 8, 0) == b"\0" * 8
    os.close(fd)
    with pytest.raises(SpecError, match=f"{64 * MIB} bytes, expected at most {MIB}"):
        remote.fetch(ref(top, "x.raw"), key="image", max_bytes=MIB)
    assert list(top.parent.iterdir()) == [top]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server whose queue is full: nobody who calls is answered."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield int(server.getsockname()[1])
        for caller in callers:
            caller.close()


def test_a_child_that_gets_no_answer_is_killed_at_its_deadline(silent: int, tmp_path: Path) -> None:
    details = {
        "server": "127.0.0.1",
        "port": silent,
        "export": "/srv",
        "target": str(tmp_path),
        "options": "",
        "flags": 0,
    }
    with pytest.raises(far.FarError, match=r"^no answer within 0\.2 s$"):
        far.call("mount", details | {"connect_s": 0.2}, timeout_s=20)
    began = time.monotonic()
    with pytest.raises(far.SilentError):
        far.call("mount", details | {"connect_s": 60}, timeout_s=0.3)
    assert time.monotonic() - began < 10
    assert children() == []


LEADER_ENDS = """
import ctypes, threading
threading.Thread(target=input).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_its_last_thread() -> None:
    """As a VMM does whose main thread has ended while another one waits for a server."""
    child = subprocess.Popen(
        [sys.executable, "-c", LEADER_ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.readline()
    who = process.identify(child.pid)
    assert who is not None
    deadline = time.monotonic() + 10
    while (process.stat_fields(child.pid) or [""])[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.alive(who)
    assert not process.wait_gone(who, 0.2)
    process.send_signal(who, 9)
    assert process.wait_gone(who, 5.0)
    child.communicate()
