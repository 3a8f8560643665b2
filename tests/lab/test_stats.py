"""What a machine uses, counted by cgroup v2 alone, whose groups hold threads in groups of their own."""

import time

import pytest

from tests.integration.machines import READY
from tests.integration.test_counters import BUSY, MIB, cpu_of, memory_of, plan_of, use_over
from tests.lab.conftest import KvmHost
from vmlib import counters
from vmlib.meter import Meter
from vmlib.spec import CoresSpec

LAB_S = 90.0  # for what takes 5 s outside


def test_a_machine_on_cores_of_its_own_is_counted_by_v2(kvm_host: KvmHost) -> None:
    one = kvm_host.start(BUSY, vcpus=2, cores=CoresSpec(exclusive=True))
    one.until_line(READY, timeout_s=LAB_S)
    counter = one.machine.counter()
    who, meter = one.machine.vmm_identity, Meter(counter.read)
    before, begin = cpu_of(counters.of_process(who)), time.monotonic()
    used = use_over(one, meter, 5.0)
    after, span_s = cpu_of(counters.of_process(who)), time.monotonic() - begin
    expected = (after.total_ns - before.total_ns) / span_s / 1e7
    vmm, guest = used.parts["vmm"].cpu, used.parts["guest"].cpu
    assert vmm is not None
    assert guest is not None
    assert vmm.percent == pytest.approx(expected, rel=0.15)
    assert 0.7 * vmm.percent < guest.percent < vmm.percent + 5

    count = counter.read()
    assert count is not None
    (path,) = plan_of(one).cgroups
    cpu, memory, told = cpu_of(count.vmm), memory_of(count.vmm), memory_of(counters.of_process(who))
    assert cpu.origin == path
    assert (cpu.throttled_periods, cpu.throttled_ns) == (0, 0)
    assert cpu_of(count.keeper).origin == plan_of(one).keeper_cgroups[0]
    assert memory.rss_bytes is not None
    assert memory.usage_bytes is not None
    assert memory.max_usage_bytes is not None
    assert memory.kernel_bytes is not None
    assert memory.cache_bytes is not None
    assert told.rss_bytes is not None
    assert 32 * MIB < memory.rss_bytes < told.rss_bytes + MIB
    assert memory.rss_bytes < memory.usage_bytes + MIB <= memory.max_usage_bytes + 2 * MIB
