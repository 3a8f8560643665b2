"""Directories and disks of the host's in real guests: virtiofsd under the keeper, read-only, and what may go wrong."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import NOTHING, READY, Host, Running, host_for
from vmlib import probe, process
from vmlib.errors import HostError, LaunchError, NoCapacityError
from vmlib.probe import Program
from vmlib.spec import MountSpec

pytestmark = pytest.mark.needs("virtiofsd")

# CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID SETFCAP
FILE_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 6, 7, 31))


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as host:
        yield host


@pytest.fixture
def directory(short_dir: Path) -> Path:
    """What is shared, with one file in it."""
    made = short_dir / "shared"
    made.mkdir()
    (made / "of-host").write_text("hello\n")
    return made


def share(directory: Path, *, readonly: bool = False) -> tuple[MountSpec, ...]:
    return (MountSpec(source=directory, guest_path="/srv/data", readonly=readonly),)


def helper(one: Running, name: str = "fs0") -> process.Identity:
    pid = one.ask("status")["helpers"][name]
    who = process.identify(pid)
    assert who is not None
    return who


def daemons(run_dir: Path) -> list[int]:
    """Every process that serves a share of the machine with that run directory; virtiofsd shuts itself into a child."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
            if "virtiofsd" in words.split("\0")[0] and str(run_dir) in words:
                found.append(int(pid))
    return sorted(found)


def test_what_guest_and_host_write_into_a_share_the_other_one_reads(host: Host, directory: Path) -> None:
    one = host.start(
        "mount=chv:srv-data:/m get=/m/of-host put=/m/of-guest:hi list=/m get=/m/later poweroff", mounts=share(directory)
    )
    one.until_line("mounted chv:srv-data")
    one.until_line("got /m/of-host hello")
    one.until_line("put /m/of-guest")
    assert (directory / "of-guest").read_text() == "hi\n"
    one.until_line("list /m 3")  # two files, and the line with the total
    (directory / "later").write_text("now\n")
    one.until_line("got /m/later now")
    assert one.end().exit_code == 0
    assert daemons(one.machine.run.root) == []
    assert "helper" not in one.err.text
    one.machine.destroy()


def test_a_read_only_share_is_so_for_root_in_the_guest_and_for_virtiofsd_itself(host: Host, directory: Path) -> None:
    words = "mount=chv:srv-data:/m remount-rw=/m put=/m/of-host:changed put=/m/new:x say=done"
    one = host.start(words, mounts=share(directory, readonly=True))
    one.until_line("say done")
    assert "mounted chv:srv-data" in one.out.lines  # writable, as far as the guest knows
    assert {"not put /m/of-host", "not put /m/new"} <= set(one.out.lines)
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"of-host": "hello\n"}
    serving = daemons(one.machine.run.root)[-1]
    (mount,) = [line.split() for line in Path(f"/proc/{serving}/mountinfo").read_text().splitlines()][:1]
    assert mount[4] == "/"
    assert {"ro", "nosuid", "nodev"} <= set(mount[5].split(","))
    one.machine.destroy()
    assert daemons(one.machine.run.root) == []


def test_virtiofsd_has_file_capabilities_only_sees_nothing_else_and_is_where_the_vmm_is(
    host: Host, directory: Path
) -> None:
    one = host.start("tick", mounts=share(directory))
    one.until_line("tick 1")
    serving = daemons(one.machine.run.root)[-1]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{serving}/status").read_text().splitlines())
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == FILE_CAPABILITIES
    assert status["NoNewPrivs"] == "1"
    assert sorted(os.listdir(f"/proc/{serving}/root")) == ["of-host"]
    assert os.readlink(f"/proc/{serving}/ns/net") != os.readlink("/proc/self/ns/net")
    groups = {line.split(":")[1]: line for line in Path(f"/proc/{serving}/cgroup").read_text().splitlines()}
    vmm = {line.split(":")[1]: line for line in Path(f"/proc/{one.vmm}/cgroup").read_text().splitlines()}
    assert groups["memory" if "memory" in groups else ""] == vmm["memory" if "memory" in vmm else ""]
    assert os.sched_getaffinity(serving) == os.sched_getaffinity(one.keeper.pid)
    one.machine.destroy()


def test_a_guest_that_reboots_has_its_share_again(host: Host, directory: Path) -> None:
    one = host.start("mount=chv:srv-data:/m get=/m/of-host reboot-once put=/m/x:y poweroff", mounts=share(directory))
    one.until_line("rebooted")
    one.until_line("got /m/of-host hello", count=2)
    assert one.end().exit_code == 0
    assert (directory / "x").read_text() == "y\n"
    one.machine.destroy()


def test_a_helper_that_is_killed_is_started_again_and_the_machine_goes_on(host: Host, directory: Path) -> None:
    one = host.start("mount=chv:srv-data:/m tick", mounts=share(directory))
    one.until_line("tick 1")
    first = helper(one)
    assert process.send_signal(first, signal.SIGKILL)
    one.until_told("helper restarted")
    told = "helper restarted: virtiofsd of share chv:srv-data was killed by signal 9"
    loss = "what uses the share in the guest waits until the machine is restarted"
    assert ("helper restarted", f"{told}; {loss}") in one.events()
    second = helper(one)
    assert second != first
    assert process.alive(second)
    # The next one has to wait, and Nomad is not told of it again.
    assert process.send_signal(second, signal.SIGKILL)
    one.until(lambda: one.ask("status")["helpers"].get("fs0") not in (None, second.pid), "a third one")
    assert one.kinds().count("helper restarted") == 1
    ticks = one.out.text.count("tick")
    one.until(lambda: one.out.text.count("tick") > ticks + 3, "the guest to go on")
    one.machine.destroy()
    assert daemons(one.machine.run.root) == []

    again = host.start("mount=chv:srv-data:/m get=/m/of-host poweroff", mounts=share(directory))
    again.until_line("got /m/of-host hello")
    assert again.end().exit_code == 0
    again.machine.destroy()


def test_another_keeper_has_the_helpers_of_the_one_that_was_killed(host: Host, directory: Path) -> None:
    one = host.start("mount=chv:srv-data:/m get=/m/of-host get=/m/later tick", mounts=share(directory))
    one.until_line("got /m/of-host hello")
    before = helper(one)
    one.kill_keeper()
    assert one.machine.settle() is None
    assert helper(one) == before
    (directory / "later").write_text("still\n")
    one.until_line("got /m/later still")
    assert process.send_signal(before, signal.SIGKILL)
    one.until_told("helper restarted: virtiofsd of share chv:srv-data ended, nobody knows how")
    assert helper(one).pid in daemons(one.machine.run.root)
    one.machine.destroy()
    assert daemons(one.machine.run.root) == []


def test_a_machine_without_a_keeper_is_taken_back_with_its_helpers(host: Host, directory: Path) -> None:
    one = host.start("tick", mounts=share(directory))
    one.until_line("tick 1")
    assert len(daemons(one.machine.run.root)) == 2
    one.kill_keeper()
    one.machine.destroy()
    assert daemons(one.machine.run.root) == []
    assert host.processes() == NOTHING


def test_a_helper_that_ended_without_a_keeper_is_started_by_the_next_one(host: Host, directory: Path) -> None:
    one = host.start("tick", mounts=share(directory))
    one.until_line("tick 1")
    before = helper(one)
    one.kill_keeper()
    assert process.send_signal(before, signal.SIGKILL)
    assert process.wait_gone(before, 5.0)
    assert one.machine.settle() is None
    one.until_told("helper restarted: virtiofsd of share chv:srv-data ended while there was no keeper")
    assert helper(one) != before
    one.machine.destroy()
    assert daemons(one.machine.run.root) == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/nowhere/virtiofsd", "virtiofsd of share chv:srv-data: /nowhere/virtiofsd: no such file or directory"),
        ("/bin/false", "virtiofsd of share chv:srv-data ended with status 1"),
        ("/bin/ls", "virtiofsd of share chv:srv-data ended with status 2: Try '/bin/ls --help' for more information."),
    ],
)
def test_a_start_without_its_helper_fails_in_words_and_leaves_nothing(
    program: str, words: str, host: Host, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "virtiofsd_program", lambda: Program(path=program, version="1.0"))
    with pytest.raises(LaunchError) as exc:
        host.start("tick", mounts=share(directory))
    assert str(exc.value) == words
    assert host.processes() == NOTHING


def test_a_host_without_virtiofsd_says_where_it_looked(
    host: Host, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "VIRTIOFSD_PLACES", ("/nowhere/virtiofsd",))
    monkeypatch.setattr(probe, "find_program", lambda _: None)
    with pytest.raises(HostError) as exc:
        host.start("tick", mounts=share(directory))
    assert str(exc.value).startswith(
        "the share at /srv/data: virtiofsd is not installed (looked in /nowhere/virtiofsd, /usr/local/sbin:"
    )
    assert "qemu-system-common" in exc.value.hint


def test_a_keeper_that_dies_as_it_starts_a_helper_leaves_nothing(
    host: Host, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.directory / "marker").touch()
    monkeypatch.setenv("CHV_FAILPOINT", f"child.helper:{host.directory}/marker")
    with pytest.raises(LaunchError, match="the keeper ended before the VMM ran"):
        host.start("tick", mounts=share(directory))
    assert host.processes() == NOTHING
    one = host.start("tick", mounts=share(directory))
    one.until_line(READY)
    one.machine.destroy()


@pytest.mark.parametrize("place", ["start.spawned", "start.booted", "start.committed"])
def test_what_a_start_that_was_killed_left_is_taken_back_with_its_helpers(
    place: str, host: Host, directory: Path
) -> None:
    spec = host.spec("tick", mounts=share(directory))
    with host.elsewhere(spec, failpoint=place) as starter:
        _, words = starter.communicate(timeout=60)
        assert starter.returncode == -signal.SIGKILL, words.decode()
    host.machines.destroy(spec.name, spec.id)
    assert daemons(host.layout.run(spec.id).root) == []
    assert host.processes() == NOTHING


# -- disks -----------------------------------------------------------------------------------------------------------


def test_a_file_is_a_raw_disk_that_guest_and_host_write(host: Host) -> None:
    image = host.directory / "volume"
    image.write_bytes(b"from-host".ljust(64) + bytes((1 << 20) - 64))
    words = "read=srv-data write=srv-data:from-guest poweroff"
    one = host.start(words, mounts=share(image))
    assert one.end().exit_code == 0
    assert {"read srv-data from-host", "wrote srv-data"} <= set(one.out.lines)
    assert image.read_bytes()[:64] == b"from-guest".ljust(64)
    one.machine.destroy()


def test_a_read_only_file_is_a_disk_that_cannot_be_written(host: Host) -> None:
    image = host.directory / "volume"
    image.write_bytes(bytes(1 << 20))
    one = host.start("write=srv-data:x poweroff", mounts=share(image, readonly=True))
    assert one.end().exit_code == 0
    assert "not wrote srv-data" in one.out.lines
    assert not image.read_bytes().strip(b"\0")
    one.machine.destroy()


def test_a_block_device_is_a_disk(host: Host) -> None:
    image = host.directory / "volume"
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False, timeout=30
    )
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        one = host.start("write=srv-data:x read=srv-data poweroff", mounts=share(device))
        assert one.end().exit_code == 0
        assert {"wrote srv-data", "read srv-data x"} <= set(one.out.lines)
        one.machine.destroy()
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True, timeout=30)
    assert image.read_bytes()[:1] == b"x"


def test_two_machines_never_write_to_one_file(host: Host) -> None:
    image = host.directory / "volume"
    image.write_bytes(bytes(1 << 20))
    one = host.start("tick", mounts=share(image))
    one.until_line(READY)
    with pytest.raises(NoCapacityError, match=r"a disk among .*/volume: another process on this host has it open"):
        host.start("tick", task="other", mounts=share(image))
    one.machine.destroy()
