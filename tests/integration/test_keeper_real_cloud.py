"""A keeper and a real Cloud Hypervisor, as far as that goes without a guest: its log, events, API and pty are real."""

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.integration.keepers import OPTIONS, Kept, cloud_plan, kept_by
from vmlib import process
from vmlib.keeper import client
from vmlib.keeper.plan import Cage, KeeperPlan

UID = 210_000


@pytest.fixture
def plan(short_dir: Path) -> KeeperPlan:
    binary = needs.find_cloud_hypervisor()
    if binary is None:
        pytest.skip("no cloud-hypervisor on PATH and CHV_CLOUD_HYPERVISOR is not set")
    if os.geteuid() != 0 or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/kvm")
    groups = [os.stat("/dev/kvm").st_gid]
    return replace(cloud_plan(short_dir, [str(binary), *OPTIONS]), uid=UID, gid=UID, groups=groups)


@pytest.fixture
def created(plan: KeeperPlan) -> Iterator[Kept]:
    """With a machine that was created, and whose console is read."""
    with kept_by(plan) as one:
        config = {
            "payload": {"kernel": "/nowhere"},
            "memory": {"size": 64 << 20},
            "serial": {"mode": "Pty"},
            "console": {"mode": "Off"},
            "vsock": {"cid": 3, "socket": str(one.run.vsock)},
        }
        assert _call(one, "PUT", "vm.create", config)[0] == 204
        one.show_console(json.loads(_call(one, "GET", "vm.info")[1])["config"]["serial"]["file"])
        one.lease.commit()
        yield one


def _call(one: Kept, method: str, endpoint: str, body: Any = None) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(one.run.root / "api"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = sock
        connection.request(method, f"/api/v1/{endpoint}", None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_sigterm_from_a_stranger_is_no_success(created: Kept) -> None:
    os.kill(created.vmm.pid, signal.SIGTERM)
    record = created.end()
    assert (record.exit_code, record.signal) == (143, 15)


def test_told_to_quit_from_outside_is_no_success(created: Kept) -> None:
    assert _call(created, "PUT", "vmm.shutdown")[0] == 200
    record = created.end()
    assert (record.exit_code, record.message) == (1, "the VMM was told to quit from outside")


def test_a_press_of_the_power_button_is_heard(created: Kept) -> None:
    _call(created, "PUT", "vm.power-button")
    created.until_told("chv: power button pressed")
    assert created.kinds() == ["power button"]


def test_another_keeper_finds_the_console_by_the_api(created: Kept) -> None:
    created.kill_keeper()
    assert client.adopt(created.run) is True
    fds = Path(f"/proc/{created.keeper().pid}/fd")
    created.until(lambda: any(_target(fd).startswith("/dev/pts/") for fd in fds.iterdir()), "the console")
    os.kill(created.vmm.pid, signal.SIGTERM)
    assert created.end().exit_code == 143


def test_the_other_side_of_the_console_is_held_with_ours(created: Kept) -> None:
    fds = Path(f"/proc/{created.keeper().pid}/fd")
    assert sum(_target(fd).endswith("/ptmx") for fd in fds.iterdir()) == 1


def _target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except FileNotFoundError:
        return ""


def test_many_calls_do_not_fill_its_log(created: Kept) -> None:
    """Each leaves a line; a log that nobody takes stops the VMM after some forty."""
    for _ in range(300):
        assert _call(created, "GET", "vmm.ping")[0] == 200
    assert "VmmPing" not in created.err.text


def test_one_without_kvm_says_why(plan: KeeperPlan) -> None:
    with kept_by(replace(plan, cage=Cage())) as one:  # in which nobody has put the device
        message = one.lease.receive(10)
        assert message is not None
        reason = message["exit"]["message"]
        assert reason.startswith("the VMM ended with status 1: Failed to open hypervisor interface")
        assert "no supported hypervisor" in reason
        assert process.wait_gone(one.vmm, 5)
