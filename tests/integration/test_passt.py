"""passt alone, with the test as its VMM: what it does with single frames."""

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.networks import Namespace
from vmlib import probe
from vmlib.net.passt import passt_argv
from vmlib.resources import StreamNic

pytestmark = pytest.mark.needs("passt", "root")

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs")
GUEST, ROUTER = bytes.fromhex("525400123456"), bytes.fromhex("52550a000202")


@pytest.fixture
def lan() -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as made:
        yield made


@contextlib.contextmanager
def passt(where: Namespace, *, resolvers: tuple[str, ...]) -> Iterator[socket.socket]:
    """The VMM's end of the frames of one that serves."""
    ours, theirs = socket.socketpair()
    ready, output = os.pipe()
    os.fchown(output, NOBODY, NOBODY)
    argv = passt_argv(probe.passt_program().path, StreamNic(name="net0", mac=""), resolvers=resolvers)
    process = where.do(
        lambda: subprocess.Popen(
            [word.replace("{fd:vmm}", str(theirs.fileno())) for word in (*AS_NOBODY, *argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    )
    theirs.close()
    os.close(output)
    try:
        assert os.read(ready, 64)  # its pid: it serves
        ours.settimeout(10)
        yield ours
    finally:
        process.kill()
        process.wait()
        ours.close()
        os.close(ready)


def udp_frame(to: str, port: int, payload: bytes) -> bytes:
    source, target = socket.inet_aton("10.0.2.15"), socket.inet_aton(to)
    udp = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, target)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    frame = ROUTER + GUEST + b"\x08\x00" + header + udp
    return struct.pack("!I", len(frame)) + frame


def reached(where: Namespace, to: str) -> bool:
    """Whether a datagram that a guest sends there comes to who listens on the loopback."""
    with (
        where.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as listener,
        passt(where, resolvers=()) as vmm,
    ):
        listener.bind(("127.0.0.1", 4648))
        vmm.sendall(udp_frame(to, 4648, b"hello"))
        listener.settimeout(2)
        try:
            return listener.recv(64) == b"hello"
        except TimeoutError:
            return False


def test_the_gateway_is_not_the_hosts_loopback(lan: Namespace) -> None:
    assert not reached(lan, "10.0.2.2")


def test_what_a_guest_forges_for_the_loopback_arrives_with_a_passt_of_which_doctor_warns(lan: Namespace) -> None:
    assert reached(lan, "127.0.0.1") == (not probe.passt_drops_forged(probe.passt_version(probe.passt_program().path)))
