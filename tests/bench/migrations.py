"""A vCPU beside noisy neighbours: how often the kernel moves it, and how much of a CPU it gets, pinned over floating.

One machine runs at a time: beside a pinned one a floating one would have to leave its core, and could not float.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median

from tests import needs
from tests.bench.measure import LeftOutError, Line, Settings, in_turns, line
from tests.bench.start import BANNER, machines_in, read_until, spec_of
from tests.guest.build import CMDLINE
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.service import CoreSettings
from vmlib.machine import Machines
from vmlib.spec import CoresSpec, DirectBoot, MachineSpec

_WINDOW_S = 4.0
_SETTLE_S = 0.5  # after the neighbours have begun
_BUSY = f"{CMDLINE} idle=poll"  # the guest's kernel spins where it would halt: a vCPU that always wants to run
# A loop that spins and sleeps for times drawn by lot, by seed the same ones, and does not outlive who started it.
_NEIGHBOUR = """
import os, random, sys, time
parent, dice = os.getppid(), random.Random(int(sys.argv[1]))
print(flush=True)
while os.getppid() == parent:
    end = time.monotonic() + dice.uniform(0.005, 0.03)
    while time.monotonic() < end:
        pass
    time.sleep(dice.uniform(0.002, 0.01))
"""


@dataclass(frozen=True, slots=True)
class Window:
    """What the kernel counted for one vCPU over a window."""

    moves_per_s: float
    share: float  # of one CPU


def run(settings: Settings) -> list[Line]:
    if len(CoreSettings().topology().cores) < 2 or len(os.sched_getaffinity(0)) < 2:
        raise LeftOutError("one core: nobody can have it for a machine, and nothing can float")
    if reason := needs.lacking("cgroup"):
        raise LeftOutError(f"no cores of one's own: {reason}")
    if not Path("/proc/self/sched").exists():
        raise LeftOutError("a kernel without /proc/PID/sched does not count migrations")
    noise = len(os.sched_getaffinity(0)) + 1  # one too many for them to lie evenly
    floating: list[Window] = []
    pinned: list[Window] = []
    numbers = count()
    directory = settings.directory("migrations")
    with machines_in(directory) as machines:

        def measured(windows: list[Window], *, exclusive: bool) -> float:
            fifo = directory / f"console-{next(numbers)}"
            spec = busy(spec_of(fifo.name, settings.guest_dir, stdout=fifo), CoresSpec(exclusive=exclusive))
            seed = len(windows)  # the two of a pair have the same neighbours
            windows.append(beside_noise(machines, spec, noise=noise, seed=seed))
            return windows[-1].moves_per_s

        in_turns(
            [lambda: measured(floating, exclusive=False), lambda: measured(pinned, exclusive=True)],
            pairs=settings.pairs,
            warm_up=0,
        )
    return lines_of(floating, pinned, noise)


def lines_of(floating: list[Window], pinned: list[Window], noise: int) -> list[Line]:
    beside = f"{len(floating)} windows of {_WINDOW_S:g} s beside {noise} processes that spin and sleep"
    # Divided by the median and not pair by pair: a quiet window of the floating one would be a division by zero.
    usual = median(one.moves_per_s for one in floating)
    if not usual:
        raise LeftOutError(f"most of {beside} moved no floating vCPU; migrations/s of the pinned {_rates(pinned)}")
    return [
        line(
            "vCPU migrations",
            f"migrations/s of a busy vCPU, median of {beside}: pinned {_rates(pinned)} / floating {_rates(floating)}",
            ours=[one.moves_per_s for one in pinned],
            baseline=[usual] * len(pinned),
            unit="1/s",
        ),
        line(
            "vCPU share of a CPU",
            f"CPU time of that vCPU over the window, more is better: pinned {_share(pinned)} / floating"
            f" {_share(floating)}; pinning keeps other machines away, not these neighbours",
            ours=[one.share for one in pinned],
            baseline=[one.share for one in floating],
            unit="share",
        ),
    ]


def _rates(windows: list[Window]) -> str:
    rates = [one.moves_per_s for one in windows]
    return f"{median(rates):.3g} ({min(rates):.3g} – {max(rates):.3g})"


def _share(windows: list[Window]) -> str:
    return f"{median(one.share for one in windows):.2f}"


def busy(spec: MachineSpec, cores: CoresSpec) -> MachineSpec:
    assert isinstance(spec.boot, DirectBoot)
    return replace(spec, boot=replace(spec.boot, cmdline=_BUSY), cores=cores)


def beside_noise(machines: Machines, spec: MachineSpec, *, noise: int, seed: int) -> Window:
    """Start a machine, and then the neighbours. Raises RuntimeError when the vCPU is not pinned, or does not float."""
    with ExitStack() as ours:
        os.mkfifo(spec.stdout)
        log = os.open(spec.stdout, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        ours.callback(os.close, log)
        machine = machines.start(spec)
        ours.callback(machine.destroy)
        read_until(log, BANNER)
        (vcpu,) = machine.vcpus()
        allowed = os.sched_getaffinity(vcpu.thread_id)
        if (len(allowed) == 1) != spec.cores.exclusive:
            expected = "only one" if spec.cores.exclusive else "more"
            raise RuntimeError(f"the vCPU may run on CPU {format_cpus(allowed)}, expected {expected}")
        ours.enter_context(neighbours(noise, seed))
        time.sleep(_SETTLE_S)
        return watched(machine.record.vmm_pid, vcpu.thread_id)


@contextmanager
def neighbours(noise: int, seed: int) -> Iterator[None]:
    """Processes outside our cgroups, allowed on every CPU, that run until the block ends."""
    with ExitStack() as ours:
        for number in range(noise):
            argv = [sys.executable, "-I", "-S", "-c", _NEIGHBOUR, str(seed * noise + number)]
            # Sessions of their own: the kernel may weigh all processes of one session as one.
            child = ours.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True))
            ours.callback(child.kill)
            assert child.stdout is not None
            if not child.stdout.readline():
                raise RuntimeError(f"neighbour {number} ended at once")
        yield


def watched(pid: int, tid: int) -> Window:
    begin, before = time.monotonic(), counted(pid, tid)
    time.sleep(_WINDOW_S)
    took_s, after = time.monotonic() - begin, counted(pid, tid)
    return Window(
        moves_per_s=(after["se.nr_migrations"] - before["se.nr_migrations"]) / took_s,
        share=(after["se.sum_exec_runtime"] - before["se.sum_exec_runtime"]) / 1000 / took_s,
    )


def counted(pid: int, tid: int) -> dict[str, float]:
    """The kernel's own counters of a thread; times in milliseconds."""
    rows = (text.partition(" :") for text in Path(f"/proc/{pid}/task/{tid}/sched").read_text().splitlines())
    return {key.strip(): float(value) for key, colon, value in rows if colon}
