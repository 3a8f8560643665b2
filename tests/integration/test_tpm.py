"""A TPM 2.0 in real guests, by swtpm under the keeper."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import UIDS, Host, Running, host_for
from vmlib import probe, process
from vmlib.errors import HostError


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as host:
        yield host


def swtpm(one: Running) -> process.Identity:
    who = process.identify(one.ask("status")["helpers"]["tpm"])
    assert who is not None
    return who


def resets(one: Running, *, count: int = 1) -> int:
    """How often the TPM was powered on, as the guest has read it the last time."""
    one.until(lambda: len(re.findall(r"tpm 2 resets \d+\n", one.out.text.replace("\r", ""))) == count, "the TPM")
    return int(re.findall(r"tpm 2 resets (\d+)", one.out.text)[-1])


@pytest.mark.needs("swtpm")
def test_a_tpm_remembers_over_reboots_and_restarts_and_belongs_to_one_machine(host: Host) -> None:
    one = host.start("tpm reboot-once poweroff", tpm=True)
    first = resets(one)
    again = resets(one, count=2)
    assert again > first
    assert one.end().exit_code == 0
    one.machine.destroy()
    state = host.layout.machine("alloc/web").tpm_dir
    uids = UIDS["qemu"]
    assert uids is not None
    assert {path.stat().st_uid for path in state.iterdir()} <= set(uids)

    two = host.start("tpm", tpm=True)
    other = host.start("tpm", task="other", tpm=True)  # has another uid
    assert resets(two) > again
    assert resets(other) == first
    for machine in (two, other):
        machine.machine.destroy()


@pytest.mark.needs("swtpm")
def test_swtpm_runs_as_the_machines_user_without_privileges_and_ends_with_it(host: Host) -> None:
    one = host.start("tick", tpm=True)
    one.until_line("tick 1")
    who = swtpm(one)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{who.pid}/status").read_text().splitlines())
    assert set(status["Uid"].split()) == {str(one.machine.record.uid)}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    one.machine.press_power_button()
    assert one.end().exit_code == 0
    assert not process.alive(who)
    one.machine.destroy()


@pytest.mark.needs("swtpm")
def test_a_swtpm_that_is_killed_is_told_and_the_guest_goes_on(host: Host) -> None:
    one = host.start("tick", tpm=True)
    one.until_line("tick 1")
    before = swtpm(one)
    assert process.send_signal(before, signal.SIGKILL)
    one.until_told(
        "helper restarted: swtpm of the TPM was killed by signal 9; the guest has no TPM until the machine is restarted"
    )
    assert swtpm(one) != before
    one.machine.press_power_button()
    assert one.end().exit_code == 0
    one.machine.destroy()


def test_a_host_without_swtpm_says_where_it_looked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_program", lambda _: None)
    with pytest.raises(HostError) as exc:
        host.start("tick", tpm=True)
    assert str(exc.value).startswith("tpm = true: swtpm is not installed (looked in /usr/local/sbin:")
    assert exc.value.hint == "install the package swtpm"
