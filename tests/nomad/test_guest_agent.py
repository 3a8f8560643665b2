"""What a person does to a guest with its agent, on a real Nomad agent and in a Debian image: exec, signals, templates.

One machine for all tests of this file, which run in this order.
"""

import contextlib
import fcntl
import hashlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nomad.agent import Agent
from tests.nomad.test_jobs import job_file

pytestmark = [pytest.mark.needs("cloud-image"), pytest.mark.timeout(900)]

JOB = "guest-agent"
BOOT_S = 300.0
LARGE = 100_000_000  # bytes


@dataclass
class Guest:
    """The machine of the job, as `nomad alloc exec` reaches it."""

    agent: Agent
    alloc: str

    def argv(self, *words: str, flags: tuple[str, ...] = ("-i=false", "-t=false")) -> list[str]:
        return [self.agent.binary, "alloc", "exec", *flags, self.alloc, *words]

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"NOMAD_ADDR": self.agent.address}

    def run(
        self, *words: str, data: bytes | None = None, timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[bytes]":
        flags = ("-i=false", "-t=false") if data is None else ("-i", "-t=false")
        return subprocess.run(
            self.argv(*words, flags=flags),
            env=self.env,
            input=data or b"",
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def sh(self, script: str, timeout_s: float = 60.0) -> str:
        """What a script says, once it has come to a good end."""
        done = self.run("/bin/sh", "-c", script, timeout_s=timeout_s)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout.decode()

    def events(self) -> list[str]:
        return [message for _, message in self.agent.task_events(self.alloc, JOB)]


@pytest.fixture(scope="module")
def inside(dev_agent: Agent) -> Iterator[Guest]:
    dev_agent.command("var", "put", f"nomad/jobs/{JOB}", "color=blue", "token=s3cret")
    dev_agent.run_job(job_file(JOB))
    alloc = dev_agent.wait_alloc(JOB, "running", "failed", timeout_s=BOOT_S)
    assert dev_agent.alloc(alloc)["ClientStatus"] == "running", dev_agent.task_events(alloc, JOB)
    yield Guest(dev_agent, alloc)
    dev_agent.command("job", "stop", "-detach", JOB)
    dev_agent.wait_alloc(JOB, "complete", timeout_s=90)


def test_the_task_runs_when_its_guest_does(inside: Guest) -> None:
    """`wait_for`: whoever sees it running can use it at once."""
    done = inside.run("true", timeout_s=20)
    assert (done.returncode, done.stderr) == (0, b"")
    (ready,) = [text for text in inside.events() if text.startswith("agent ready")]
    assert re.search(r"booted in \d+ s", ready)
    assert "10.0.2.15" in ready or "address" in ready


def test_a_command_has_its_two_outputs_and_its_exit_code(inside: Guest) -> None:
    done = inside.run("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert inside.run("/bin/sh", "-c", "kill -9 $$").returncode == 137
    missing = inside.run("no-such-command")
    assert missing.returncode == 127
    assert b"no-such-command" in missing.stdout + missing.stderr


def test_a_command_gets_its_input_to_the_end(inside: Guest) -> None:
    data = bytes(range(256)) * 4000
    done = inside.run("sha256sum", data=data, timeout_s=60)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_command_has_the_task_s_environment(inside: Guest) -> None:
    assert inside.sh('printf %s "$GREETING"') == 'it\'s "5 $" `now`'
    assert inside.sh('set -a; . /run/nomad/env; printf %s "$GREETING $NOMAD_JOB_NAME"') == f'it\'s "5 $" `now` {JOB}'
    assert inside.sh("stat -c '%a %U' /run/nomad/env").split() == ["600", "root"]


class Terminal:
    """`nomad alloc exec -i -t` on a pseudo-terminal, as a person has it."""

    def __init__(self, inside: Guest, *words: str, rows: int, cols: int) -> None:
        self.main, slave = pty.openpty()
        self.resize(rows, cols)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *inside.argv(*words, flags=("-i", "-t"))],
            env=inside.env | {"TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def until(self, pattern: bytes, timeout_s: float = 30.0) -> "re.Match[bytes]":
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"waited for {pattern!r} in {self.seen[-500:]!r}"
            if select.select([self.main], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.main, 1 << 16)
        self.seen = self.seen[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.main)


def test_a_person_has_a_terminal_that_may_change_its_size(inside: Guest) -> None:
    with contextlib.closing(Terminal(inside, "/bin/bash", "--norc", rows=33, cols=101)) as terminal:
        terminal.until(rb"[#$] $")
        terminal.type("tty; stty size\r")
        assert b"/dev/pts/" in terminal.until(rb"(/dev/pts/\d+)\r\n33 101\r\n").group()
        terminal.resize(44, 120)
        terminal.type("sleep 1; stty size\r")
        terminal.until(rb"44 120\r\n")
        terminal.type("sleep 600\r")
        terminal.until(rb"sleep 600")
        time.sleep(1)  # what came is its echo: the shell has yet to run it
        terminal.type("\x03")
        terminal.type("echo interrupted with $?; exit 5\r")
        terminal.until(rb"interrupted with 130\r\n")
        assert terminal.process.wait(20) == 5


def test_ten_people_at_once_do_not_notice_one_another(inside: Guest) -> None:
    def one(number: int) -> tuple[int, bytes]:
        done = inside.run("/bin/sh", "-c", f"cat; sleep 2; exit {number}", data=b"%d" % number * 5000, timeout_s=90)
        return done.returncode, done.stdout

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(one, range(10)))
    assert found == [(number, b"%d" % number * 5000) for number in range(10)]


def test_a_hundred_megabytes_go_in_and_come_out_again(inside: Guest, tmp_path: Path) -> None:
    """Both ways at once, which is harder than one after the other."""
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.writelines(os.urandom(1_000_000) for _ in range(LARGE // 1_000_000))
    wanted = hashlib.sha256(source.read_bytes()).hexdigest()
    script = "tee /run/sum.fifo"
    inside.sh("rm -f /run/sum.fifo; mkfifo /run/sum.fifo; (sha256sum </run/sum.fifo >/run/sum 2>&1 &)")
    began = time.monotonic()
    with open(source, "rb") as stdin, open(tmp_path / "back", "wb") as stdout:
        subprocess.run(
            inside.argv("/bin/sh", "-c", script, flags=("-i", "-t=false")),
            env=inside.env,
            stdin=stdin,
            stdout=stdout,
            timeout=700,
            check=True,
        )
    print(f"{LARGE / (time.monotonic() - began) / 1e6:.2f} MB/s each way")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == wanted
    assert inside.sh("cat /run/sum").split()[0] == wanted


def test_a_caller_that_goes_away_takes_its_command_along(inside: Guest) -> None:
    caller = subprocess.Popen(
        inside.argv("sleep", "98765", flags=("-i", "-t=false")),
        env=inside.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    count = "pgrep -c -x -f 'sleep 98765' || true"
    inside.agent.wait_for("the command", lambda: inside.sh(count).strip() == "1")
    caller.send_signal(signal.SIGINT)
    caller.wait(20)
    inside.agent.wait_for("the command's end", lambda: inside.sh(count).strip() == "0")


def test_signals_reach_what_the_guest_has_for_them_and_others_are_refused_with_the_way_to_do_it(inside: Guest) -> None:
    inside.sh("rm -f /run/color.seen")
    inside.agent.command("alloc", "signal", "-s", "SIGHUP", inside.alloc)
    assert inside.sh("cat /run/color.seen") == "blue\n"
    refused = inside.agent.command("alloc", "signal", "-s", "SIGUSR2", inside.alloc, check=False)
    assert refused.returncode != 0
    assert "/etc/chv/signals/SIGUSR2.d" in refused.stderr
    inside.sh("mkdir -p /etc/chv/signals/SIGUSR1.d; printf '#!/bin/sh\\nexit 9\\n' >/etc/chv/signals/SIGUSR1.d/no; "
             "chmod +x /etc/chv/signals/SIGUSR1.d/no")  # fmt: skip
    refused = inside.agent.command("alloc", "signal", "-s", "SIGUSR1", inside.alloc, check=False)
    assert refused.returncode != 0
    assert "9" in refused.stderr


def test_a_change_of_a_template_reaches_the_guest_by_signal_and_by_script(inside: Guest) -> None:
    inside.sh("rm -f /run/color.seen /run/token.seen")
    inside.agent.command("var", "put", "-force", f"nomad/jobs/{JOB}", "color=green", "token=n3w")
    look = "cat /run/color.seen /run/token.seen 2>/dev/null || true"
    inside.agent.wait_for("the new values in the guest", lambda: inside.sh(look) == "green\nn3w\n", timeout_s=90)


def test_a_secret_is_readable_only_where_it_should_be(inside: Guest) -> None:
    assert inside.sh("cat /secrets/token") == "n3w\n"
    for path in ("/secrets/token", "/run/nomad/env", "/run/chv/agent.sock"):
        assert inside.run("su", "-s", "/bin/sh", "-c", f"cat {path}", "nobody").returncode != 0
    assert inside.sh("su -s /bin/sh -c 'chv-exit 0 2>&1' nobody || true") != ""
    assert inside.run("true").returncode == 0  # nobody cannot end the machine
    base = inside.agent.paths.base
    for value in (b"s3cret", b"n3w"):
        told = [path for path in (base / "data", base / "run") for one in path.rglob("*") if _holds(one, value)
                for path in (one,) if one.stat().st_mode & 0o077]  # fmt: skip
        assert told == []
    arguments = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"n3w" not in arguments


def _holds(path: Path, value: bytes) -> bool:
    if not path.is_file() or path.suffix == ".qcow2":
        return False
    try:
        return value in path.read_bytes()
    except FileNotFoundError:  # the agent writes beside and renames
        return False


def test_stats_and_console_are_there_beside_it(inside: Guest) -> None:
    shown = inside.agent.command("alloc", "status", "-stats", inside.alloc).stdout
    assert re.search(r"[1-9]\d*(\.\d+)? MiB", shown), shown
    with contextlib.closing(Terminal(inside, "console", rows=24, cols=80)) as terminal:
        terminal.type("\r")
        terminal.until(rb"login:")
        terminal.type("\x1d")
        assert terminal.process.wait(20) == 0


def test_a_batch_job_fails_with_the_code_that_its_guest_ended_it_with(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("guest-exit"))
    alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=BOOT_S)
    assert dev_agent.alloc(alloc)["ClientStatus"] == "failed"
    events = dev_agent.task_events(alloc, "guest-exit")
    assert any(kind == "Terminated" and "Exit Code: 7" in text for kind, text in events), events
    assert "the work is done" in dev_agent.logs(alloc)
