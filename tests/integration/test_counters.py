"""What a real guest uses of its host: the kernel's words against one another, and groups that go away."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import READY, Host, Running, host_for
from vmlib import cgroup, counters
from vmlib.counters import CpuTime, Memory
from vmlib.keeper.plan import KeeperPlan
from vmlib.meter import MachineUse, Meter

pytestmark = pytest.mark.needs("cgroup")

BUSY = "idle=poll"  # the guest's kernel spins where it would halt
EATEN = "oom: the eater ended with 137"  # all of the RAM was touched
MIB = 1 << 20


@pytest.fixture
def host(short_dir: Path, guest: Guest) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as one:
        yield one


def plan_of(one: Running) -> KeeperPlan:
    return KeeperPlan.load(one.machine.run.plan.read_bytes())


def use_over(one: Running, meter: Meter, seconds: float) -> MachineUse:
    meter.take()
    one.pass_time(seconds)
    used = meter.take()
    assert used is not None
    return used


def cpu_of(count: counters.Count | None) -> CpuTime:
    assert count is not None
    assert count.cpu is not None
    return count.cpu


def memory_of(count: counters.Count | None) -> Memory:
    assert count is not None
    assert count.memory is not None
    return count.memory


def test_a_busy_guest_is_as_busy_as_proc_says_and_its_vcpu_does_it(host: Host) -> None:
    one = host.start(BUSY)
    one.until_line(READY)
    who, meter = one.machine.vmm_identity, Meter(one.machine.counter().read)
    before, begin = cpu_of(counters.of_process(who)), time.monotonic()
    used = use_over(one, meter, 3.0)
    after, span_s = cpu_of(counters.of_process(who)), time.monotonic() - begin
    expected = (after.total_ns - before.total_ns) / span_s / 1e7
    vmm, vcpu, keeper = (used.parts[name].cpu for name in ("vmm", "vcpu0", "keeper"))
    assert vmm is not None
    assert vcpu is not None
    assert keeper is not None
    assert used.total.cpu is not None
    assert vmm.percent == pytest.approx(expected, rel=0.15)
    assert 0.7 * vmm.percent < vcpu.percent <= vmm.percent + 5
    assert vmm.user_percent + vmm.system_percent == pytest.approx(vmm.percent, rel=0.1)
    assert used.total.cpu.percent == pytest.approx(vmm.percent + keeper.percent)
    assert keeper.percent < vmm.percent / 2
    assert cpu_of(_vmm(one)).origin in plan_of(one).cgroups


def test_v1_and_v2_count_the_same_cpu_time(host: Host) -> None:
    one = host.start(BUSY)
    groups = [counters.find_group([path]) for path in plan_of(one).cgroups]
    counting = [group.reader() for group in groups if group.cpu_v2 or group.cpuacct]
    if len(counting) < 2:
        pytest.skip("needs both cpuacct and a v2 hierarchy")
    one.until_line(READY)
    first, second = (cpu_of(read()) for read in counting)
    assert first.total_ns == pytest.approx(second.total_ns, rel=0.1)
    assert first.user_ns == pytest.approx(second.user_ns, rel=0.2)
    assert first.total_ns > 1e9


def test_memory_that_the_guest_has_touched_is_in_rss(host: Host) -> None:
    one = host.start("oom")
    one.until_line(EATEN, timeout_s=150)
    count = one.machine.counter().read()
    assert count is not None
    memory, told = memory_of(count.vmm), memory_of(counters.of_process(one.machine.vmm_identity))
    assert memory.rss_bytes is not None
    assert told.rss_bytes is not None
    # /proc counts pages of programs and libraries, too, which are everybody's.
    assert 128 * MIB < memory.rss_bytes < told.rss_bytes + MIB
    assert told.rss_bytes - memory.rss_bytes < 64 * MIB
    assert memory.usage_bytes is not None
    assert memory.max_usage_bytes is not None
    assert memory.rss_bytes < memory.usage_bytes + MIB <= memory.max_usage_bytes + 2 * MIB
    assert memory.cache_bytes is not None
    assert memory_of(count.guest) == Memory(usage_bytes=128 * MIB)


def test_a_group_that_is_kept_from_the_cpu_tells_how_often(host: Host) -> None:
    one = host.start(BUSY)
    found = counters.find_group(plan_of(one).cgroups)
    group = found.quota or found.cpu_v2
    if group is None or cpu_of(_vmm(one)).throttled_periods is None:
        pytest.skip("needs the cpu controller")
    one.until_line(READY)
    v2 = group / "cpu.max"
    if v2.exists():
        v2.write_text("2000 100000")
    else:
        (group / "cpu.cfs_quota_us").write_text("2000")

    def kept() -> bool:  # the kernel counts the time only when it is over
        now = cpu_of(_vmm(one))
        return bool(now.throttled_periods and now.throttled_ns)

    one.until(kept, "throttling")


def test_groups_that_vanish_leave_the_processes_to_be_counted(host: Host) -> None:
    one = host.start(BUSY)
    one.until_line(READY)
    meter = Meter(one.machine.counter().read)
    use_over(one, meter, 0.5)
    plan = plan_of(one)
    for path in map(Path, (*plan.cgroups, *plan.keeper_cgroups)):
        for pid in cgroup.pids(path):
            (path.parents[2] / "cgroup.procs").write_text(str(pid))
        cgroup.remove(path)
    used = meter.take()
    assert used is not None
    assert used.total.cpu is not None
    assert used.total.cpu.percent == 0  # what counts now has only begun
    assert used.total.cpu.throttled_periods is None
    used = use_over(one, meter, 1.0)
    assert used.total.cpu is not None
    assert 5 < used.total.cpu.percent < 100 * (os.cpu_count() or 1) + 10
    assert used.total.memory is not None
    assert (used.total.memory.rss_bytes or 0) > 32 * MIB
    assert used.total.memory.usage_bytes is None


def test_a_machine_without_groups_is_counted_by_its_processes(host: Host) -> None:
    one = host.start(BUSY)
    one.until_line(READY)
    one.machine.run.plan.write_bytes(replace(plan_of(one), cgroups=[], keeper_cgroups=[]).dump())
    used = use_over(one, Meter(one.machine.counter().read), 1.0)
    assert {"vmm", "keeper", "guest", "vcpu0"} == used.parts.keys()
    assert used.total.cpu is not None
    assert used.total.cpu.percent > 5
    one.machine.stop(0)
    assert one.machine.counter().read() is None


def _vmm(one: Running) -> counters.Count:
    found = one.machine.counter().read()
    assert found is not None
    return found.vmm
