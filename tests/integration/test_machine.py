"""A machine's life without Nomad: started once for one id, ended whole, found again, and never half there."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import NOTHING, READY, Host, host_for
from vmlib import process
from vmlib.errors import HostError, HypervisorError, NoCapacityError, SpecError
from vmlib.hypervisor.base import LaunchPlan
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.qmp import CALL_TIMEOUT_S
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import Lease
from vmlib.ladder import ladder
from vmlib.machine import Machines
from vmlib.record import load_machine
from vmlib.resources import Resources
from vmlib.settings import HostSettings
from vmlib.spec import DirectBoot, FileRef, MachineSpec, NicSpec, PortForward, UserLink


def _nothing_is_left(host: Host, spec: MachineSpec) -> None:
    """Of that start: no process, no run directory, no journal, no record, no uid."""
    paths = host.layout.machine(spec.name)
    assert host.processes() == NOTHING
    assert not host.layout.run(spec.id).root.exists()
    assert not [path for path in (paths.journal, paths.record, paths.uid) if path.exists()]


# ---------------------------------------------------------------------------------------------------------------------
# once


def test_the_same_id_is_the_same_machine(host: Host) -> None:
    one = host.start()
    again = host.machines.start(one.spec)
    assert again.record == one.machine.record
    assert host.processes() == {"keeper": [one.keeper.pid], "vmm": [one.vmm], "launcher": []}


def test_the_same_id_after_its_end_is_not_started_again(fake: Host) -> None:
    one = fake.start("exit=3")
    record = one.end()
    again = fake.machines.start(one.spec)
    assert again.record == one.machine.record
    assert again.exit_record() == record
    assert fake.processes()["vmm"] == []


def test_the_same_id_after_an_end_that_nobody_saw_is_not_started_again(fake: Host) -> None:
    one = fake.start()
    one.kill_keeper()
    one.machine.kill()
    assert process.wait_gone(one.machine.vmm_identity, 5)
    again = fake.machines.start(one.spec)
    record = again.exit_record()
    assert record is not None
    assert record.message == "the machine ended while nobody watched, cause unknown"


def test_a_guest_that_is_faster_than_its_start_was_started_and_has_ended(
    fake: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Lease.commit

    def late(lease: Lease) -> None:
        time.sleep(1.0)
        commit(lease)

    monkeypatch.setattr(Lease, "commit", late)
    one = fake.start("exit=3")
    assert not one.machine.running()
    record = one.machine.settle()
    assert record is not None
    assert (record.exit_code, record.message) == (3, "")


def test_a_new_start_ends_the_old_one_first(host: Host) -> None:
    old = host.start()
    new = host.start()
    assert new.vmm != old.vmm
    assert host.processes() == {"keeper": [new.keeper.pid], "vmm": [new.vmm], "launcher": []}
    assert not old.machine.run.root.exists()
    assert host.machines.find("alloc/web") is not None


def test_two_that_start_one_id_at_once_get_one_machine(fake: Host) -> None:
    spec = fake.spec()
    starters = [fake.elsewhere(spec) for _ in range(3)]
    try:
        for starter in starters:
            assert starter.stdout is not None
            assert starter.stdout.readline() == b"started\n"
        alive = fake.processes()
        assert [len(alive[kind]) for kind in ("keeper", "vmm", "launcher")] == [1, 1, 0]
    finally:
        for starter in starters:
            starter.communicate(b"")


def test_machines_that_start_at_once_have_a_uid_each(qemu: Host) -> None:
    uids: list[int] = []

    def start(task: str) -> None:
        machine = qemu.machines.start(qemu.spec(task=task))
        uids.append(os.stat(f"/proc/{machine.record.vmm_pid}").st_uid)

    threads = [threading.Thread(target=start, args=(f"task{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(uids) == [210_000, 210_001, 210_002, 210_003]
    machine = qemu.machines.find("alloc/task1")
    assert machine is not None
    freed = machine.record.uid
    machine.destroy()
    assert qemu.machines.start(qemu.spec(task="other")).record.uid == freed


def test_a_range_that_is_used_up_says_so_and_frees_nothing_of_others(qemu: Host) -> None:
    settings = HostSettings(layout=qemu.layout, vm_uids=range(210_000, 210_001))
    machines = Machines(settings, qemu.machines._choose, attach)
    first = machines.start(qemu.spec(task="one"))
    other = qemu.spec(task="two")
    with pytest.raises(NoCapacityError, match="all 1 uids are held"):
        machines.start(other)
    assert first.running()
    assert not qemu.layout.run(other.id).root.exists()


# ---------------------------------------------------------------------------------------------------------------------
# starts that fail


def test_a_kernel_that_is_missing(host: Host) -> None:
    boot = DirectBoot(kernel=FileRef(root=host.guest, relative="no-such-kernel"))
    spec = host.spec(boot=boot)
    with pytest.raises(SpecError, match=r"^kernel = '.*/no-such-kernel': no such file or directory"):
        host.machines.start(spec)
    _nothing_is_left(host, spec)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", r"^the VMM ended with status 1$"),
        ("echo first >&2; echo 'qemu: -device: no such thing' >&2; exit 1", r"^qemu: -device: no such thing$"),
        ("sleep 0.3; echo 'slow words' >&2; exit 1", r"^slow words$"),
        ("kill -9 $$", r"^the VMM was killed by SIGKILL$"),
        ("exit 0", r"."),
    ],
)
def test_a_vmm_that_ends_at_once_is_quoted(qemu: Host, script: str, words: str) -> None:
    binary = qemu.directory / "qemu"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    qemu.directory.chmod(0o755)
    qemu.binary = str(binary)
    spec = qemu.spec()
    with pytest.raises(HypervisorError, match=words):
        qemu.machines.start(spec)
    _nothing_is_left(qemu, spec)


def test_a_vmm_that_takes_its_time_until_it_answers_is_waited_for(qemu: Host) -> None:
    binary = qemu.directory / "qemu"
    binary.write_text(f'#!/bin/sh\nsleep {CALL_TIMEOUT_S + 1}\nexec qemu-system-x86_64 "$@"\n')
    binary.chmod(0o755)
    qemu.directory.chmod(0o755)
    qemu.binary = str(binary)
    spec = qemu.spec()
    machine = qemu.machines.start(spec)
    assert machine.running()
    machine.destroy()
    _nothing_is_left(qemu, spec)


def test_a_vmm_that_is_missing_is_named(qemu: Host) -> None:
    qemu.binary = "/no/such/qemu"
    spec = qemu.spec()
    with pytest.raises(HypervisorError, match=r"^/no/such/qemu: no such file or directory$"):
        qemu.machines.start(spec)
    _nothing_is_left(qemu, spec)


def test_a_log_that_cannot_be_opened_is_named(fake: Host) -> None:
    spec = fake.spec(stdout=fake.directory / "nowhere" / "stdout")
    with pytest.raises(HypervisorError, match=r"nowhere/stdout: no such file or directory$"):
        fake.machines.start(spec)
    _nothing_is_left(fake, spec)


def test_a_host_port_that_is_taken_is_a_matter_of_time_and_names_the_label(qemu: Host) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        forward = PortForward(label="http", host_ip="127.0.0.1", host_port=listener.getsockname()[1], guest_port=80)
        nic = NicSpec(network="nat", link=UserLink(forwards=(forward,)), mac="52:54:00:12:34:56")
        spec = qemu.spec(nics=(nic,))
        with pytest.raises(NoCapacityError, match=r"^port 'http': tcp port 127\.0\.0\.1:[0-9]+ of the host"):
            qemu.machines.start(spec)
    _nothing_is_left(qemu, spec)


@contextlib.contextmanager
def _small_disk(at: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True, timeout=10)


@pytest.mark.parametrize("which", ["data", "run"])
@pytest.mark.parametrize("free_pages", [0, 1, 2, 3, 4, 1000])
def test_a_full_disk_is_said_in_a_sentence(guest: Guest, short_dir: Path, which: str, free_pages: int) -> None:
    """However far a start comes with it: it says so, or it works, and either way it can be taken back."""
    at = short_dir / "small"
    at.mkdir()
    # In pages of four KiB. Without a kernel a start needs only a few.
    with _small_disk(at, f"{4 * (free_pages + 4)}k"), host_for(short_dir, guest.directory, "fake") as one:
        directory = one.layout.data_dir if which == "data" else one.layout.run_dir
        directory.rmdir()
        directory.symlink_to(at)
        (at / "filler").write_bytes(b"x" * 4096 * 4)
        spec = one.spec("say=hello", boot=None)
        said = _start_or_say(one, spec)
        (at / "filler").unlink()
        if said:
            assert "no space left on device" in said
            _nothing_is_left(one, spec)
        assert said or free_pages > 0
        assert not said or free_pages < 1000
        for mark in one.machines.marks():
            one.machines.remove(mark.name)
        directory.unlink()
        directory.mkdir()


def test_a_disk_that_is_too_small_for_the_kernel(guest: Guest, short_dir: Path) -> None:
    with host_for(short_dir, guest.directory, "fake") as one, _small_disk(one.layout.data_dir, "1m"):
        spec = one.spec()
        with pytest.raises(NoCapacityError, match="boot/kernel: no space left"):
            one.machines.start(spec)
        _nothing_is_left(one, spec)
        one.machines.remove(spec.name)


def _start_or_say(host: Host, spec: MachineSpec) -> str:
    try:
        host.machines.start(spec)
    except (NoCapacityError, HypervisorError) as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("which", ["data_dir", "run_dir"])
def test_an_end_on_a_full_disk_is_not_forgotten(guest: Guest, short_dir: Path, which: str) -> None:
    with host_for(short_dir, guest.directory, "fake") as one, _small_disk(getattr(one.layout, which), "256k"):
        boot = DirectBoot(kernel=_little(one), cmdline="sleep=2 exit=3")
        machine = one.machines.start(one.spec(boot=boot))
        filler = getattr(one.layout, which) / "filler.lock"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        record = machine.wait(15)
        assert record is not None
        assert (record.exit_code, record.message) == (3, "")
        assert one.machines.recover("alloc/web", machine.id).exit_record() == record
        filler.unlink()
        one.machines.remove("alloc/web")


def test_a_late_look_at_an_old_start_does_not_touch_the_end_of_the_newer_one(host: Host) -> None:
    old = host.start("sleep=30", task="web").machine
    old.destroy()
    (old.run.exit_record).unlink(missing_ok=True)
    old.paths.exit_record.unlink(missing_ok=True)
    one = host.start("exit=3", task="web")
    record = one.end()
    assert record.exit_code == 3
    late = old.settle()
    assert late is not None
    assert late.id == old.id
    assert one.machine.exit_record() == record


def test_a_machine_whose_directory_is_gone_can_still_be_destroyed_and_settled(host: Host) -> None:
    machine = host.start("exit=0").machine
    assert machine.wait(20) is not None
    host.machines.remove(machine.record.name)
    machine.destroy()
    assert machine.settle() is not None


def test_a_plan_of_a_later_version_does_not_keep_a_keeper_from_adopting(host: Host) -> None:
    one = host.start("tick")
    one.until_line("tick 2")
    plan = one.machine.run.plan
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"from_the_future": 1}))
    one.kill_keeper()
    assert one.machine.settle() is None
    one.machine.stop(10)


def test_a_log_that_was_replaced_by_a_link_is_not_followed_by_the_next_keeper(host: Host) -> None:
    one = host.start("tick")
    one.until_line("tick 2")
    target = host.directory / "target"
    one.spec.stdout.unlink()
    one.spec.stdout.symlink_to(target)
    one.kill_keeper()
    assert one.machine.settle() is None
    assert not target.exists()
    one.machine.stop(10)
    assert not target.exists()


def _little(host: Host) -> FileRef:
    """The fake reads no kernel, so a small one does."""
    (host.directory / "kernel").write_bytes(b"\x7fELF" + bytes(1020))
    return FileRef(root=host.directory, relative="kernel")


# ---------------------------------------------------------------------------------------------------------------------
# later


def test_however_many_ask_a_vmm_at_once_each_is_answered(host: Host) -> None:
    one = host.start("tick")
    with ThreadPoolExecutor(10) as askers:
        states = list(askers.map(lambda _: one.machine.status(), range(30)))
    assert states == ["running"] * 30


def test_a_running_machine_is_recovered(host: Host) -> None:
    one = host.start("tick")
    found = host.machines.recover(one.spec.name, one.spec.id)
    assert found.record == one.machine.record
    assert found.running()
    assert found.status() == "running"
    assert len(found.vcpus()) == 1


def test_a_machine_that_ended_long_ago_is_recovered_with_its_end(fake: Host) -> None:
    one = fake.start("exit=3")
    record = one.end()
    assert process.wait_gone(one.machine._keeper_identity(), 5)
    found = fake.machines.recover(one.spec.name, one.spec.id)
    assert not found.running()
    assert found.settle() == record


def test_a_machine_of_an_earlier_boot_ended_with_the_host(fake: Host) -> None:
    one = fake.start()
    record = load_machine(one.machine.paths.record)
    assert record is not None
    # The pid of a process that lives, but in another boot: it must be neither believed nor touched.
    me = process.identify(os.getpid())
    assert me is not None
    replace(record, boot_id="another", vmm_pid=me.pid, vmm_start_time=me.start_time).save(one.machine.paths.record)
    one.kill_keeper()
    found = fake.machines.recover(one.spec.name, one.spec.id)
    assert not found.running()
    ended = found.settle()
    assert ended is not None
    assert (ended.exit_code, ended.message) == (1, "the machine ended while nobody watched, the host was rebooted")


def test_a_machine_that_nobody_knows_cannot_be_recovered(fake: Host) -> None:
    with pytest.raises(HostError, match="no record of machine alloc/web/7"):
        fake.machines.recover("alloc/web", "alloc/web/7")
    one = fake.start()
    with pytest.raises(HostError, match="no record of machine alloc/web/7"):
        fake.machines.recover("alloc/web", "alloc/web/7")
    assert one.machine.running()


def test_destroying_takes_everything_of_that_start_and_twice_is_fine(host: Host) -> None:
    one = host.start()
    host.machines.destroy(one.spec.name, one.spec.id)
    _nothing_is_left(host, one.spec)
    host.machines.destroy(one.spec.name, one.spec.id)
    one.machine.destroy()


def test_destroying_what_nobody_knows_does_nothing(fake: Host) -> None:
    fake.machines.destroy("alloc/none", "alloc/none/1")
    one = fake.start()
    fake.machines.destroy(one.spec.name, "alloc/web/0")
    assert one.machine.running()
    assert one.ask("status")["ok"] is True


def test_destroying_an_old_start_leaves_the_newer_one_alone(fake: Host) -> None:
    old = fake.start()
    new = fake.start("tick")
    old.machine.destroy()
    fake.machines.destroy(old.spec.name, old.spec.id)
    new.until_line("tick 2")
    assert new.machine.running()
    assert fake.processes() == {"keeper": [new.keeper.pid], "vmm": [new.vmm], "launcher": []}


def test_a_machine_whose_record_was_lost_is_still_ended(fake: Host) -> None:
    one = fake.start()
    one.machine.paths.record.unlink()
    fake.machines.destroy(one.spec.name, one.spec.id)
    _nothing_is_left(fake, one.spec)


def test_a_machine_whose_keeper_is_gone_or_stands_still_is_ended(fake: Host) -> None:
    one = fake.start(task="gone")
    one.kill_keeper()
    one.machine.destroy()
    two = fake.start(task="still")
    process.send_signal(two.keeper, signal.SIGSTOP)
    two.machine.destroy()
    assert fake.processes() == NOTHING


# ---------------------------------------------------------------------------------------------------------------------
# stop


def test_a_guest_that_listens_is_stopped_with_success(host: Host) -> None:
    one = host.start()
    one.until_line(READY)
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.signal, record.message) == (0, 0, "")
    one.until_told("chv: power button pressed")


def test_a_paused_guest_is_stopped_with_success(fake: Host) -> None:
    one = fake.start()
    one.until_line(READY)
    one.machine.pause()
    assert one.machine.status() == "paused"
    record = one.machine.stop(10)
    assert record is not None
    assert record.exit_code == 0


def test_a_guest_that_does_not_listen_is_forced_after_the_whole_timeout(host: Host) -> None:
    one = host.start("ignore-acpi")
    one.until_line(READY)
    began = time.monotonic()
    record = one.machine.stop(1.5)
    took = time.monotonic() - began
    words = "forced off: the guest did not power off within 1.5 s, the VMM was told to quit"
    assert record is not None
    assert (record.exit_code, record.signal, record.message) == (137, 0, words)
    assert 1.5 <= took < 6.5
    one.until_told(f"chv: {words}")
    assert one.err.text.count("forced off") == 1


def test_a_vmm_that_stands_still_is_killed_within_the_five_seconds(fake: Host) -> None:
    one = fake.start()
    os.kill(one.vmm, signal.SIGSTOP)
    rungs = [rung for rung in ladder(0) if rung.step in ("terminate", "kill")]
    for rung in rungs:
        one.machine.climb(rung, 0)
        if (record := one.machine.wait(rung.wait_s)) is not None:
            assert record.exit_code == 137
            assert record.message.endswith("SIGKILL to the VMM")
            return
    pytest.fail("it still runs")


# ---------------------------------------------------------------------------------------------------------------------
# in a row


@dataclass(frozen=True)
class Refusing(Fake):
    """A VMM that takes none of its options."""

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        plan = Fake.plan(self, spec, res, reason=reason)
        return replace(plan, argv=(*plan.argv[:4], "--no-such-option"))


def test_twenty_in_a_row_leave_nothing(fake: Host) -> None:
    refusing = Machines(HostSettings(layout=fake.layout), lambda _: (Refusing(), "by the test"), attach)
    for number in range(20):
        match number % 5:
            case 0:
                spec = fake.spec(boot=DirectBoot(kernel=FileRef(root=fake.guest, relative="missing")))
                with pytest.raises(SpecError):
                    fake.machines.start(spec)
            case 1:
                spec = fake.spec()
                with pytest.raises(HypervisorError):
                    refusing.start(spec)
            case 2:
                spec = fake.spec("exit=1")
                assert fake.run(spec).end().exit_code == 1
            case 3:
                spec = fake.spec()
                fake.run(spec).machine.kill()
            case _:
                spec = fake.spec()
                one = fake.run(spec)
                one.until_line(READY)
                assert one.machine.stop(10) is not None
        fake.machines.destroy(spec.name, spec.id)
        _nothing_is_left(fake, spec)


def test_three_real_ones_in_a_row_leave_nothing(qemu: Host) -> None:
    for words in ("poweroff", "", "exit=2"):
        one = qemu.start(words)
        if words:
            one.end()
        one.machine.destroy()
        _nothing_is_left(qemu, one.spec)
