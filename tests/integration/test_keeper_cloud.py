"""Keepers of Cloud Hypervisor, with real processes and a VMM that a test drives: no guest, the whole dialect."""

import contextlib
import functools
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import driven_vmm
from tests.integration.keepers import Driven, driven_by, driven_plan
from vmlib import process
from vmlib.errors import HypervisorError
from vmlib.keeper import client
from vmlib.keeper.plan import HelperPlan, KeeperPlan
from vmlib.keeper.verdict import Evidence
from vmlib.paths import RunPaths

PANIC = "Kernel panic - not syncing: sysrq triggered crash"


@pytest.fixture
def plan(short_dir: Path) -> KeeperPlan:
    return driven_plan(short_dir)


@pytest.fixture
def vmm(plan: KeeperPlan) -> Iterator[Driven]:
    with driven_by(plan) as one:
        one.boot()
        yield one


# ---------------------------------------------------------------------------------------------------------------------
# ends


def test_a_guest_that_powers_itself_off_ends_with_0(vmm: Driven) -> None:
    vmm("log", "INFO VM guest exit event")
    vmm.power_off()
    record = vmm.end()
    assert (record.exit_code, record.signal, record.message) == (0, 0, "")


@pytest.mark.parametrize(("said", "code"), [("exit 7\n", 7), ("exit 0\n", 0), ("noise\nexit 255\nexit 1\n", 255)])
def test_a_guest_says_its_exit_code_over_vsock(vmm: Driven, said: str, code: int) -> None:
    vmm("call", [str(vmm.run.guest_channel), said])
    vmm.power_off()
    assert vmm.end().exit_code == code


def test_a_code_without_a_line_break_counts_when_the_guest_hangs_up(vmm: Driven) -> None:
    vmm("call", [str(vmm.run.guest_channel), "exit 3"])
    vmm.power_off()
    assert vmm.end().exit_code == 3


def test_noise_on_many_connections_does_not_drown_the_exit_code(vmm: Driven) -> None:
    for _ in range(40):
        vmm("call", [str(vmm.run.guest_channel), "\xff\x00" * 5000 + "exit\n" + "x" * 10_000])
    vmm("call", [str(vmm.run.guest_channel), "exit 9\n"])
    vmm.power_off()
    assert vmm.end().exit_code == 9


def test_a_guest_that_said_exit_and_stays_is_ended_with_that_code(vmm: Driven) -> None:
    vmm("call", [str(vmm.run.guest_channel), "exit 4\n"])
    record = vmm.end()
    assert (record.exit_code, record.signal, record.message) == (4, 0, "")


def _hear(vmm: Driven, channel: socket.socket, wanted: bytes) -> None:
    heard = bytearray()

    def listen() -> bool:
        with contextlib.suppress(BlockingIOError):
            heard.extend(channel.recv(1 << 16))
        return wanted in heard

    vmm.until(listen, f"{wanted!r} from the guest")


def test_the_guests_agent_is_called_until_it_answers_and_again_after_a_reboot(vmm: Driven) -> None:
    with client.open_guest_channel(vmm.run.control, timeout_s=5.0) as channel:
        channel.send(b"lost, for nobody listens yet\n")
        vmm("listen", str(vmm.run.vsock))
        vmm.until(lambda: vmm("answer", "welcome\n"), "a call")
        _hear(vmm, channel, b"welcome\n")
        channel.send(b"hello\n")
        _hear(vmm, channel, b"hello\n")
        vmm("hang_up", True)
        vmm.until(lambda: vmm("answer", "welcome back\n"), "another call")
        _hear(vmm, channel, b"welcome back\n")
        vmm("answer", "exit 8\n")
        _hear(vmm, channel, b"exit 8\n")
    vmm.until(lambda: not vmm("answer", ""), "the end of the call, which nobody wants any more")
    vmm.power_off()
    assert vmm.end().exit_code == 8


def test_a_socket_that_is_not_the_vmms_is_not_called(vmm: Driven) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        elsewhere = vmm.directory / "elsewhere"
        listener.bind(str(elsewhere))
        listener.listen()
        listener.settimeout(2.5)
        vmm.run.vsock.symlink_to(elsewhere)
        with client.open_guest_channel(vmm.run.control, timeout_s=5.0), pytest.raises(TimeoutError):
            listener.accept()


def test_status_0_without_an_end_of_the_guest_is_a_failure(vmm: Driven) -> None:
    vmm("log", "ERROR vcpu0 thread panicked")
    vmm.last("exit", 0)
    record = vmm.end()
    assert record.exit_code == 1
    assert record.message == (
        "the VMM ended with status 0 before its guest had come to an end: vcpu0 thread panicked"
    )  # fmt: skip


def test_sigterm_from_a_stranger_is_no_success(vmm: Driven) -> None:
    vmm("log", "INFO VM exit event")
    for words in (["vm", "shutdown"], ["vm", "deleted"], ["vmm", "shutdown"]):
        vmm("event", words)
    vmm.last("exit", 0)
    record = vmm.end()
    assert (record.exit_code, record.signal) == (143, 15)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_vmm_that_is_killed_is_reported_as_that_signal(vmm: Driven, number: int) -> None:
    vmm.last("kill", number)
    record = vmm.end()
    assert (record.exit_code, record.signal) == (128 + number, number)


def test_a_violation_of_seccomp_is_named(vmm: Driven) -> None:
    vmm(
        "stderr",
        "\n==== Possible seccomp violation ====\nSyscall number: 49 (arch: 0xc000003e, tid: 12, thread: http-server)\n"
        "Try running with `strace -ff` to identify the cause\n",
    )
    vmm.last("kill", signal.SIGSYS)
    record = vmm.end()
    assert (record.exit_code, record.signal) == (159, 31)
    assert record.message == (
        "the VMM was killed by SIGSYS: seccomp allows it no system call 49 in thread http-server"
    )  # fmt: skip


def test_a_vmm_that_fails_says_why(vmm: Driven) -> None:
    vmm(
        "stderr",
        "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Error reboot\n  1: No space\n",
    )
    vmm.last("exit", 1)
    record = vmm.end()
    assert (record.exit_code, record.message) == (1, "the VMM ended with status 1: Error reboot: No space")


def test_a_vmm_that_does_not_come_up_says_why_to_whoever_starts_it(plan: KeeperPlan) -> None:
    with driven_by(plan) as one:
        one.connect()
        one("stderr", "Error: Cloud Hypervisor exited with the following error:\n  cannot open /dev/kvm\n")
        one.last("exit", 1)
        message = one.lease.receive(5.0)
        assert message is not None
        assert message["exit"]["message"] == "the VMM ended with status 1: cannot open /dev/kvm"
        assert "cannot open /dev/kvm" in message["stderr"]
    assert not Path(plan.exit_record).exists()


# ---------------------------------------------------------------------------------------------------------------------
# panic, reboot


def test_a_panic_is_acted_on_at_once_with_the_kernels_words(vmm: Driven) -> None:
    vmm("say", f"[    1.0] {PANIC}\r\n[    1.1] ---[ end\r\n")
    vmm("ignore_term", True)
    began = time.monotonic()
    vmm.last("event", ["guest", "panic", {"event": "panic"}])
    record = vmm.end()
    assert time.monotonic() - began < 1.5
    assert (record.exit_code, record.signal, record.message) == (1, 0, f"guest panic: {PANIC}")
    assert "---[ end" in vmm.out.text


def test_a_guest_that_is_about_to_write_its_dump_is_left_alone(vmm: Driven) -> None:
    vmm("event", ["guest", "panic", {"event": "crash_loaded"}])
    assert vmm.kinds() == []
    vmm.power_off()
    assert vmm.end().exit_code == 0


def test_a_panic_that_shall_restart_is_left_to_a_guest_that_reboots_itself(plan: KeeperPlan) -> None:
    with driven_by(replace(plan, on_panic="restart", on_reboot="exit")) as one:
        one.boot()
        one("event", ["guest", "panic", {"event": "panic"}])
        one("log", "INFO VM reset event")
        one.reboot()
        one.until(lambda: one.kinds() == ["panic", "rebooted"], "both events")
        time.sleep(1.5)
        assert not [call for call in one("calls", True) if "vm.reboot" in call]
        assert process.alive(one.vmm)


def test_a_panic_that_shall_restart_is_reset_where_the_guest_stands_still(plan: KeeperPlan) -> None:
    with driven_by(replace(plan, on_panic="restart")) as one:
        one.boot()
        one("event", ["guest", "panic", {"event": "panic"}])
        one.until(lambda: "PUT /api/v1/vm.reboot HTTP/1.1" in one("calls", True), "the reset", 5)
        one.reboot()
        one.until_told("chv: rebooted from outside")


def test_the_console_goes_on_over_reboots_and_each_is_one_event(vmm: Driven) -> None:
    for number in range(3):
        vmm("say", f"last words {number}\r\n")
        vmm("log", "INFO VM reset event")
        vmm.reboot()
        vmm("say", f"first words {number}\r\n")
        vmm.until_said(f"first words {number}\r\n")
        vmm("close_slave", True)
    assert vmm.out.text == "".join(f"last words {n}\r\nfirst words {n}\r\n" for n in range(3))
    assert vmm.kinds() == ["rebooted"] * 3
    assert vmm.err.text.count("chv: rebooted by the guest\n") == 3
    calls = vmm("calls", True)
    assert calls == ["GET /api/v1/vm.info HTTP/1.1"] * 3


def test_a_reboot_that_shall_be_the_end_is_success(plan: KeeperPlan) -> None:
    with driven_by(replace(plan, on_reboot="exit")) as one:
        one.boot()
        one("ignore_term", True)
        one.reboot()  # it was on its way already
        record = one.end()
        assert "rebooted" not in one.err.text
        assert (record.exit_code, record.signal, record.message) == (0, 0, "")


def test_a_reboot_that_hangs_is_ended_and_named(vmm: Driven) -> None:
    vmm("api", False)
    vmm("ignore_term", True)
    vmm("log", "ERROR Failed scheduling the vCPU 0 on the expected CPU set")
    vmm("event", ["vm", "rebooting"])
    began = time.monotonic()
    record = vmm.end()
    assert time.monotonic() - began > 9.0  # the message has the limit
    assert record.exit_code == 1
    assert record.message == (
        "the guest's reboot hung, the VMM was killed after 10 s: "
        "Failed scheduling the vCPU 0 on the expected CPU set"
    )  # fmt: skip


def test_the_last_words_of_a_vmm_that_dies_are_not_lost(vmm: Driven) -> None:
    if not int(_status(os.getpid())["CapEff"], 16) >> 19 & 1:
        pytest.skip("needs CAP_SYS_PTRACE")
    process.send_signal(vmm.keeper(), signal.SIGSTOP)  # as slow as a keeper can be
    vmm("say", "last words\r\n" * 300)
    vmm.last("kill", signal.SIGKILL)
    process.send_signal(vmm.keeper(), signal.SIGCONT)
    assert vmm.end().exit_code == 137
    assert vmm.out.text == "last words\r\n" * 300


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_an_api_that_is_silent_after_a_reboot_costs_no_byte_of_the_console(vmm: Driven) -> None:
    vmm("api", False)
    vmm.reboot()
    vmm("say", "words that wait\r\n")
    time.sleep(7.0)
    assert process.alive(vmm.vmm)
    vmm("api", True)
    vmm.until_said("words that wait\r\n")


# ---------------------------------------------------------------------------------------------------------------------
# console, logs, events


def test_what_is_typed_reaches_the_guest_as_it_is(vmm: Driven) -> None:
    with client.Connection.open(vmm.run.control) as connection:
        connection.ask("console", write=True)
        typed = b"a\x03b\rc\x7f\x04"
        connection._sock.sendall(typed)
        assert vmm("hear", len(typed)) == typed.decode()
        vmm("say", "x\ny")
        assert connection._sock.recv(100) == b"x\ny"


def test_a_flood_on_the_console_arrives_whole(vmm: Driven) -> None:
    text = "".join(f"line {number:06d} {'.' * 80}\n" for number in range(4000))
    for at in range(0, len(text), 100_000):
        vmm("say", text[at : at + 100_000])
        vmm.pump()
    vmm.until(lambda: len(vmm.out.text) >= len(text), "all of it")
    assert vmm.out.text == text


def test_a_pty_that_its_vmm_has_given_up_costs_nobody_his_keeper(vmm: Driven) -> None:
    main, slave = os.openpty()
    path = os.ttyname(slave)
    os.close(main)  # the other one keeps its name
    with pytest.raises(HypervisorError):
        vmm.show_console(path)
    os.close(slave)
    vmm("say", "still here\r\n")
    vmm.until_said("still here")


@pytest.mark.parametrize("path", ["/dev/pts/999999", "/dev/null", "/etc/passwd", "/dev/pts/../null", "/dev/pts/", ""])
def test_only_a_pty_is_taken_for_a_console(vmm: Driven, path: str) -> None:
    with pytest.raises(HypervisorError):
        vmm.show_console(path)
    vmm("say", "still here\r\n")
    vmm.until_said("still here")


def test_a_terminal_of_somebody_else_is_not_read(vmm: Driven) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a pty away")
    main, slave = os.openpty()
    try:
        os.fchown(slave, 12345, -1)
        with pytest.raises(HypervisorError, match="is no pty of uid"):
            vmm.show_console(os.ttyname(slave))
    finally:
        os.close(main)
        os.close(slave)


def test_people_see_warnings_and_no_chatter(vmm: Driven) -> None:
    vmm("log", "INFO chatter")
    vmm("log", "WARN a warning")
    vmm("log", "DEBUG chatter")
    vmm("log", "ERROR an error")
    vmm("stderr", "thread 'vcpu0' panicked\n")
    vmm("stdout", "a word\n")
    for words in ("a warning", "an error", "panicked", "a word"):
        vmm.until_told(words)
    assert "chatter" not in vmm.err.text


def test_a_log_without_end_neither_stops_the_vmm_nor_fills_the_keeper(vmm: Driven) -> None:
    for _ in range(30):
        vmm("stderr", "x" * 100_000)
        vmm("log", "INFO " + "y" * 60_000)
    rollup = Path(f"/proc/{vmm.keeper().pid}/statm").read_text().split()
    assert int(rollup[1]) * os.sysconf("SC_PAGE_SIZE") < 64 << 20
    vmm.power_off()
    assert vmm.end().exit_code == 0


def test_garbage_between_events_does_no_harm(vmm: Driven) -> None:
    vmm("raw_event", "garbage\n\n\xff\xfe\n\n" + "[" * 20_000 + "\n\n{}\n\n3\n\n" + '{"source": "vm", "ev')
    vmm("raw_event", "\n\n")
    for _ in range(5):
        vmm("raw_event", "z" * 30_000)
        time.sleep(0.05)
    vmm("raw_event", "\n\n")
    vmm("event", ["vm", "paused"])
    vmm("event", ["vm", "resumed"])
    vmm.until(lambda: vmm.kinds() == ["paused", "resumed"], "both events")


def test_a_press_of_the_power_button_is_told_once(vmm: Driven) -> None:
    for _ in range(3):
        vmm("log", "INFO API request event: VmPowerButton")
    vmm.until_told("chv: power button pressed")
    assert vmm.kinds() == ["power button"]


# ---------------------------------------------------------------------------------------------------------------------
# another keeper


def test_another_keeper_finds_console_events_and_channel_again(vmm: Driven) -> None:
    vmm("say", "before\r\n")
    vmm.until_said("before\r\n")
    vmm.kill_keeper()
    vmm("say", "between\r\n")
    vmm("event", ["vm", "paused"])
    assert client.adopt(vmm.run) is True
    vmm("say", "after\r\n")
    vmm.until_said("after\r\n")
    assert vmm.out.text == "before\r\nbetween\r\nafter\r\n"
    vmm.until(lambda: sorted(vmm.kinds()) == ["keeper replaced", "paused"], "what happened meanwhile")
    vmm("event", ["vm", "resumed"])
    vmm("call", [str(vmm.run.guest_channel), "exit 6\n"])
    vmm.power_off()
    record = vmm.end()
    assert (record.exit_code, record.message) == (6, "")


def test_an_adopted_machine_ends_for_its_true_reason(vmm: Driven) -> None:
    vmm.kill_keeper()
    assert client.adopt(vmm.run) is True
    vmm("log", "INFO VM guest exit event")
    vmm.power_off()
    record = vmm.end()
    assert (record.exit_code, record.message) == (0, "")


def test_an_adopted_machine_that_is_killed_has_an_unknown_cause(vmm: Driven) -> None:
    vmm.kill_keeper()
    assert client.adopt(vmm.run) is True
    vmm.last("kill", signal.SIGKILL)
    record = vmm.end()
    assert (record.exit_code, record.message) == (1, "the machine ended while nobody watched, cause unknown")


def test_a_reboot_that_hung_before_the_keeper_was_replaced_is_still_found(vmm: Driven) -> None:
    vmm("api", False)
    vmm("event", ["vm", "rebooting"])
    vmm.until(vmm.run.state.exists, "the reboot")
    vmm.kill_keeper()
    assert client.adopt(vmm.run) is True
    record = vmm.end()
    assert record.message == "the guest's reboot hung, the VMM was killed after 10 s"


def test_a_guest_that_panicked_is_started_anew_by_the_next_keeper(plan: KeeperPlan) -> None:
    with driven_by(replace(plan, on_panic="restart", on_reboot="exit")) as one:
        one.boot()
        one("event", ["guest", "panic", {"event": "panic"}])
        one.until(one.run.state.exists, "the panic")
        one.kill_keeper()
        assert client.adopt(one.run) is True
        one.until(lambda: "PUT /api/v1/vm.reboot HTTP/1.1" in one("calls", True), "the reset", 30)
        one.reboot()
        one.until_told("chv: rebooted from outside")
        assert process.alive(one.vmm)


def test_a_machine_that_is_not_committed_dies_with_whoever_started_it(plan: KeeperPlan) -> None:
    with driven_by(plan) as one:
        one.connect()
        one.show_console(one("pty", True))
        one.lease.close()
        assert process.wait_gone(one.vmm, 5.0)


# ---------------------------------------------------------------------------------------------------------------------
# helpers, users


_HELPER = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    caller, _ = listener.accept()
    while caller.recv(100):
        pass
    sys.exit(0)  # as virtiofsd: over with the connection
"""


def test_a_helper_that_ends_with_its_connection_is_there_again_for_the_reboot(plan: KeeperPlan) -> None:
    helper = HelperPlan(
        name="fs0", what="virtiofsd of share x", argv=[sys.executable, "-c", _HELPER, "{fd:listener}"], loss="x"
    )
    with driven_by(replace(plan, helpers=[helper])) as one:
        one.boot()
        for _ in range(3):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(one.run.vmm_helper_socket("fs0")))
            one("event", ["vm", "rebooting"])
            time.sleep(0.1)
            began = time.monotonic()
            sock.close()
            with socket.socket(socket.AF_UNIX) as again:
                one.until(functools.partial(_connects, again, one.run.vmm_helper_socket("fs0")), "the helper", 5)
                print(f"there again after {time.monotonic() - began:.2f} s")
                one("pty", True)
                one("event", ["vm", "rebooted"])
                one.until(lambda: "rebooted" in one.kinds(), "the event")
            one.until(lambda: _listens(one), "the helper after that")
        assert set(one.kinds()) == {"rebooted"}
        one.power_off()
        assert one.end().exit_code == 0


def _connects(sock: socket.socket, path: Path) -> bool:
    return sock.connect_ex(str(path)) == 0


def _code(one: Driven) -> int | None:
    state = one.run.state
    return Evidence.load(state.read_bytes()).exit_requested if state.exists() else None


def _listens(one: Driven) -> bool:
    with client.Connection.open(one.run.control) as connection:
        return bool(connection.ask("status")["helpers"])


def test_a_vmm_of_another_user_has_its_console_and_its_channel(plan: KeeperPlan) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root, and a Python that every user may run")
    directory = Path(plan.exit_record).parent
    script = directory / "drive" / "vmm.py"
    shutil.copy(driven_vmm.__file__, script)
    run = RunPaths(plan.run)
    run.vmm_dir.mkdir(mode=0o700)
    os.chown(run.vmm_dir, 210_000, 210_000)
    os.chown(script.parent, 210_000, 210_000)
    # Nobody but root may walk there: the VMM gets both places as open directories.
    place, drive = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (run.vmm_dir, script.parent))
    theirs = replace(
        plan,
        argv=[python, "/proc/self/fd/{fd:drive}/vmm.py", "/proc/self/fd/{fd:drive}/sock", *plan.argv[3:]],
        files={"v": place, "drive": drive},
        uid=210_000,
        gid=210_000,
    )
    try:
        with driven_by(theirs) as one:
            one.boot()
            one("say", "hello\r\n")
            one.until_said("hello\r\n")
            one("call", [f"/proc/self/fd/{place}/vsock_5000", "exit 5\n"])
            one.until(lambda: _code(one) == 5, "the code")
            one.kill_keeper()
            assert client.adopt(one.run) is True
            one("say", "again\r\n")
            one.until_said("again\r\n")
            one("call", [f"/proc/self/fd/{place}/vsock_5000", "noise\n"])
            one.power_off()
            assert one.end().exit_code == 5
    finally:
        os.close(place)
        os.close(drive)
