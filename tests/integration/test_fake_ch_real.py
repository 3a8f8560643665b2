"""The fake beside a real cloud-hypervisor: the same calls, the same answers. No guest runs, so KVM need not work."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.fakes.ch.install import install
from tests.fakes.ch.session import Answer, Session, receive

VERSION = re.compile(r"v(\d+\.\d+)")


@pytest.fixture
def real() -> Path:
    found = needs.find_cloud_hypervisor()
    if found is None:
        pytest.skip("needs cloud-hypervisor: none on PATH and CHV_CLOUD_HYPERVISOR is not set")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs cloud-hypervisor: it does not start without /dev/kvm")
    return found


@pytest.fixture
def both(real: Path, short_dir: Path) -> Iterator[tuple[Session, Session]]:
    """The fake, which plays the release of the real one, and the real one."""
    said = subprocess.run([real, "--version"], capture_output=True, text=True, check=True).stdout
    version = VERSION.search(said)
    assert version is not None
    sessions = []
    try:
        for name in ("fake", "real"):
            place = short_dir / name
            place.mkdir()
            executable = install(place, version=version[1], strict=False) if name == "fake" else real
            sessions.append(Session(executable, place))
        yield sessions[0], sessions[1]
    finally:
        for session in sessions:
            session.close()


def seen(answer: Answer, session: Session) -> tuple[int, object]:
    """Status and body, without what differs from process to process."""
    text = answer.body.decode().replace(str(session.directory), "DIR")
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, text


def config(session: Session, **changes: Any) -> dict[str, Any]:
    one = {
        "payload": {"kernel": "/nowhere/vmlinuz", "cmdline": "console=ttyS0"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 256 << 20},
        "serial": {"mode": "Pty"},
        "console": {"mode": "Off"},
        "vsock": {"cid": 3, "socket": str(session.directory / "vsock")},
        "pvpanic": True,
    }
    return one | changes


CALLS: list[tuple[str, str]] = [
    *(("PUT", f"vm.{name}") for name in ("boot", "pause", "resume", "shutdown", "reboot", "power-button", "nmi")),
    ("GET", "vm.info"),
    ("GET", "vm.counters"),
    ("PUT", "vm.info"),
    ("GET", "vm.boot"),
    ("PUT", "vm.nothing"),
    ("PUT", "vm.create"),
    ("PUT", "vm.add-net"),
    ("PUT", "vm.delete"),
]


def test_every_call_without_a_machine(both: tuple[Session, Session]) -> None:
    for verb, name in CALLS:
        fake, true = (seen(one.call(verb, name), one) for one in both)
        assert fake == true, f"{verb} {name}"
    fake, true = (seen(one.put("vm.boot", {}), one) for one in both)
    assert fake == true
    for name, body in (("vm.resize", {"desired_vcpus": 2}), ("vm.remove-device", {"id": "x"}), ("vm.add-net", {})):
        fake, true = (seen(one.put(name, body), one) for one in both)
        assert fake == true, name
    assert both[0].events() == both[1].events()


def test_every_call_with_a_machine_that_does_not_run(both: tuple[Session, Session]) -> None:
    for one in both:
        one.must("vm.create", config(one))
    for verb, name in CALLS[1:]:
        if name in ("vm.info", "vm.delete") and verb != "PUT":
            continue
        fake, true = (seen(one.call(verb, name), one) for one in both)
        assert fake == true, f"{verb} {name}"
    assert both[0].events() == both[1].events()


@pytest.mark.parametrize(
    "data",
    [
        b"POST /api/v1/vm.boot HTTP/1.1\r\n\r\n",
        b"garbage\r\n\r\n",
        b"GET /api/v1/vmm.ping HTTP/1.0\r\n\r\n",
        b"GET /elsewhere HTTP/1.1\r\n\r\n",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_every_shape_of_refusal(both: tuple[Session, Session], data: bytes) -> None:
    heads = []
    for one in both:
        with one.connect() as sock:
            sock.sendall(data)
            answer = receive(sock)
        heads.append((answer.status, re.sub(rb'"(pid|build_version)":("[^"]*"|\d+)', b"", answer.body)))
    assert heads[0] == heads[1]


def test_the_stored_config_is_filled_in_alike(both: tuple[Session, Session]) -> None:
    infos = []
    for one in both:
        disk = {"id": "root", "path": "/nowhere/disk", "image_type": "Raw"}
        one.must(
            "vm.create", config(one, disks=[disk], unknown=1, platform={"serial_number": "x"}, balloon={"size": 0})
        )
        info = json.loads(json.dumps(one.info()).replace(str(one.directory), "DIR"))
        assert info["config"]["serial"].pop("file").startswith("/dev/pts/")
        infos.append(info)
    fake, true = infos
    differing = {
        key
        for key in fake["config"].keys() | true["config"].keys()
        if fake["config"].get(key) != true["config"].get(key)
    }
    # The real one's disks tell of io_uring; what stands behind a platform is not filled in.
    assert differing <= {"disks", "platform"}, [(fake["config"].get(key), true["config"].get(key)) for key in differing]
    assert fake["config"]["disks"][0].items() <= true["config"]["disks"][0].items()
    assert fake["config"]["platform"].items() <= true["config"]["platform"].items()
    assert (fake["state"], fake["memory_actual_size"]) == (true["state"], true["memory_actual_size"])


def test_interfaces_are_judged_alike(both: tuple[Session, Session]) -> None:
    for one in both:
        one.must("vm.create", config(one, disks=[{"id": "root", "path": "/nowhere/disk"}]))
    with open("/dev/null", "r+b", buffering=0) as null:
        for name, queues, count in (
            ("net0", 2, 1),
            ("net0", 2, 1),
            ("net1", 2, 2),
            ("__x", 2, 1),
            ("root", 2, 1),
            ("net2", 4, 2),
            ("net3", 2, 0),
        ):
            fds = [null.fileno()] * count
            fake, true = (seen(one.put("vm.add-net", {"id": name, "num_queues": queues}, fds=fds), one) for one in both)
            assert fake == true, (name, queues, count)
    keys = []
    for one in both:
        first = one.info()["config"]["net"][0]
        keys.append({key: value for key, value in first.items() if key not in ("mac", "host_mac", "fds")})
    assert keys[0].items() <= keys[1].items()


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": {"kernel": "/nowhere/vmlinuz"}},
        {"cpus": {"boot_vcpus": 2, "max_vcpus": 1}},
        {"payload": {}},
        {"disks": [{"path": "/nowhere/disk", "image_type": "Raw"}]},
        {"disks": [{"path": "DIR/raw", "image_type": "Qcow2"}]},
        {"disks": [{"path": "DIR/qcow2", "image_type": "Raw"}]},
        {"disks": [{"path": "DIR/overlay", "image_type": "Qcow2"}]},
        {"serial": {"mode": "Socket", "socket": "DIR/taken"}},
    ],
)
def test_a_boot_that_fails_says_the_same(both: tuple[Session, Session], changes: dict[str, Any]) -> None:
    answers = []
    for one in both:
        (one.directory / "taken").touch()
        with (one.directory / "raw").open("wb") as raw:
            raw.truncate(1 << 20)
        image = ["qemu-img", "create", "-q", "-f", "qcow2"]
        subprocess.run([*image, str(one.directory / "qcow2"), "1M"], check=True)
        below = ["-b", str(one.directory / "raw"), "-F", "raw"]
        subprocess.run([*image, *below, str(one.directory / "overlay")], check=True)
        body = json.loads(json.dumps(config(one, **changes)).replace("DIR", str(one.directory)))
        created = one.put("vm.create", body)
        answers.append([seen(created, one), seen(one.put("vm.boot"), one) if created.status == 204 else None])
    assert answers[0] == answers[1]


def _terminate(one: Session) -> None:
    one.process.terminate()


def _shut_down(one: Session) -> None:
    one.must("vmm.shutdown")


@pytest.mark.parametrize("end", [_terminate, _shut_down])
def test_ends_alike(both: tuple[Session, Session], end: Callable[[Session], None]) -> None:
    for one in both:
        one.must("vm.create", config(one))
        end(one)
    assert both[0].wait() == both[1].wait() == 0
    fake, true = (one.events() for one in both)
    assert true
    assert true == fake[: len(true)]  # the real one ends without waiting until its monitor has written the last ones


@pytest.mark.parametrize(
    "words",
    [
        ["--nope"],
        [],
        ["--serial", "pty"],
        ["--seccomp", "what"],
        ["--api-socket"],
        ["--api-socket", "path=/nowhere/x"],
        ["--version"],
    ],
)
def test_the_command_line_ends_alike(real: Path, short_dir: Path, words: list[str]) -> None:
    statuses = [
        subprocess.run([one, *words], capture_output=True, timeout=20, check=False).returncode
        for one in (install(short_dir), real)
    ]
    assert statuses[0] == statuses[1]
