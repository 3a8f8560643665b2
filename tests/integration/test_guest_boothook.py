"""What the seed's boothook does in guests of several kinds, played by namespaces of this host."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmlib.guest.delivery import boothook

SHELLS = [words for words in (["sh"], ["bash"], ["busybox", "sh"]) if shutil.which(words[0])]
LISTENS = (b"\nAGENT_PORT = 1000 ", b"\nAGENT_PORT = 1 << 30 "), (b"\nEXIT_PORT = 5000 ", b"\nEXIT_PORT = 1 << 30 ")


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> Sequence[str]:
    return request.param  # type: ignore[no-any-return]


def boot(shell: Sequence[str], directory: Path, *, guest: str, look: str = "", python: str = "exec {}") -> list[str]:
    """Run the boothook by `shell` where the script `guest` has made the guest; what it and then `look` say.

    The guest has an empty /run, and as programs its `python3`, this host's few that the script needs, and fakes that
    note in /run/called how they are called. All its processes end with it.
    """
    programs = directory / "bin"
    programs.mkdir()
    for name in ("sh", "cat", "mkdir", "sleep"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name in ("systemctl", "rc-service", "poweroff"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>/run/called\n')
    if python:
        (programs / "python3").write_text(f'#!/bin/sh\n{python.format(os.path.realpath("/proc/self/exe"))} "$@"\n')
    for path in programs.iterdir():
        if not path.is_symlink():
            path.chmod(0o755)
    text = boothook()
    for here, there in LISTENS:
        assert here in text
        text = text.replace(here, there)
    (directory / "boothook").write_bytes(text)
    script = f"""
        mount -t tmpfs tmpfs /run
        {guest}
        env -i PATH={programs} {shutil.which(shell[0])} {" ".join(shell[1:])} {directory}/boothook
        echo "code $?"
        {look}
    """
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize("python", ["", "exit 1; {}"], ids=["none", "too-old"])
def test_a_guest_without_a_python_that_will_do_is_told_so_and_left_alone(
    tmp_path: Path, shell: Sequence[str], python: str
) -> None:
    assert boot(shell, tmp_path, guest="", look="ls /run", python=python) == [
        "chv: this guest has no Python of 3.6 or newer, so it gets no agent",
        "code 0",
    ]


def test_a_guest_whose_run_is_read_only_has_no_agent_and_boots_on(tmp_path: Path, shell: Sequence[str]) -> None:
    said = boot(shell, tmp_path, guest="mount -o remount,ro /run")
    assert said[-1] == "code 0"
    assert "Read-only file system" in said[0]


# The agent, and the shell that starts it again; then what the agent's end leads to.
PLAIN_LOOK = """
    until [ -S /run/chv/agent.sock ]; do sleep 0.1; done
    first=$(pgrep -f '^[^ ]*python.* run$')
    kill -9 $first
    until second=$(pgrep -f '^[^ ]*python.* run$') && [ $first != $second ]; do sleep 0.1; done
    echo again
    until [ -S /run/chv/agent.sock ]; do sleep 0.1; done
    stat -c '%A %n' /run/chv/*
    /run/chv/chv-exit 256 || echo usage $?
    /run/chv/chv-exit 7 || echo nobody $?
"""
PLAIN = [
    "chv: the guest agent runs (plain)",
    "code 0",
    "again",
    "-rw------- /run/chv/agent.py",
    "srw------- /run/chv/agent.sock",
    "-rwxr-xr-x /run/chv/chv-exit",
    "usage: chv-exit N, with N from 0 to 255",
    "usage 2",
    "chv-exit: the host does not listen, or you are not root",
    "nobody 1",
]
NO_PROGRAM_THERE = "mount -t tmpfs tmpfs /usr/local/bin;"


def test_a_guest_without_an_init_that_it_knows_has_it_plain(tmp_path: Path, shell: Sequence[str]) -> None:
    said = boot(shell, tmp_path, guest=NO_PROGRAM_THERE, look=PLAIN_LOOK + "cat /usr/local/bin/chv-exit")
    assert said[: len(PLAIN)] == PLAIN
    program = "\n".join(said[len(PLAIN) :])
    assert re.fullmatch(r'#!/bin/sh\nexec /\S+ -IS /run/chv/agent\.py exit "\$@"', program), program


def test_a_guest_that_has_no_place_for_programs_gets_one_that_all_can_enter(
    tmp_path: Path, shell: Sequence[str]
) -> None:
    look = "stat -c '%a %n' /usr/local/bin /usr/local/bin/chv-exit /run/chv/agent.py"
    said = boot(shell, tmp_path, guest="mount -t tmpfs tmpfs /usr/local;", look=look)
    assert said[2:] == ["755 /usr/local/bin", "755 /usr/local/bin/chv-exit", "600 /run/chv/agent.py"]


def test_a_guest_whose_root_is_read_only_lacks_the_program_alone(tmp_path: Path, shell: Sequence[str]) -> None:
    said = boot(shell, tmp_path, guest=f"{NO_PROGRAM_THERE} mount -o remount,ro /usr/local/bin", look=PLAIN_LOOK)
    assert said == ["chv: /usr/local/bin/chv-exit: Read-only file system", *PLAIN]


UNIT = r"""\[Unit\]
Description=Guest agent of chv
DefaultDependencies=no
StartLimitIntervalSec=0
Conflicts=shutdown\.target
Before=shutdown\.target

\[Service\]
ExecStart=/\S+ -IS /run/chv/agent\.py run
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-500"""


def test_with_systemd_it_is_a_service_of_this_boot(tmp_path: Path, shell: Sequence[str]) -> None:
    guest = f"{NO_PROGRAM_THERE} mkdir -p /run/systemd/system"
    said = boot(shell, tmp_path, guest=guest, look="cat /run/called /run/systemd/system/*")
    assert said[:4] == [
        "chv: the guest agent runs (systemd)",
        "code 0",
        "systemctl daemon-reload",
        "systemctl restart --no-block chv-agent.service",
    ]
    assert re.fullmatch(UNIT, "\n".join(said[4:])), said


def test_with_openrc_it_is_a_service(tmp_path: Path, shell: Sequence[str]) -> None:
    guest = f"{NO_PROGRAM_THERE} mkdir -p /run/openrc; mount -t tmpfs tmpfs /etc/init.d"
    look = "cat /run/called; stat -c '%a %n' /etc/init.d/*; sh -n /etc/init.d/chv-agent; cat /etc/init.d/chv-agent"
    said = boot(shell, tmp_path, guest=guest, look=look)
    assert said[:4] == [
        "chv: the guest agent runs (OpenRC)",
        "code 0",
        "rc-service chv-agent restart",
        "755 /etc/init.d/chv-agent",
    ]
    assert said[4] == "#!/sbin/openrc-run"
    assert said[-1] == 'command_args="-IS /run/chv/agent.py run"'


def test_with_openrc_on_a_read_only_root_it_runs_plain(tmp_path: Path, shell: Sequence[str]) -> None:
    guest = f"{NO_PROGRAM_THERE} mkdir -p /run/openrc; mount -t tmpfs -o ro tmpfs /etc/init.d"
    assert boot(shell, tmp_path, guest=guest)[:2] == PLAIN[:2]
