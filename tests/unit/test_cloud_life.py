"""What an order of events means, and how a machine of Cloud Hypervisor's ended: tables of what was seen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.keeper.cloud import console_path
from vmlib.keeper.cloud_events import CloudEvent
from vmlib.keeper.cloud_life import Life, shutdown_reason
from vmlib.keeper.cloud_log import LogWords
from vmlib.keeper.plan import reboot_timeout_s
from vmlib.keeper.verdict import Evidence, Verdict, judge

RESET, ACTIVATED = CloudEvent("virtio-device", "reset"), CloudEvent("virtio-device", "activated")
SHUTDOWN, DELETED, OVER = CloudEvent("vm", "shutdown"), CloudEvent("vm", "deleted"), CloudEvent("vmm", "shutdown")
BOOT = [CloudEvent("vmm", "starting"), CloudEvent("vm", "booting"), CloudEvent("vm", "booted"), ACTIVATED, ACTIVATED]
REBOOT = [CloudEvent("vm", "rebooting"), CloudEvent("vm", "rebooted"), ACTIVATED]
END = [SHUTDOWN, DELETED, OVER]
V53 = LogWords(tells_guest_exit=True)
GUEST, OTHER, API = replace(V53, guest_exit=True), replace(V53, other_exit=True), replace(V53, api_exit=True)
GAVE_UP = replace(OTHER, why_exit="VCPU generated error: x")
OLD = LogWords(other_exit=True)

REASONS = {
    "guest power-off": ([*BOOT, RESET, RESET, *END], GUEST, "guest-shutdown"),
    "guest power-off without giving back its devices": ([*BOOT, *END], GUEST, "guest-shutdown"),
    "guest power-off after a reboot": ([*BOOT, RESET, *REBOOT, RESET, *END], GUEST, "guest-shutdown"),
    "of a version that tells no ends apart": ([*BOOT, RESET, *END], OLD, "guest-shutdown"),
    "events that were lost": (BOOT, GUEST, "guest-shutdown"),
    "SIGTERM, events that were lost": (BOOT, OTHER, "host-signal"),
    "told by another, events that were lost": (BOOT, API, "host-api"),
    "fatal error of a vCPU, events that were lost": (BOOT, GAVE_UP, "vmm-error"),
    "of a version that tells no ends apart, events that were lost": (BOOT, OLD, None),
    "a log that was lost": ([*BOOT, RESET, *END], LogWords(), "guest-shutdown"),
    "SIGTERM": ([*BOOT, *END], OTHER, "host-signal"),
    "SIGTERM while firmware hands over": ([*BOOT, RESET, *END], OTHER, "host-signal"),
    "SIGTERM, old version": ([*BOOT, *END], OLD, "host-signal"),
    "SIGTERM after a reboot": ([*BOOT, RESET, *REBOOT, *END], OLD, "host-signal"),
    "firmware that handed over, then SIGTERM": ([*BOOT, RESET, ACTIVATED, *END], OLD, "host-signal"),
    "told by another": ([*BOOT, *END], API, "host-api"),
    "fatal error of a vCPU": ([*BOOT, *END], GAVE_UP, "vmm-error"),
    "not a word": ([*BOOT, *END], LogWords(), "sudden"),
    "SIGTERM before there was a machine": ([BOOT[0], DELETED, OVER], OTHER, "host-signal"),
    "boot that failed": (BOOT[:2], V53, None),
    "crash": (BOOT, V53, None),
    "crash in a reboot": ([*BOOT, RESET, REBOOT[0]], V53, None),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_order_and_the_log_say_why_it_shut_down(name: str) -> None:
    events, words, expected = REASONS[name]
    life = Life()
    for event in events:
        life.take(event)
    assert shutdown_reason(life, words) == expected


def test_a_panic_is_one_and_a_dump_that_is_about_to_be_written_is_none() -> None:
    assert Life().take(CloudEvent("guest", "panic", {"event": "panic"})) == "panic"
    assert Life().take(CloudEvent("guest", "panic")) == "panic"
    assert Life().take(CloudEvent("guest", "panic", {"event": "crash_loaded"})) is None


# ---------------------------------------------------------------------------------------------------------------------
# the verdict

FORCED = "forced off: the guest did not power off within 5 s, SIGKILL to the VMM"
HANG = "the guest's reboot hung, the VMM was killed after 10 s"
OOM = "out of memory on the host: the kernel killed the VMM, which had reached its limit of 356 MiB"
SECCOMP = "system call 49 in thread http-server"
SEEN = Evidence(dialect="cloud-hypervisor", phase="running")

CASES = {
    "guest power-off": (replace(SEEN, shutdown="guest-shutdown"), 0, "", Verdict(0)),
    "exit N": (replace(SEEN, exit_requested=7, shutdown="guest-shutdown"), 0, "", Verdict(7)),
    "exit N, ended by us": (replace(SEEN, exit_requested=7, shutdown="host-signal"), 0, "", Verdict(7)),
    "exit N, killed by us": (replace(SEEN, exit_requested=7), -9, "", Verdict(7)),
    "panic": (replace(SEEN, panic=True, panic_lines="x"), -9, "", Verdict(1, message="guest panic: x")),
    "panic, ended before we could": (replace(SEEN, panic=True), 0, "", Verdict(1, message="guest panic")),
    "reboot that shall end it": (replace(SEEN, shutdown="guest-reset", phase="rebooting"), 0, "", Verdict(0)),
    "the same, killed": (replace(SEEN, shutdown="guest-reset", phase="rebooting"), -9, "", Verdict(0)),
    "the same, found by nobody": (replace(SEEN, shutdown="guest-reset"), None, "", Verdict(0)),
    "reboot that hung": (replace(SEEN, hang=HANG, phase="rebooting"), -9, "", Verdict(1, message=HANG)),
    "forced by quit": (replace(SEEN, forced=FORCED, shutdown="host-api"), 0, "", Verdict(137, message=FORCED)),
    "forced by SIGKILL": (replace(SEEN, forced=FORCED), -9, "", Verdict(137, message=FORCED)),
    "SIGTERM from a stranger": (
        replace(SEEN, shutdown="host-signal"),
        0,
        "",
        Verdict(143, 15, "the VMM was told to end by a signal from outside"),
    ),
    "told by a stranger": (
        replace(SEEN, shutdown="host-api"),
        0,
        "",
        Verdict(1, message="the VMM was told to quit from outside"),
    ),
    "SIGSEGV": (SEEN, -11, "", Verdict(139, 11, "the VMM was killed by SIGSEGV")),
    "killed in its boot": (
        replace(SEEN, phase="booting"),
        -9,
        "",
        Verdict(137, 9, "the VMM was killed by SIGKILL while it booted the guest"),
    ),
    "SIGBUS in a reboot": (
        replace(SEEN, phase="rebooting"),
        -7,
        "",
        Verdict(135, 7, "the VMM was killed by SIGBUS while it rebooted the guest"),
    ),
    "seccomp": (
        replace(SEEN, seccomp=SECCOMP),
        -31,
        "",
        Verdict(159, 31, f"the VMM was killed by SIGSYS: seccomp allows it no {SECCOMP}"),
    ),
    "killed for memory": (SEEN, -9, OOM, Verdict(137, 9, OOM, oom_killed=True)),
    "a reboot's own end beside a kill for memory": (
        replace(SEEN, shutdown="guest-shutdown"),
        0,
        OOM,
        Verdict(0),
    ),
    "failed reboot": (
        replace(SEEN, error="No space left on device", phase="rebooting"),
        1,
        "",
        Verdict(1, message="the VMM ended with status 1: No space left on device"),
    ),
    "panic of its main thread": (SEEN, 101, "", Verdict(101, message="the VMM ended with status 101")),
    "gave up": (
        replace(SEEN, shutdown="vmm-error", error="VCPU generated error: x"),
        0,
        "",
        Verdict(1, message="the VMM gave up: VCPU generated error: x"),
    ),
    "a shutdown without a word": (
        replace(SEEN, shutdown="sudden"),
        0,
        "",
        Verdict(1, message="the VMM shut down and did not say why"),
    ),
    "status 0 and no end": (
        replace(SEEN, error="vcpu0 thread panicked"),
        0,
        "",
        Verdict(1, message="the VMM ended with status 0 before its guest had come to an end: vcpu0 thread panicked"),
    ),
    "adopted, power-off seen": (replace(SEEN, shutdown="guest-shutdown"), None, "", Verdict(0)),
    "adopted, nothing seen": (
        SEEN,
        None,
        "",
        Verdict(1, message="the machine ended while nobody watched, cause unknown"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_owner_is_told(name: str) -> None:
    seen, status, oom, expected = CASES[name]
    assert judge(seen, status=status, oom=oom) == expected


@given(
    seen=st.builds(
        Evidence,
        dialect=st.just("cloud-hypervisor"),
        exit_requested=st.none() | st.integers(0, 255),
        shutdown=st.none() | st.sampled_from(["guest-shutdown", "guest-reset", "vmm-error", "sudden"]) | st.text(),
        panic=st.booleans(),
        hang=st.text(max_size=5),
        seccomp=st.text(max_size=5),
        error=st.text(max_size=5),
        phase=st.sampled_from(["", "booting", "running", "rebooting"]),
    ),
    status=st.none() | st.integers(-64, 255),
)
def test_status_0_alone_is_never_success(seen: Evidence, status: int | None) -> None:
    verdict = judge(seen, status=status)
    if verdict.exit_code == 0:
        assert seen.exit_requested == 0 or seen.shutdown in ("guest-shutdown", "guest-reset", "host-qmp-system-reset")
    else:
        assert verdict.message or verdict.exit_code == seen.exit_requested


@pytest.mark.parametrize(
    ("info", "path"),
    [
        (b'{"config": {"serial": {"mode": "Pty", "file": "/dev/pts/7"}}, "state": "Running"}', "/dev/pts/7"),
        (b'{"config": {"serial": {"mode": "Null"}}}', ""),
        (b'{"config": {"serial": {"mode": "Pty", "file": null}}}', ""),
        (b"[]", ""),
        (b"{", ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
    ],
)
def test_the_console_is_where_the_vmm_says(info: bytes, path: str) -> None:
    assert console_path(info) == path


def test_a_large_machine_has_longer_for_its_reboot() -> None:
    assert reboot_timeout_s(128, hugepages=False, helpers=False) == pytest.approx(10, abs=0.1)
    assert reboot_timeout_s(1 << 18, hugepages=False, helpers=False) == 74
    assert reboot_timeout_s(1 << 18, hugepages=True, helpers=False) == 586
    assert reboot_timeout_s(0, hugepages=False, helpers=True) == 70
