"""The power fails after every system call that changes the disk: all starts from there, and nothing goes to two."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.boots import in_another_boot
from tests.integration.machines import NOTHING, Host
from tests.integration.power import Disk, State, record

CHECKOUT = Path(__file__).parents[2]
SOAK = "CHV_SOAK_ROUNDS" in os.environ
_FULL = 5 if SOAK else 20  # every so many states are started up to a running guest
# What is always tried; of the rest, which is the making of overlay and boot files, some are.
_MATTERS = ("ledger", "journal", "exit.json", "seed", "holder", "machine.json", "version", "disk.json")
_SOME = 1 if SOAK else 6

pytestmark = pytest.mark.needs("strace")


@pytest.fixture
def small_guest(short_dir: Path) -> Path:
    """All that the fake hypervisor needs of a guest, so that a tree is quickly written."""
    guest = short_dir / "guest"
    guest.mkdir()
    for name in ("vmlinuz", "initrd.img"):
        (guest / name).write_bytes(b"\x7fELF")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(guest / "disk.qcow2"), "8M"], check=True)
    return guest


@pytest.mark.timeout(600 if SOAK else 300)
def test_after_a_power_loss_at_any_call_everything_starts_and_nothing_goes_to_two(
    short_dir: Path, small_guest: Path
) -> None:
    host = Host(short_dir, small_guest, "fake")
    for directory in (host.layout.data_dir, host.layout.run_dir):
        directory.mkdir()
    log = short_dir / "calls"
    record([sys.executable, "-m", "tests.integration.power_run", str(short_dir), str(small_guest)], log, cwd=CHECKOUT)
    disk = Disk(host.layout.data_dir)
    states = list(disk.states(log))
    assert disk.tree("written") == tree_at(host.layout.data_dir)  # the simulated disk is the real one
    assert_recorded(states)
    chosen = [
        (f"{one.number} {one.call} {one.path} ({one.variant})", one.tree)
        for number, one in enumerate(states)
        if any(word in one.path for word in _MATTERS) or number % _SOME == 0
    ]
    (short_dir / "states").write_bytes(pickle.dumps(chosen))
    check = [sys.executable, "-m", "tests.integration.power_check", str(short_dir), str(small_guest)]
    done = subprocess.run(
        in_another_boot(short_dir, *check, str(short_dir / "states"), str(_FULL)),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{len(chosen)} of {len(states)} states")
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-3000:]}"
    assert host.processes() == NOTHING


def assert_recorded(states: list[State]) -> None:
    """What this is about was written in the recorded run."""
    paths = {one.path for one in states}
    for word in (
        "ledger.json",
        "journal",
        "exit.json",
        "seed.iso",
        "holder.json",
        "machine.json",
        "version",
        "disk.raw",
    ):
        assert any(path.endswith(word) for path in paths), word


def tree_at(top: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(top)): None if path.is_dir() else path.read_bytes() for path in top.rglob("*")}
