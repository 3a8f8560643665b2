"""Which words of the lab node's kernel are the emulator's fault: nothing else may have a round done again."""

import pytest

from tests.lab.node import FAULT, guest_fault

WORDS = [
    ("[  52.1] watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [kvm:352]", True),
    ("[ 101.9] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", True),
    ("[ 881.9] BUG: TASK stack guard page was hit at 000000007289cd8f (stack is 8478d6b2..32e1ad56)", True),
    ("[  267.055990] Oops: 0000 [#1] PREEMPT SMP NOPTI", True),
    ("[  120.331010] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", True),
    ("[  120.331010] general protection fault, probably for non-canonical address 0x1: 0000 [#2] PREEMPT SMP", True),
    ("[ 213.2] Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: schedule+0x1", True),
    ("[ 213.2] Kernel panic - not syncing: corrupted stack end detected inside scheduler", True),
    ("[ 213.2] Kernel panic - not syncing: Fatal exception in interrupt", True),
    ("[  12.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009", False),
    ("[  12.0] Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled", False),
    ("[  12.0] Kernel panic - not syncing: System is deadlocked on memory", False),
    ("[   2.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", False),
    ("[   2.0] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.", False),
    ("[   2.0] Kernel panic - not syncing: Requested init /lab-init failed (error -2).", False),
    ("[  267.1] Out of memory: Killed process 12 (python3) total-vm:1kB", False),
    ("tests/lab/test_nfs.py::test_a_file_that_cannot_be_is_refused_by_its_name[none.qcow2] PASSED [ 12%]", False),
    ("FAILED tests/lab/test_cores.py::test_x - BUG: stack", False),
]


@pytest.mark.parametrize(("line", "emulator"), WORDS)
def test_only_what_a_nested_guest_s_cpu_loses_is_the_emulators_fault(line: str, emulator: bool) -> None:
    assert bool(FAULT.search(line)) == emulator


REPORT = """\
    def test_a_guest_reads(kvm_host: KvmHost) -> None:
>       one.until_line("Kernel panic - not syncing: stack-protector: x")
E       AssertionError: waited 90 s for 1 x 'ready' on the console
E         console: {console}
E         stderr: vmm: started
tests/integration/machines.py:140: AssertionError
"""
LOST = [
    ("", "console:"),
    ("b''", "console: b''"),
    ("[ 1.1] Oops: 0000 [#1] PREEMPT SMP", "console: [ 1.1] Oops: 0000 [#1] PREEMPT SMP"),
    (
        "booting\nE         [ 3.0] watchdog: BUG: soft lockup - CPU#0 stuck",
        "[ 3.0] watchdog: BUG: soft lockup - CPU#0 stuck",
    ),
    ("chv test guest: up", ""),
    ("b'chv test guest: up'", ""),
    ("[ 2.0] Kernel panic - not syncing: sysrq triggered crash", ""),
    ("[ 2.0] Kernel panic - not syncing: VFS: Unable to mount root fs", ""),
]


@pytest.mark.parametrize(("console", "shown"), LOST)
def test_a_guest_whose_kernel_is_lost_or_never_says_a_word_is_the_emulators_fault_too(console: str, shown: str) -> None:
    assert guest_fault(REPORT.format(console=console)) == shown
