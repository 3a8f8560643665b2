"""Keepers with real processes: exact ends, logs that never stall a guest, and another keeper when one is killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.machines import NOTHING, READY, Host, Running
from vmlib import process
from vmlib.hypervisor.base import LaunchPlan
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.paths import run_key
from vmlib.resources import Resources
from vmlib.settings import HostSettings
from vmlib.spec import MachineSpec

PANIC = "Kernel panic - not syncing: sysrq triggered crash"


# ---------------------------------------------------------------------------------------------------------------------
# ends


@pytest.mark.parametrize(("words", "code"), [("poweroff", 0), ("exit=0", 0), ("exit=7", 7), ("exit=255", 255)])
def test_the_guest_decides_the_exit_code(fake: Host, words: str, code: int) -> None:
    record = fake.start(words).end()
    assert (record.exit_code, record.signal, record.message) == (code, 0, "")


def test_an_exit_code_comes_out_of_a_real_guest(qemu: Host) -> None:
    record = qemu.start("exit=7").end()
    assert (record.exit_code, record.signal, record.message) == (7, 0, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGRTMIN + 1])
def test_a_vmm_that_is_killed_is_reported_as_that_signal(fake: Host, number: int) -> None:
    one = fake.start()
    one.until_line(READY)
    os.kill(one.vmm, number)
    record = one.end()
    assert (record.exit_code, record.signal) == (128 + number, number)
    assert record.message.startswith("the VMM was killed by ")
    one.until_told(f"chv: {record.message}")


def test_a_real_vmm_that_is_killed_is_reported_as_that_signal(qemu: Host) -> None:
    one = qemu.start()
    one.machine.kill()
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (137, 9, "the VMM was killed by SIGKILL")


def test_sigterm_from_a_stranger_is_no_success(host: Host) -> None:
    one = host.start()
    os.kill(one.vmm, signal.SIGTERM)
    record = one.end()
    assert (record.exit_code, record.signal) == (143, 15)


def test_a_panic_ends_with_1_and_the_kernels_words(host: Host) -> None:
    one = host.start("panic")
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (1, 0, f"guest panic: {PANIC}")
    told = [line for line in one.err.lines if line.startswith("chv: ")]
    assert told == [f"chv: panic: {PANIC}", f"chv: guest panic: {PANIC}"]


def test_a_panic_that_shall_restart_goes_on_in_the_same_process(host: Host) -> None:
    one = host.start("panic", on_panic="restart")
    one.until_line("panicking", count=2)
    assert one.machine.running()
    kinds = one.kinds()
    assert kinds[:2] == ["panic", "rebooted"]
    assert kinds.count("rebooted") <= kinds.count("panic")


def test_one_reboot_is_one_event(host: Host) -> None:
    """Firmware makes resets of its own: a real QEMU tells several for one reboot."""
    one = host.start("reboot-once say=again")
    one.until_line("say again")
    assert one.events() == [("rebooted", "rebooted by the guest")]


def test_a_reboot_that_shall_be_the_end_is_success(host: Host) -> None:
    record = host.start("reboot-once", on_reboot="exit").end()
    assert (record.exit_code, record.message) == (0, "")


def test_a_guest_that_said_exit_and_stays_is_ended_with_that_code(fake: Host) -> None:
    one = fake.start("exit-only=4")
    one.until_line(READY)
    began = time.monotonic()
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (4, 0, "")
    assert 9.0 < time.monotonic() - began < 13.0


# ---------------------------------------------------------------------------------------------------------------------
# logs

_NOTE = re.compile(rb"\nchv: lost ([0-9]+) bytes\n")


def _flood(size: int) -> bytes:
    dots = "." * 85
    return b"".join(f"flood {n:07d} {dots}\r\n".encode() for n in range(1, size // 100 + 1))


def test_a_stopped_reader_does_not_stall_the_guest_and_every_lost_byte_is_counted(host: Host) -> None:
    size = 2_500_000
    one = host.start(f"sleep=1 flood={size} exit-only=1 sleep=60")
    one.until_line(f"{READY}\r\n")  # to the end of the line, where the flood begins
    one.out.paused = True
    # The guest says it over another way than the one that is stopped.
    state = one.machine.run.state
    one.until(lambda: state.exists() and b'"exit_requested": 1' in state.read_bytes(), "the flood's end", 120)
    lost = int(one.ask("status")["lost_stdout_bytes"])
    assert lost > size - (2 << 20)
    one.out.paused = False
    expected = one.out.data + _flood(size) + f"flood end {size}\r\n".encode()
    one.until(lambda: _accounted(one.out.data, expected)[0] == len(expected), "all bytes, or a word about them", 8)
    assert _accounted(one.out.data, expected)[1] == int(one.ask("status")["lost_stdout_bytes"]) >= lost


def _accounted(seen: bytes, expected: bytes) -> tuple[int, int]:
    """How many bytes of `expected` were read or told as lost, and how many were told. Each stands in its place."""
    position = told = 0
    for index, piece in enumerate(_NOTE.split(seen)):
        if index % 2:
            told += int(piece)
            position += int(piece)
        else:
            assert expected.startswith(piece, position), f"wrong bytes at {position}"
            position += len(piece)
    return position, told


def test_a_reader_that_dies_and_comes_back_goes_on_where_the_last_one_stopped(fake: Host) -> None:
    one = fake.start("tick")
    one.until_line("tick 3\r")
    one.out.close()
    time.sleep(1.0)
    one.out._fd = os.open(one.out.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    one.until_line("tick 12\r")
    assert _ticks(one) == list(range(1, _ticks(one)[-1] + 1))
    assert one.machine.running()


def _ticks(one: Running) -> list[int]:
    """Those that are complete."""
    return [int(number) for number in re.findall(r"^tick ([0-9]+)\r$", one.out.text, re.MULTILINE)]


def test_the_log_has_no_end_while_the_machine_lives_and_one_after_it(host: Host) -> None:
    one = host.start("tick")
    one.until_line("tick 1")
    one.kill_keeper()
    one.pass_time(0.5)
    assert not one.out.ended
    assert not one.err.ended
    assert one.machine.settle() is None
    one.machine.kill()
    one.end()
    one.until(lambda: one.out.ended and one.err.ended, "the end of both logs", 5)


def test_a_log_that_is_gone_does_not_keep_a_machine_from_being_adopted(fake: Host) -> None:
    logs = fake.directory / "gone"
    logs.mkdir()
    for name in ("out", "err"):
        os.mkfifo(logs / name)
    spec = fake.spec("exit-only=3", stdout=logs / "out", stderr=logs / "err")
    machine = fake.machines.start(spec)
    keeper = process.load_identity(machine.run.keeper)
    assert keeper is not None
    process.send_signal(keeper, signal.SIGKILL)
    process.wait_gone(keeper, 5)
    shutil.rmtree(logs)
    assert machine.settle() is None
    assert machine.stop(10) is not None


# ---------------------------------------------------------------------------------------------------------------------
# a keeper that is killed


def test_another_keeper_adopts_the_machine_and_the_console_goes_on(host: Host) -> None:
    one = host.start("tick")
    one.until_line("tick 2")
    old = one.kill_keeper()
    one.pass_time(1.0)  # the guest goes on meanwhile
    began = time.monotonic()
    assert one.machine.settle() is None
    print(f"adopted in {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 2.0
    assert one.keeper.pid != old.pid
    last = _ticks(one)[-1]
    one.until(lambda: _ticks(one)[-1] > last + 8, "more ticks")
    missing = set(range(1, _ticks(one)[-1] + 1)) - set(_ticks(one))
    print(f"ticks missing around the change of keepers: {sorted(missing)}")
    # What the guest said while there was no keeper is in the pipe; only what the old one held in its hands may be gone.
    assert len(missing) <= 1
    assert host.processes() == {"keeper": [one.keeper.pid], "vmm": [one.vmm], "launcher": []}
    assert one.kinds() == ["keeper replaced"]
    assert one.machine.settle() is None
    assert one.kinds() == ["keeper replaced"]
    assert one.err.text.count("chv: keeper replaced") == 1
    assert one.machine.status() == "running"
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.message) == (0, "")
    one.until_line("power button")


def test_a_second_death_is_survived_as_well(fake: Host) -> None:
    one = fake.start("tick")
    for _ in range(3):
        one.kill_keeper()
        assert one.machine.settle() is None
    one.until_line("tick 3")
    assert one.err.text.count("chv: keeper replaced") == 3
    record = one.machine.stop(10)
    assert record is not None
    assert record.exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("sleep=1 poweroff", 0, ""),
        ("sleep=1 exit=6", 6, ""),
        ("exit-only=5 sleep=1 poweroff", 5, ""),
        ("sleep=1 panic", 1, f"guest panic: {PANIC}"),
    ],
)
def test_an_adopted_machine_ends_for_its_true_reason(fake: Host, words: str, code: int, message: str) -> None:
    one = fake.start(words)
    one.until_line(READY)
    if words.startswith("exit-only"):  # what a keeper has not read to its end dies with it
        one.until(one.machine.run.state.exists, "the code")
    one.kill_keeper()
    assert one.machine.settle() is None
    record = one.end()
    assert (record.exit_code, record.message) == (code, message)


def _hear(one: Running, channel: socket.socket, wanted: bytes) -> None:
    heard = bytearray()

    def listen() -> bool:
        with contextlib.suppress(BlockingIOError):
            heard.extend(channel.recv(1 << 16))
        return wanted in heard

    one.until(listen, f"{wanted!r} on the channel")


def test_the_guest_channel_is_passed_on_and_its_exit_code_counts(host: Host) -> None:
    one = host.start("sleep=2 exit=6")
    with one.machine.agent_socket() as channel:
        _hear(one, channel, b"exit 6")
        assert one.end().exit_code == 6


def test_the_guest_channel_is_the_newest_client_s_and_there_again_with_the_next_keeper(host: Host) -> None:
    one = host.start("sleep=6 exit-only=6 sleep=60")
    with one.machine.agent_socket() as first, one.machine.agent_socket() as second:
        first.setblocking(True)
        first.settimeout(5)
        assert first.recv(1) == b""
        one.kill_keeper()
        second.setblocking(True)
        assert second.recv(1) == b""
        assert one.machine.settle() is None
        with one.machine.agent_socket() as third:
            _hear(one, third, b"exit 6")
    assert one.end().exit_code == 6


def test_an_adopted_real_machine_ends_for_its_true_reason(qemu: Host) -> None:
    one = qemu.start("exit-only=5 say=said sleep=2 poweroff")
    one.until_line("say said")
    one.kill_keeper()
    assert one.machine.settle() is None
    record = one.end()
    assert (record.exit_code, record.message) == (5, "")


def test_the_time_for_a_guest_that_said_exit_goes_on_with_the_next_keeper(fake: Host) -> None:
    one = fake.start("exit-only=4")
    one.until(one.machine.run.state.exists, "the code")
    one.kill_keeper()
    assert one.machine.settle() is None
    assert one.end(30).exit_code == 4


def test_an_adopted_machine_that_is_killed_has_an_unknown_cause(fake: Host) -> None:
    one = fake.start()
    one.until_line(READY)
    one.kill_keeper()
    assert one.machine.settle() is None
    one.machine.kill()
    record = one.end()
    assert (record.exit_code, record.message) == (1, "the machine ended while nobody watched, cause unknown")


def test_a_machine_that_died_with_its_keeper_has_an_unknown_cause(host: Host) -> None:
    one = host.start()
    one.kill_keeper()
    one.machine.kill()
    record = one.end()
    assert (record.exit_code, record.signal) == (1, 0)
    assert record.message == "the machine ended while nobody watched, cause unknown"


def test_a_code_that_was_said_before_both_were_gone_is_not_forgotten(fake: Host) -> None:
    one = fake.start("exit-only=5 sleep=1 poweroff")
    one.until(one.machine.run.state.exists, "the code")
    one.kill_keeper()
    assert process.wait_gone(one.machine.vmm_identity, 10)
    record = one.machine.settle()
    assert record is not None
    assert (record.exit_code, record.message) == (5, "")
    assert one.machine.settle() == record


def test_a_keeper_that_stands_still_loses_nothing(fake: Host) -> None:
    """SIGSTOP instead of SIGKILL: nobody adopts, nothing is lost when it goes on."""
    one = fake.start("tick")
    one.until_line("tick 1")
    process.send_signal(one.keeper, signal.SIGSTOP)
    one.pass_time(1.0)
    assert one.machine.settle() is None
    process.send_signal(one.keeper, signal.SIGCONT)
    one.until_line("tick 9\r")
    assert _ticks(one) == list(range(1, _ticks(one)[-1] + 1))
    assert one.kinds() == []


def test_a_keeper_does_not_mind_the_signals_of_a_service_manager_or_terminal(fake: Host) -> None:
    one = fake.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        process.send_signal(one.keeper, number)
    one.pass_time(0.3)
    assert one.ask("status")["keeper"] == one.keeper.pid


# ---------------------------------------------------------------------------------------------------------------------
# whoever started it


def test_a_committed_machine_outlives_the_process_that_started_it(host: Host) -> None:
    """Nor does anybody hold that process's own streams: whoever reads them sees their end at once."""
    spec = host.spec("tick")
    with host.elsewhere(spec) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"started\n"
        starter.kill()
        began = time.monotonic()
        assert starter.communicate(timeout=5) == (b"", b"")
        assert time.monotonic() - began < 2.0
    machine = host.machines.recover(spec.name, spec.id)
    time.sleep(0.5)
    assert machine.running()
    alive = host.processes()
    assert alive == {"keeper": [alive["keeper"][0]], "vmm": [machine.record.vmm_pid], "launcher": []}
    assert machine.settle() is None
    record = machine.stop(30)
    assert record is not None
    assert record.exit_code == 0


@pytest.mark.parametrize("place", ["child.keeper", "start.spawned", "start.verified", "start.booted", "start.recorded"])
def test_a_machine_that_is_not_committed_dies_with_the_process_that_started_it(fake: Host, place: str) -> None:
    spec = fake.spec("tick")
    with fake.elsewhere(spec, failpoint=place) as starter:
        assert starter.wait(20) == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while fake.processes() != NOTHING and time.monotonic() < deadline:
        time.sleep(0.05)
    assert fake.processes() == NOTHING
    fake.machines.destroy(spec.name, spec.id)


# ---------------------------------------------------------------------------------------------------------------------
# what a VMM and its keeper are


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _environment(pid: int) -> dict[str, str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return {key: value for key, _, value in (word.partition("=") for word in words if word)}


def test_a_vmm_has_no_privilege_and_a_small_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "secret")
    one = host.start()
    one.until_line(READY)
    status = _status(one.vmm)
    if host.name == "qemu":
        uid = one.machine.record.uid
        assert uid == 210_000
        assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
        assert status["Groups"] == ""
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert _environment(one.vmm) == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(one.machine.run.root),
        "TMPDIR": str(one.machine.run.root),
        "LC_ALL": "C",
    }
    assert _environment(one.keeper.pid) == {}
    ignored = int(status["SigIgn"], 16)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        assert not ignored >> (number - 1) & 1, f"{number.name} is ignored"
    limits = Path(f"/proc/{one.vmm}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_a_vmm_holds_exactly_what_it_needs(host: Host) -> None:
    one = host.start()
    one.until_line(READY)
    run = one.machine.run
    links = [os.readlink(link) for link in Path(f"/proc/{one.vmm}/fd").iterdir()]
    files = sorted(link for link in links if link.startswith("/") and not link.startswith("/dev/"))
    boot = [one.machine.paths.boot_dir / name for name in ("kernel", "initrd")]
    expected = [run.console_in, run.console_out, run.stderr, one.out.path, one.err.path, *boot]
    assert files == sorted(map(str, expected))
    devices = {link for link in links if link.startswith("/dev/")}
    assert devices <= {"/dev/urandom", "/dev/random"}
    # Three listeners, the monitor's connection and the channel's; the request socket's ends with the start.
    assert sum(link.startswith("socket:") for link in links) <= 6
    rest = {re.sub(r"[0-9]+", "N", link) for link in links if not link.startswith(("/", "socket:"))}
    assert rest <= {
        "anon_inode:[eventfd]",
        "anon_inode:[eventpoll]",
        "anon_inode:[signalfd]",
        "anon_inode:[io_uring]",
        "pipe:[N]",
    }


def test_a_keeper_holds_nothing_of_the_process_that_started_it(fake: Host) -> None:
    one = fake.start()
    run = one.machine.run
    links = {int(link.name): os.readlink(link) for link in Path(f"/proc/{one.keeper.pid}/fd").iterdir()}
    assert links[0] == "/dev/null"
    assert links[1] == links[2] == str(run.keeper_log)
    files = sorted(link for fd, link in links.items() if fd > 2 and link.startswith("/"))
    assert files == sorted(
        map(str, [run.keeper_lock, run.console_in, run.console_out, run.stderr, one.out.path, one.err.path])
    )


def test_sessions_scores_and_groups_are_their_own(host: Host) -> None:
    one = host.start()
    # Lower than before takes CAP_SYS_RESOURCE, which a container may lack.
    low = "-900" if int(_status(os.getpid())["CapEff"], 16) >> 24 & 1 else "0"
    for pid, part, score in ((one.keeper.pid, "keeper", low), (one.vmm, "vmm", "0")):
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == score
        groups = {line.rpartition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()}
        mine = {group for group in groups if group.endswith(f"/{run_key(one.machine.id)}/{part}")}
        assert mine, groups
        assert not any(group in Path("/proc/self/cgroup").read_text() for group in mine)


def test_a_keeper_is_small(fake: Host) -> None:
    one = fake.start("tick")
    one.until_line("tick 2")
    rollup = Path(f"/proc/{one.keeper.pid}/smaps_rollup").read_text()
    sizes = dict(re.findall(r"^(\w+): +([0-9]+) kB", rollup, re.MULTILINE))
    print(f"keeper: PSS {sizes['Pss']} KiB, RSS {sizes['Rss']} KiB")


# ---------------------------------------------------------------------------------------------------------------------
# junk


def _connect(one: Running) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(one.machine.run.control))
    return sock


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\xff\xfe junk\n",
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
        b"x" * (2 << 20),
        b'[]\n3\nnull\n"status"\n{}\n{"op": []}\n{"op": "ack", "seq": "x"}\n{"op": "note", "kind": 1}\n',
        json.dumps({"op": "note", "kind": "k", "text": "\ud800"}).encode() + b"\n",
        json.dumps({"op": "nonsense\ud800" * 1000}).encode() + b"\n",
        b'{"op": "ack", "seq": -1}\n{"op": "ack", "seq": 99999999999999999999999}\n',
    ],
)
def test_a_client_that_sends_junk_does_no_harm(fake: Host, junk: bytes) -> None:
    one = fake.start("tick")
    before = one.keeper
    with _connect(one) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(junk)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
    assert one.ask("status")["ok"] is True
    one.until_line("tick 2")
    assert one.keeper == before


def test_a_client_that_never_reads_is_dropped(fake: Host) -> None:
    one = fake.start("tick")
    one.until_line("tick 1")
    with _connect(one) as sock, pytest.raises(ConnectionError):
        sock.sendall(b'{"op": "status"}\n' * 1_000_000)  # some 200 MB of answers
    assert one.ask("status")["ok"] is True


def test_any_number_of_connections_does_no_harm(fake: Host) -> None:
    one = fake.start("tick")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            with contextlib.suppress(OSError):
                stack.enter_context(_connect(one))
        one.until_line("tick 3")
    one.pass_time(0.2)
    assert one.ask("status")["ok"] is True


_NOISY = """
import sys
sys.path.insert(0, {checkout!r})
from vmlib.hypervisor import fake_guest, fake_vmm
tell = fake_guest.Guest._tell
def noisy(self, line):
    words = b"exit\\nexit -1\\nexit 256\\nexit 3 4\\nexit 0x3\\nexit 12\\x00\\n"
    for noise in (b"\\xff\\x00" * 3000, b"x" * 100_000 + b"\\n", words):
        while self._machine.channel.client is None:
            yield 0.02
        self._machine.channel.send(noise)
        yield 0.1
    yield from tell(self, line)
fake_guest.Guest._tell = noisy
fake_vmm.main()
"""


@dataclass(frozen=True)
class Noisy(Fake):
    """A guest that talks nonsense on the channel before it says its code."""

    script: str = ""

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        plan = Fake.plan(self, spec, res, reason=reason)
        argv = (*plan.argv[:3], self.script, *plan.argv[4:])
        return replace(plan, argv=argv, shows=(*plan.shows, self.script))


def test_nonsense_on_the_guest_channel_does_not_drown_the_exit_code(fake: Host) -> None:
    script = fake.directory / "noisy.py"
    checkout = Path(__file__).parent.parent.parent
    script.write_text(_NOISY.format(checkout=str(checkout)))
    machines = Machines(HostSettings(layout=fake.layout), lambda _: (Noisy(script=str(script)), "by the test"), attach)
    machine = machines.start(fake.spec("exit=9"))
    record = machine.wait(20)
    assert record is not None
    assert (record.exit_code, record.message) == (9, "")


def test_a_stop_that_was_asked_for_comes_to_its_end_without_whoever_asked(host: Host) -> None:
    one = host.start("ignore-acpi")
    one.machine.announce_stop(-6.0)
    record = one.end()
    assert record.exit_code == 137
    assert record.message == "forced off: the guest did not power off in its time, its keeper ended the VMM"


def test_a_later_keeper_still_knows_of_a_stop_that_was_asked_for(host: Host) -> None:
    one = host.start("ignore-acpi")
    one.machine.announce_stop(-6.0)
    one.kill_keeper()
    assert one.machine.settle() is None
    record = one.end()
    assert record.exit_code == 137
