"""Forwards in the real QEMU's own words."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from vmlib.net.making import Making
from vmlib.net.plug import plug
from vmlib.net.user import explain_forward_failure
from vmlib.resources import UserNic
from vmlib.spec import NicSpec, PortForward, UserLink

pytestmark = pytest.mark.needs("qemu")

# User-mode links make nothing of the host's.
UNUSED = Making(machine_id="", mark="", queue_pairs=1, vhost=False, note=lambda *_: None, keep=lambda _: None)


@pytest.fixture(params=["127.0.0.1", ""])
def taken(request: pytest.FixtureRequest) -> Iterator[PortForward]:
    with socket.socket() as listener:
        listener.bind((request.param, 0))
        listener.listen()
        port = listener.getsockname()[1]
        yield PortForward(label="http", host_ip=request.param, host_port=port, guest_port=80)


def test_a_port_that_is_taken_is_explained_from_what_qemu_says(taken: PortForward) -> None:
    nic = NicSpec(network="nat", link=UserLink(forwards=(taken,)), mac="52:54:00:12:34:56")
    made = plug(nic, 0, UNUSED).nic
    assert isinstance(made, UserNic)
    rules = [f"{f.protocol}:{f.host_ip}:{f.host_port}-:{f.guest_port}" for f in made.forwards]
    netdev = ",".join(["user,id=net0", *(f"hostfwd={rule}" for rule in rules)])
    qemu = subprocess.run(
        ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "none", "-S", "-netdev", netdev],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert qemu.returncode == 1
    told = explain_forward_failure(qemu.stderr, nic.link)
    assert told is not None
    assert told.startswith("port 'http': tcp port ")
    assert f"{taken.host_port} of the host is not to be had" in told
