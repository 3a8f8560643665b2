"""The fake cloud-hypervisor itself: that it does what the real one does, and misbehaves as told.

`session.Session` talks to it by hand, so that no code of ours can hide what it says.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ch.install import install
from tests.fakes.ch.session import Answer, Session
from tests.guest.build import Guest

READY = "chv test guest: ready"
DEVICES = ["root", "vsock0", "__rng"]


class Fake:
    """Starts fakes in a directory of its own, and knows a configuration that boots the test guest."""

    def __init__(self, directory: Path, guest: Guest, stack: ExitStack) -> None:
        self.directory = directory
        self._guest = guest
        self._stack = stack
        self._count = 0

    def start(
        self,
        *words: str,
        guest: str = "light",
        args: tuple[str, ...] = ("-v",),
        read_stderr: bool = True,
        **behaviour: Any,
    ) -> Session:
        """`words` are misbehaviours."""
        self._count += 1
        place = self.directory / f"fake{self._count}"
        place.mkdir()
        executable = install(place, guest=guest, misbehave=words, **behaviour)
        session = Session(executable, place, words=args, read_stderr=read_stderr)
        self._stack.callback(session.close)
        return session

    def config(self, words: str = "", *, vcpus: int = 1, **changes: Any) -> dict[str, Any]:
        disk = self.directory / "disk.raw"
        if not disk.exists():
            with disk.open("wb") as made:
                made.truncate(8 << 20)
        one = {
            "payload": {
                "kernel": str(self._guest.kernel),
                "initramfs": str(self._guest.initrd),
                "cmdline": f"console=ttyS0 quiet panic=-1 no_timer_check {words}",
            },
            "cpus": {"boot_vcpus": vcpus, "max_vcpus": vcpus},
            "memory": {"size": 256 << 20},
            "disks": [{"id": "root", "path": str(disk), "image_type": "Raw"}],
            "serial": {"mode": "Pty"},
            "console": {"mode": "Off"},
            "vsock": {"id": "vsock0", "cid": 3, "socket": str(self.directory / "vsock")},
            "pvpanic": True,
        }
        return one | changes

    def boot(self, session: Session, words: str = "", **changes: Any) -> Session:
        session.must("vm.create", self.config(words, **changes))
        session.open_console()
        session.must("vm.boot")
        return session


@pytest.fixture
def fake(short_dir: Path, guest: Guest) -> Iterator[Fake]:
    with ExitStack() as stack:
        yield Fake(short_dir, guest, stack)


@pytest.fixture(params=["light", "qemu"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def chain(answer: Answer) -> list[str]:
    found = answer.json
    assert isinstance(found, list)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# a machine's life, with a played guest and a real one


def test_boots_and_powers_off_in_order(fake: Fake, engine: str) -> None:
    one = fake.boot(fake.start(guest=engine))
    one.until_line(READY)
    assert one.info()["state"] == "Running"
    one.must("vm.power-button")
    assert one.wait() == 0
    assert one.events() == [
        "vmm/starting",
        "vm/booting",
        "vm/booted",
        *(f"virtio-device/activated {name}" for name in DEVICES),
        *(f"virtio-device/reset {name}" for name in DEVICES),
        "vm/shutdown",
        "vm/deleted",
        "vmm/shutdown",
    ]
    assert b"VM guest exit event" in one.stderr
    assert b"power button" in one.console
    assert not (fake.directory / "vsock").exists()


def test_a_guest_reboot_goes_on_in_the_same_process_with_new_threads_and_a_new_pty(fake: Fake, engine: str) -> None:
    one = fake.boot(fake.start(guest=engine), "reboot-once say=again", vcpus=2)
    before, pty = one.threads(), one.info()["config"]["serial"]["file"]
    assert {"cloud-hyperviso", "vmm", "serial-manager", "vcpu0", "vcpu1", "root_q0"} <= before.keys()
    one.until_event("vm/rebooted")
    assert one.open_console() != pty or one.events().count("vm/rebooted") == 1
    one.until_line("say again")
    after = one.threads()
    assert {before["vcpu0"], before["vcpu1"]}.isdisjoint(after.values())
    assert after["cloud-hyperviso"] == before["cloud-hyperviso"] == one.process.pid
    events = one.events()
    assert events.count("vm/rebooting") == events.count("vm/rebooted") == 1
    assert events[events.index("vm/rebooting") - 1] == f"virtio-device/reset {DEVICES[-1]}"


def test_a_panic_is_told_and_the_guest_reboots_at_once(fake: Fake, engine: str) -> None:
    one = fake.boot(fake.start(guest=engine), "sleep=1 panic")
    one.until_event("vm/rebooting")
    events = one.events()
    assert events[events.index("guest/panic panic") + 1] == "vm/rebooting"


def test_pause_keeps_the_button_for_later(fake: Fake, engine: str) -> None:
    one = fake.boot(fake.start(guest=engine), "tick")
    one.until_line("tick 3")
    one.must("vm.pause")
    assert one.info()["state"] == "Paused"
    one.must("vm.power-button")
    for _ in range(5):
        one.pump(0.1)
    seen = len(one.console)
    for _ in range(8):
        one.pump(0.1)
    assert len(one.console) == seen
    one.must("vm.resume")
    assert one.wait() == 0
    assert one.events()[-1] == "vmm/shutdown"


def test_the_exit_code_comes_over_vsock(fake: Fake, engine: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(fake.directory / "vsock_5000"))
        listener.listen(1)
        listener.settimeout(60)
        fake.boot(fake.start(guest=engine), "exit=7")
        with listener.accept()[0] as guest:
            guest.settimeout(60)
            words = b""
            while piece := guest.recv(100):
                words += piece
    assert words == b"exit 7\n"


def test_what_is_typed_reaches_the_guest(fake: Fake, engine: str) -> None:
    one = fake.boot(fake.start(guest=engine), "echo")
    one.until_line(READY)
    time.sleep(0.5)
    one.type("hello\n")
    one.until_line("echo: hello")


def test_a_late_reader_misses_nothing_and_stalls_nobody(fake: Fake, engine: str) -> None:
    one = fake.start(guest=engine)
    one.must("vm.create", fake.config("flood=130000 say=done"))
    one.must("vm.boot")
    one.until_event("virtio-device/activated root")
    time.sleep(1 if engine == "light" else 8)
    one.open_console()
    one.until_line("say done")
    assert one.console.count(b"flood 0") == 1300


def test_counters_and_balloon_are_the_guests(fake: Fake) -> None:
    config = fake.config("tick", balloon={"id": "balloon0", "size": 0})
    one = fake.start(guest="qemu")
    one.must("vm.create", config)
    one.open_console()
    one.must("vm.boot")
    one.until_line("tick 1")
    counters = one.get("vm.counters").json
    assert counters["root"]["read_bytes"] > 0
    assert one.info()["memory_actual_size"] == 256 << 20
    one.must("vm.resize", {"desired_balloon": 32 << 20})


def test_an_overlay_boots_with_its_backing_file_named_and_not_without(fake: Fake) -> None:
    fake.config()
    overlay = fake.directory / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(fake.directory / "disk.raw"), str(overlay)],
        check=True,
    )
    disk = {"id": "root", "path": str(overlay), "image_type": "Qcow2"}
    for changes, last in (
        ({"disks": [disk]}, "Maximum disk nesting depth exceeded"),
        (
            {"disks": [{**disk, "image_type": "Raw"}]},
            "Disk image type does not match expected type: specified = raw, detected = qcow2",
        ),
        ({"disks": [{**disk, "backing_files": True}], "landlock_enable": True}, "Permission denied (os error 13)"),
    ):
        one = fake.start()
        one.must("vm.create", fake.config(**changes))
        answer = one.put("vm.boot")
        assert (answer.status, chain(answer)[-1]) == (500, last)
        one.must("vmm.shutdown")
    rules = [{"path": str(fake.directory / "disk.raw"), "access": "r"}]
    changes = {"disks": [{**disk, "backing_files": True}], "landlock_enable": True, "landlock_rules": rules}
    one = fake.boot(fake.start(guest="qemu"), "poweroff", **changes)
    assert one.wait() == 0


# ---------------------------------------------------------------------------------------------------------------------
# threads and their places


def test_a_vcpu_is_where_its_affinity_says_after_each_boot(fake: Fake) -> None:
    cpu = max(os.sched_getaffinity(0))
    cpus = {"boot_vcpus": 1, "max_vcpus": 1, "affinity": [{"vcpu": 0, "host_cpus": [cpu]}]}
    one = fake.boot(fake.start(), "", cpus=cpus)
    assert os.sched_getaffinity(one.threads()["vcpu0"]) == {cpu}
    one.must("vm.reboot")
    assert os.sched_getaffinity(one.threads()["vcpu0"]) == {cpu}


def test_a_boot_outside_the_cpuset_hangs_and_only_sigkill_ends_it(fake: Fake) -> None:
    cpus = {"boot_vcpus": 1, "max_vcpus": 1, "affinity": [{"vcpu": 0, "host_cpus": [1000]}]}
    one = fake.start(args=())
    one.must("vm.create", fake.config(cpus=cpus))
    with pytest.raises(TimeoutError):
        one.put("vm.boot", timeout_s=1)
    one.until(lambda: b"Failed scheduling the vCPU 0 on the expected CPU set" in one.stderr, "the reason")
    with pytest.raises(TimeoutError):
        one.get("vmm.ping", timeout_s=0.5)
    one.process.terminate()
    time.sleep(0.5)
    assert one.process.poll() is None
    assert one.events() == ["vmm/starting", "vm/booting"]


# ---------------------------------------------------------------------------------------------------------------------
# the API


def test_a_body_that_does_not_fit_is_refused_and_reported(fake: Fake) -> None:
    report = fake.directory / "report"
    one = fake.start(report=str(report))
    answer = one.put("vm.create", fake.config(nested=False))
    assert answer.status == 400
    assert chain(answer)[1] == "chfake: VmConfig.nested: VmConfig has no such property"
    assert report.read_text() == "vm.create: VmConfig.nested: VmConfig has no such property\n"


def test_unknown_keys_are_dropped_without_a_word_when_not_strict(fake: Fake) -> None:
    one = fake.start(strict=False)
    one.must("vm.create", fake.config(nested=False, net=[{"id": "n", "fds": [7]}]))
    config = one.info()["config"]
    assert "nested" not in config
    assert "fds" not in config["net"][0]


@pytest.mark.parametrize(("version", "status"), [("51.2", 500), ("52.0", 500), ("53.0", 404)])
def test_no_vm_is_said_by_version(fake: Fake, version: str, status: int) -> None:
    one = fake.start(version=version)
    answer = one.get("vm.info")
    assert (answer.status, chain(answer)) == (
        status,
        ["Error from API", "The VM info is not available", "VM is not created"],
    )
    assert one.get("vmm.ping").json["build_version"] == f"v{version}"


def test_descriptors_come_with_the_head_or_the_body(fake: Fake) -> None:
    one = fake.start()
    one.must("vm.create", fake.config(vcpus=2))
    with open("/dev/null", "r+b", buffering=0) as null:
        fd = null.fileno()
        for name, body, fds, told in (
            ("one", {"num_queues": 2}, [fd], ""),
            ("two", {"num_queues": 4}, [fd, fd], ""),
            ("none", {"num_queues": 2}, [], ""),
            (
                "three",
                {"num_queues": 2},
                [fd, fd],
                "Number of queues (2) to virtio_net does not match the number of FDs (4)",
            ),
            ("one", {"num_queues": 2}, [fd], "Identifier one is not unique"),
            ("root", {"num_queues": 2}, [fd], "Identifier root is not unique"),
            ("__x", {"num_queues": 2}, [fd], "Identifier __x is not invalid"),
            ("six", {"num_queues": 6}, [fd] * 3, "Queue count (6) must not exceed boot vCPUs (2)"),
        ):
            answer = one.put("vm.add-net", {"id": name, **body}, fds=fds)
            assert answer.status == (500 if told else 204), answer
            assert not told or chain(answer)[-1] == told
        data = b'{"id":"late","num_queues":2}'
        with one.connect() as sock:
            sock.sendall(b"PUT /api/v1/vm.add-net HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data))
            time.sleep(0.1)
            socket.send_fds(sock, [data], [fd])
            assert sock.recv(100).startswith(b"HTTP/1.1 204")
    assert [net["id"] for net in one.info()["config"]["net"]] == ["one", "two", "none", "late"]
    answer = one.put("vm.boot")
    assert chain(answer)[-2:] == ["Ioctl failed (2147767506)", "Inappropriate ioctl for device (os error 25)"]


def test_the_eleventh_connection_is_turned_away(fake: Fake) -> None:
    one = fake.start()
    with ExitStack() as stack:
        ten = [stack.enter_context(one.connect()) for _ in range(10)]
        for sock in ten:
            sock.sendall(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        with one.connect() as eleventh:
            assert eleventh.recv(1000).startswith(b"HTTP/1.1 503")
            assert eleventh.recv(1000) == b""
        ten[3].sendall(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n")
        assert ten[3].recv(1000).startswith(b"HTTP/1.1 200")


def test_a_second_machine_on_a_writable_disk_is_refused(fake: Fake) -> None:
    fake.boot(fake.start())
    second = fake.start()
    second.must("vm.create", fake.config(vsock={"cid": 3, "socket": str(fake.directory / "other")}))
    answer = second.put("vm.boot")
    assert chain(answer)[-1] == "Error locking disk images: Another instance likely holds a lock"


# ---------------------------------------------------------------------------------------------------------------------
# ends


def test_signals_and_shutdown_are_orderly_without_device_resets(fake: Fake) -> None:
    ends: tuple[Callable[[Session], None], ...] = (
        lambda one: one.process.terminate(),
        lambda one: one.process.send_signal(signal.SIGINT),
        lambda one: one.must("vmm.shutdown"),
    )
    for end in ends:
        one = fake.boot(fake.start())
        one.until_line(READY)
        end(one)
        assert one.wait() == 0
        assert one.events()[-4:] == [
            f"virtio-device/activated {DEVICES[-1]}",
            "vm/shutdown",
            "vm/deleted",
            "vmm/shutdown",
        ]


def test_no_shutdown_keeps_the_process(fake: Fake) -> None:
    one = fake.boot(fake.start(args=("-v", "--no-shutdown")), "poweroff")
    one.until_event("vm/shutdown")
    assert one.info()["state"] == "Created"
    assert one.events()[-1] == "vm/shutdown"


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--nope"], 2), ([], 2), (["--serial", "pty"], 2), (["--api-socket", "path=/nowhere/x"], 1), (["--version"], 0)],
)
def test_exit_statuses_of_the_command_line(fake: Fake, words: list[str], status: int) -> None:
    place = fake.directory / "cli"
    place.mkdir()
    done = subprocess.run([install(place), *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert status or done.stdout == "cloud-hypervisor v53.0\n"


def test_a_second_process_on_one_socket_ends_with_1(fake: Fake) -> None:
    place = fake.directory / "cli"
    place.mkdir()
    words = [str(install(place)), "--api-socket", f"path={place / 'api'}"]
    first = subprocess.Popen(words)
    try:
        while not (place / "api").exists():
            time.sleep(0.02)
        assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    finally:
        first.terminate()
        assert first.wait(10) == 0
    assert (place / "api.lock").exists()
    assert not (place / "api").exists()


# ---------------------------------------------------------------------------------------------------------------------
# misbehaviour


def _hangs(one: Session) -> None:
    with pytest.raises(TimeoutError):
        one.put("vm.boot", timeout_s=0.5)
    one.process.terminate()
    time.sleep(0.3)
    assert one.process.poll() is None


def _garbage(one: Session) -> None:
    with pytest.raises(ValueError, match="no answer of a server"):
        # Bytes enough that they might hold the end of a head.
        one.put("vm.boot", timeout_s=2)


def _fails(one: Session) -> None:
    answer = one.put("vm.boot")
    assert (answer.status, chain(answer)) == (500, ["Error from API", "The VM could not boot", "chfake: told so"])


def _slow(one: Session) -> None:
    start = time.monotonic()
    one.must("vm.boot")
    assert time.monotonic() - start > 1


def _ends(status: int) -> Callable[[Session], None]:
    def check(one: Session) -> None:
        with pytest.raises(ConnectionError):
            one.put("vm.boot")
        assert one.wait() == status

    return check


def _ends_later(status: int) -> Callable[[Session], None]:
    def check(one: Session) -> None:
        one.must("vm.boot")
        assert one.wait() == status

    return check


def _half(one: Session) -> None:
    with pytest.raises(ConnectionError):
        one.put("vm.boot")
    assert one.info()["state"] == "Running"


def _ignores_the_button(one: Session) -> None:
    one.must("vm.boot")
    one.until_line(READY)
    one.must("vm.power-button")
    time.sleep(0.5)
    assert one.info()["state"] == "Running"


def _dead_boot(one: Session) -> None:
    one.must("vm.boot")
    time.sleep(0.5)
    one.pump()
    assert one.console == b""
    assert one.info()["state"] == "Running"


def _hangs_at_reboot(one: Session) -> None:
    one.must("vm.boot")
    with pytest.raises(TimeoutError):
        one.put("vm.reboot", timeout_s=0.5)
    assert one.events()[-1] == "vm/rebooting"


@pytest.mark.parametrize(
    ("word", "check"),
    [
        ("hang=vm.boot", _hangs),
        ("garbage=vm.boot", _garbage),
        ("half=vm.boot", _half),
        ("fail=vm.boot", _fails),
        ("slow=vm.boot:1.1", _slow),
        ("exit=vm.boot", _ends(0)),
        ("exit=vm.boot:1", _ends(1)),
        ("signal=vm.boot:SEGV", _ends(-signal.SIGSEGV)),
        ("ending=vm.boot", _ends(0)),
        ("exit-after=0.2", _ends_later(0)),
        ("signal-after=0.2:BUS", _ends_later(-signal.SIGBUS)),
        ("ignore-button", _ignores_the_button),
        ("dead-boot", _dead_boot),
        ("reboot-hang", _hangs_at_reboot),
    ],
)
@pytest.mark.parametrize("said_by", ["file", "cmdline"])
def test_misbehaves_as_told(fake: Fake, word: str, check: Callable[[Session], None], said_by: str) -> None:
    one = fake.start(*([word] if said_by == "file" else []))
    one.must("vm.create", fake.config(f"chfake.{word}" if said_by == "cmdline" else ""))
    one.open_console()
    check(one)


def test_a_failed_create_keeps_the_config_when_told_so(fake: Fake) -> None:
    one = fake.start("keep-config")
    assert one.put("vm.create", fake.config()).status == 500
    assert one.info()["state"] == "Created"
    assert chain(one.put("vm.create", fake.config()))[-1] == "VM is already created"


def test_a_full_stderr_blocks_until_it_is_read(fake: Fake) -> None:
    one = fake.start("stderr=vmm.ping:200000", read_stderr=False)
    with pytest.raises(TimeoutError):
        one.get("vmm.ping", timeout_s=1)
    one.drain_stderr()
    with pytest.raises(TimeoutError):  # it writes as much again for each
        one.get("vmm.ping", timeout_s=0.2)
    one.until(lambda: len(one.stderr) >= 400_000, "all of it")


def test_an_error_of_40_kb_is_the_vmms_end(fake: Fake) -> None:
    one = fake.start()
    disk = {"id": "root", "path": "/" + "x" * 41_000, "image_type": "Raw"}
    one.must("vm.create", fake.config(disks=[disk]))
    with pytest.raises(ConnectionError):
        one.put("vm.boot")
    assert one.wait() == -signal.SIGSYS
    assert b"Possible seccomp violation" in one.stderr


def test_a_guest_dies_with_its_vmm(fake: Fake) -> None:
    one = fake.boot(fake.start(guest="qemu"))
    children = Path(f"/proc/{one.process.pid}/task").glob("*/children")
    qemu = [int(pid) for path in children for pid in path.read_text().split()]
    assert len(qemu) == 1
    one.process.kill()
    one.process.wait()
    one.until(lambda: not Path(f"/proc/{qemu[0]}").exists(), "the end of QEMU", 5)
