"""Keepers of Cloud Hypervisor with guests that really run: the VMM is the fake one, which boots them through QEMU."""

import os
import signal
import time

from tests.integration.machines import READY, Host
from tests.integration.test_ch_guest import host, start
from tests.integration.test_keeper import PANIC, _ticks

__all__ = ["host"]  # a fixture


def test_a_panic_ends_with_1_and_the_kernels_words(host: Host) -> None:
    one = start(host, "panic")
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (1, 0, f"guest panic: {PANIC}")
    told = [line for line in one.err.lines if line.startswith("chv: ")]
    assert told == [f"chv: panic: {PANIC}", f"chv: guest panic: {PANIC}"]


def test_a_kernel_that_restarts_itself_before_the_vmm_is_ended_after_a_panic_is_no_reboot(host: Host) -> None:
    one = start(host, "panic")
    threads = one.machine.vcpus()
    os.kill(one.keeper.pid, signal.SIGSTOP)  # too slow to end it in time
    deadline = time.monotonic() + 120
    while one.machine.vcpus() == threads:  # a reboot makes them anew
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(one.keeper.pid, signal.SIGCONT)
    assert one.end().message == f"guest panic: {PANIC}"
    told = [line for line in one.err.lines if line.startswith("chv: ")]
    assert told == [f"chv: panic: {PANIC}", f"chv: guest panic: {PANIC}"]


def test_a_panic_that_shall_restart_goes_on_in_the_same_process(host: Host) -> None:
    one = start(host, "panic", on_panic="restart")
    one.until_line("panicking", count=2)
    assert one.machine.running()
    assert one.kinds()[:2] == ["panic", "rebooted"]


def test_one_reboot_is_one_event_and_the_console_goes_on(host: Host) -> None:
    one = start(host, "reboot-once say=again")
    one.until_line("say again")
    assert one.events() == [("rebooted", "rebooted by the guest")]
    one.machine.press_power_button()
    assert one.end().exit_code == 0


def test_a_reboot_that_shall_be_the_end_is_success(host: Host) -> None:
    record = start(host, "reboot-once", on_reboot="exit").end()
    assert (record.exit_code, record.signal, record.message) == (0, 0, "")


def test_another_keeper_adopts_the_machine_and_the_console_goes_on(host: Host) -> None:
    one = start(host, "tick")
    one.until_line("tick 2")
    one.kill_keeper()
    one.pass_time(1.0)  # the guest goes on meanwhile
    assert one.machine.settle() is None
    last = _ticks(one)[-1]
    one.until(lambda: _ticks(one)[-1] > last + 8, "more ticks")
    assert len(set(range(1, _ticks(one)[-1] + 1)) - set(_ticks(one))) <= 1
    record = one.machine.stop(30)
    assert record is not None
    assert (record.exit_code, record.message) == (0, "")


def test_an_adopted_machine_ends_for_its_true_reason(host: Host) -> None:
    one = start(host, "exit-only=5 say=said sleep=2 poweroff")
    one.until_line("say said")
    one.kill_keeper()
    assert one.machine.settle() is None
    record = one.end()
    assert (record.exit_code, record.message) == (5, "")


def test_a_vmm_that_is_killed_is_reported_as_that_signal(host: Host) -> None:
    one = start(host)
    one.until_line(READY)
    one.machine.kill()
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (137, 9, "the VMM was killed by SIGKILL")
