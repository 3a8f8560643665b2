"""The test guest does what its README says, under a QEMU that is started by hand."""

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import CMDLINE, Guest

QEMU = (
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-machine", "q35", "-accel", "tcg,thread=multi", "-m", "128", "-serial", "stdio"),
    *("-device", "virtio-serial-pci", "-device", "pvpanic-pci", "-action", "panic=exit-failure"),
)


class Running:
    """One guest under QEMU."""

    def __init__(self, qemu: subprocess.Popen[str], directory: Path) -> None:
        self._qemu = qemu
        self._directory = directory
        self.console: list[str] = []

    def read_until(self, wanted: str) -> None:
        assert self._qemu.stdout is not None
        for line in self._qemu.stdout:
            self.console.append(line.rstrip())
            if line.rstrip() == wanted:
                return
        pytest.fail(f"no line {wanted!r} on the console: {self.console}")

    def read_all(self) -> int:
        """Read to the end; the exit code of QEMU."""
        assert self._qemu.stdout is not None
        self.console += [line.rstrip() for line in self._qemu.stdout]
        return self._qemu.wait(30)

    def type(self, text: str) -> None:
        assert self._qemu.stdin is not None
        self._qemu.stdin.write(text)
        self._qemu.stdin.flush()

    def power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.settimeout(10)
            qmp.connect(str(self._directory / "qmp"))
            with qmp.makefile("rw") as lines:
                for command in ("qmp_capabilities", "system_powerdown"):
                    lines.write(json.dumps({"execute": command}) + "\n")
                    lines.flush()
                    while "return" not in json.loads(lines.readline()):
                        pass

    @property
    def channel(self) -> str:
        return (self._directory / "channel").read_text()


@contextlib.contextmanager
def _boot(directory: Path, *args: str) -> Iterator[Running]:
    own = (
        *("-qmp", f"unix:{directory}/qmp,server=on,wait=off"),
        *("-chardev", f"file,id=channel,path={directory}/channel"),
        *("-device", "virtserialport,chardev=channel,name=org.chv.agent.0"),
    )
    with subprocess.Popen([*QEMU, *own, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        alarm = threading.Timer(90, qemu.kill)  # ends the reads as well
        alarm.start()
        try:
            yield Running(qemu, directory)
        finally:
            alarm.cancel()
            qemu.kill()


def _direct(guest: Guest, words: str) -> tuple[str, ...]:
    return ("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", f"{CMDLINE} {words}")


def test_an_exit_code_reaches_the_channel_before_the_guest_is_off(guest: Guest, short_dir: Path) -> None:
    with _boot(short_dir, *_direct(guest, "say=before sleep=1 exit=3")) as running:
        assert running.read_all() == 0
        assert running.channel == "exit 3\n"
    assert running.console.index("chv test guest: up") < running.console.index("chv test guest: ready")
    assert running.console.index("say before") < running.console.index("exit 3")


@pytest.mark.parametrize("image", ["disk_raw", "disk_qcow2"])
def test_the_disk_images_boot_and_obey_the_power_button(guest: Guest, short_dir: Path, image: str) -> None:
    path: Path = getattr(guest, image)
    drive = f"driver={path.suffix[1:]},node-name=root,read-only=on,file.driver=file,file.filename={path}"
    with _boot(short_dir, "-blockdev", drive, "-device", "virtio-blk-pci,drive=root,serial=root") as running:
        running.read_until("chv test guest: ready")
        assert f"disk vda {guest.disk_raw.stat().st_size} root" in running.console
        running.power_button()
        assert running.read_all() == 0
    assert "power button" in running.console


def test_a_reboot_happens_once(guest: Guest, short_dir: Path) -> None:
    with _boot(short_dir, *_direct(guest, "reboot-once poweroff")) as running:
        assert running.read_all() == 0
    said = [line for line in running.console if line in ("chv test guest: up", "rebooting", "rebooted")]
    assert said == ["chv test guest: up", "rebooting", "chv test guest: up", "rebooted"]


def test_a_panic_is_seen_by_the_vmm(guest: Guest, short_dir: Path) -> None:
    with _boot(short_dir, *_direct(guest, "panic")) as running:
        assert running.read_all() == 1
    assert "panicking" in running.console


def test_the_console_takes_input_and_a_flood_has_an_end(guest: Guest, short_dir: Path) -> None:
    with _boot(short_dir, *_direct(guest, "echo tick flood=2000 sleep=2 poweroff")) as running:
        running.read_until("flood end 2000")
        running.type("hello\n")
        running.read_until("echo: hello")
        assert running.read_all() == 0
    assert len([line for line in running.console if "flood 0" in line]) == 20
    assert "tick 3" in running.console
