"""`chv run`: a machine without Nomad, at a terminal, in a pipe and left to itself; nothing of it is left."""

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest import build
from tests.integration.nodes import NOTHING, PATIENCE_S, READY, Node, kill
from tests.integration.test_cli import as_json
from tests.integration.test_console import LEAVE, shell

# The way in, which tells a plugin from a tool, and the command's own.
MODULES = {
    "driver",
    "driver.main",
    "driver.goplugin",
    "driver.goplugin.handshake",
    "driver.cli",
    "driver.cli.errors",
    "driver.cli.itself",
    "driver.cli.run",
    "driver.cli.run_life",
    "driver.cli.run_settings",
    "driver.cli.terminal",
}


def direct(node: Node, words: str = "") -> tuple[str, ...]:
    """A guest that boots directly and is told `words`."""
    kernel = str(node.images / "kernel") if node.hypervisor == "fake" else f"{node.guest}/vmlinuz"
    initrd = () if node.hypervisor == "fake" else ("--initrd", f"{node.guest}/initrd.img")
    cmdline = f"{build.CMDLINE} {words}"
    return ("run", "--kernel", kernel, *initrd, "--cmdline", cmdline, "--memory", "128MiB", "--placement", "shared")


@contextlib.contextmanager
def in_a_pipe(node: Node, *words: str) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [str(node.chv), *words],
        env={**os.environ, **node.environment, "CHV_CONFIG": str(node.agent_file)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_until(child: "subprocess.Popen[str]", text: str) -> str:
    assert child.stdout is not None
    said = ""
    for line in child.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"ended before {text!r}: {said}")


def nothing_is_left(node: Node) -> None:
    assert node.processes() == NOTHING
    assert (node.machines(), node.runs()) == ([], [])


def until_gone(node: Node) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while node.machines():
        assert time.monotonic() < deadline, node.machines()
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# a whole life


def test_it_shows_the_console_from_the_first_byte_ends_with_the_guests_code_and_leaves_nothing(node: Node) -> None:
    done = node.command(*direct(node, "exit=7"), "--network", "user0", "--vcpus", "2")
    assert done.returncode == 7, done.stderr
    for line in ("chv test guest: up", "vcpus 2", "address eth0 10.0.2.15", READY, "exit 7"):
        assert line in done.stdout
    nothing_is_left(node)


def test_it_loads_no_module_of_the_driver_but_the_commands_own(node: Node) -> None:
    spy = node.base / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "import atexit, json, sys\n"
        "def tell():\n"
        f"    json.dump(sorted(sys.modules), open({str(spy)!r} + '/' + sys.argv[1], 'w'))\n"
        "atexit.register(tell)\n"
    )
    done = node.command(*direct(node, "poweroff"), env={"PYTHONPATH": str(spy)})
    assert done.returncode == 0, done.stderr
    loaded = json.loads((spy / "run").read_text())
    assert "vmlib.machine" in loaded
    assert {name for name in loaded if name.partition(".")[0] == "driver"} == MODULES
    assert not {"grpc", "google", "hcl2"} & {name.partition(".")[0] for name in loaded}


def test_an_image_gets_a_disk_of_its_own_and_what_is_typed_in_a_pipe_reaches_the_guest(node: Node) -> None:
    image = node.guest / "disk.qcow2"
    before = image.stat()
    user_data = node.base / "user-data"
    user_data.write_text("#words echo\n")
    with in_a_pipe(
        node, "run", "--image", str(image), "--memory", "128MiB", "--user-data", str(user_data), "--hostname", "pet"
    ) as child:
        said = read_until(child, READY)
        assert "seed instance-id run-" in said
        assert child.stdin is not None
        child.stdin.write("hello\n")
        child.stdin.flush()
        read_until(child, "echo: hello")
        (row,) = as_json(node, "ps")
        assert (row["owner"], row["vcpus"], row["memory_mib"]) == ("run", 1, 128)
        found = as_json(node, "inspect", row["id"])
        assert (found["placement"], found["owner"]) == ("exclusive", "run")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0  # the power button, and the guest obeyed
    after = image.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_nlink) == (before.st_mtime_ns, before.st_size, before.st_nlink)
    nothing_is_left(node)


def test_a_second_signal_does_not_wait_for_the_guest(node: Node) -> None:
    with in_a_pipe(node, *direct(node, "ignore-acpi say=deaf")) as child:
        read_until(child, "say deaf")
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE_S) == 137
    nothing_is_left(node)


# ---------------------------------------------------------------------------------------------------------------------
# at a terminal, and left


def test_at_a_terminal_keys_are_the_guests_and_ctrl_bracket_leaves_it_running(node: Node) -> None:
    with shell(node, *direct(node, "echo")) as person:
        person.until("Ctrl-] leaves it running")
        person.until(READY)
        assert person.raw()
        person.type(b"hello\r")
        person.until("echo: hello")
        person.type(LEAVE)
        assert person.wait() == 0
        (row,) = as_json(node, "ps")
        assert f"{row['id']} goes on" in person.said.decode()
    assert (row["owner"], row["state"]) == ("run", "running")
    done = node.command("stop", row["id"][:8])
    assert (done.returncode, done.stderr) == (0, f"chv: {row['id']} is gone\n")
    nothing_is_left(node)


def test_a_machine_that_was_detached_is_removed_when_it_has_ended(fake_node: Node) -> None:
    done = fake_node.command(*direct(fake_node, "sleep=1 exit=3"), "--detach")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"run-[0-9a-f]{8}/vm\n", done.stdout)
    until_gone(fake_node)
    nothing_is_left(fake_node)


def test_where_nobody_sees_to_it_stop_ends_what_runs_and_gc_removes_what_has_ended(fake_node: Node) -> None:
    with in_a_pipe(fake_node, *direct(fake_node)) as child:
        read_until(child, READY)
        child.kill()
        child.wait()
    (row,) = as_json(fake_node, "ps")
    assert row["state"] == "running"
    assert as_json(fake_node, "gc", "--yes") == []  # nothing of a machine that runs
    assert fake_node.command("stop", row["id"]).returncode == 0
    nothing_is_left(fake_node)
    with in_a_pipe(fake_node, *direct(fake_node)) as child:
        read_until(child, READY)
        child.kill()
        child.wait()
    kill(fake_node.vmm)
    (item,) = as_json(fake_node, "gc")
    assert (item["kind"], item["owner"], item["removed"]) == ("machine", "run", False)
    (item,) = as_json(fake_node, "gc", "--yes")
    assert (item["why"], item["removed"]) == ("it has ended, and its `chv run` was killed", True)
    nothing_is_left(fake_node)
    (fake_node.layout.machines / "run-00000000/vm").mkdir(parents=True)  # killed before it had made anything else
    (item,) = as_json(fake_node, "gc", "--yes")
    assert (item["name"], item["removed"]) == ("run-00000000/vm", True)
    nothing_is_left(fake_node)


def test_a_signal_while_it_starts_takes_back_what_there_is(fake_node: Node) -> None:
    image = fake_node.images / "large.raw.gz"
    image.write_bytes(gzip.compress(bytes(64 << 20), 1) * 256)  # 16 GiB of nothing, which are seconds
    with shell(fake_node, "run", "--image", str(image)) as person:
        person.until("'large.raw.gz' is being unpacked")
        person.process.send_signal(signal.SIGINT)
        assert person.wait() == 128 + signal.SIGINT
    nothing_is_left(fake_node)
    shutil.rmtree(fake_node.layout.cache)


# ---------------------------------------------------------------------------------------------------------------------
# what cannot be


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "expected --image (boots from the disk) or --kernel (boots it directly), both are missing"),
        (("--image", "/nowhere.qcow2"), "--image /nowhere.qcow2: no such file or directory"),
        (("--image", "/etc/hostname"), "--image /etc/hostname: its name does not say what it is"),
        (("--kernel", "/etc/hostname", "--network", "lan"), "--network lan: expected one of user0, user, bridge:NAME"),
        (("--kernel", "/etc/hostname", "--memory", "1G"), "'1G', expected GiB (1024³) or GB (1000³)"),
        (("--kernel", "/etc/hostname", "--vcpus", "0"), "'0', expected 1 to 255"),
        (("--kernel", "/etc/hostname", "--firmware", "uefi"), "--firmware uefi: a kernel is booted without firmware"),
        (("--image", "/etc/hostname", "--initrd", "x"), "--initrd: works with --kernel only, which is missing"),
        (("--config", "/nowhere.hcl"), "/nowhere.hcl: no such file"),
    ],
)
def test_wrong_words_are_one_sentence_and_make_nothing(fake_node: Node, words: tuple[str, ...], complaint: str) -> None:
    done = fake_node.command("run", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not fake_node.layout.data_dir.exists()


def test_a_machine_that_does_not_start_is_exit_code_one_and_leaves_nothing(node: Node) -> None:
    wrong = node.base / "not.qcow2"
    wrong.write_bytes(b"no image at all")
    done = node.command("run", "--image", str(wrong))
    assert done.returncode == 1
    assert str(wrong) in done.stderr
    assert "Traceback" not in done.stderr
    nothing_is_left(node)


def test_stop_is_for_machines_of_run_alone(fake_node: Node) -> None:
    job: Path = fake_node.job()
    with fake_node.dev(job) as dev:
        dev.until_says(READY)
        (row,) = as_json(fake_node, "ps")
        done = fake_node.command("stop", row["id"])
        assert (done.returncode, done.stdout) == (2, "")
        assert "belongs to dev, expected a machine of `chv run`" in done.stderr
        rows: Any = as_json(fake_node, "ps")
        assert rows[0]["state"] == "running"
        dev.press_ctrl_c()
        dev.wait()
