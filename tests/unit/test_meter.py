"""Use between two looks at the counters: nothing negative, nothing infinite, whatever becomes of the counters."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.counters import Count, CpuTime, MachineCount, Memory
from vmlib.meter import CpuUse, Meter, Use, cpu_use, together

MS = 1_000_000
TIME = CpuTime(origin="group", total_ns=5000 * MS, user_ns=4000 * MS, system_ns=1000 * MS)

numbers = st.integers(0, 1 << 60)
times = st.builds(
    CpuTime, origin=st.sampled_from("ab"), total_ns=numbers, user_ns=numbers, system_ns=numbers, throttled_ns=numbers
)


def later(before: CpuTime = TIME, *, user_ms: int, system_ms: int) -> CpuTime:
    return replace(
        before,
        total_ns=before.total_ns + (user_ms + system_ms) * MS,
        user_ns=before.user_ns + user_ms * MS,
        system_ns=before.system_ns + system_ms * MS,
    )


def test_one_busy_core_is_a_hundred_percent() -> None:
    used = cpu_use(TIME, later(user_ms=1500, system_ms=500), 2.0)
    assert (used.percent, used.user_percent, used.system_percent) == (100.0, 75.0, 25.0)


def test_throttling_is_counted_from_the_beginning() -> None:
    after = replace(TIME, throttled_periods=3, throttled_ns=40)
    for before in (None, after):
        used = cpu_use(before, after, 1.0)
        assert (used.throttled_periods, used.throttled_ns) == (3, 40)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(None, id="the first sample"),
        pytest.param(replace(TIME, origin="another keeper"), id="another process has taken its place"),
        pytest.param(later(user_ms=9000, system_ms=0), id="the group was made anew"),
    ],
)
def test_what_began_to_count_since_has_no_rate_yet(before: CpuTime | None) -> None:
    used = cpu_use(before, later(user_ms=1, system_ms=1), 1.0)
    assert (used.percent, used.user_percent, used.system_percent) == (0, 0, 0)


def test_a_counter_that_alone_goes_backwards_takes_no_other_with_it() -> None:
    after = replace(later(user_ms=500, system_ms=0), system_ns=0)
    used = cpu_use(TIME, after, 1.0)
    assert (used.percent, used.user_percent, used.system_percent) == (50.0, 50.0, 0.0)


@given(before=st.none() | times, after=times, span_s=st.floats(-1e9, 1e9))
def test_no_number_is_ever_negative_or_not_a_number(before: CpuTime | None, after: CpuTime, span_s: float) -> None:
    used = cpu_use(before, after, span_s)
    for value in (used.percent, used.user_percent, used.system_percent):
        assert math.isfinite(value)
        assert value >= 0


def test_a_sum_has_what_at_least_one_counts() -> None:
    one = Use(cpu=CpuUse(percent=1, user_percent=2, system_percent=3), memory=Memory(rss_bytes=5, cache_bytes=7))
    other = Use(
        cpu=CpuUse(percent=10, user_percent=20, system_percent=30, throttled_periods=4), memory=Memory(rss_bytes=50)
    )
    assert together([one, other, Use()]) == Use(
        cpu=CpuUse(percent=11, user_percent=22, system_percent=33, throttled_periods=4),
        memory=Memory(rss_bytes=55, cache_bytes=7),
    )
    assert together([Use(), Use()]) == Use()


class Clock:
    """A machine whose counts are what the test says, at a time of its choice."""

    def __init__(self) -> None:
        self.now = 100.0
        self.count: MachineCount | None = None
        self.meter = Meter(lambda: self.count, lambda: self.now)

    def take(self, count: MachineCount | None, *, after_s: float = 1.0) -> dict[str, float | None]:
        """CPU percent by part, the sum as `total`."""
        self.now += after_s
        self.count = count
        found = self.meter.take()
        if found is None:
            return {}
        parts = {"total": found.total, **found.parts}
        return {name: None if part.cpu is None else part.cpu.percent for name, part in parts.items()}


def count(*, vmm: CpuTime | None, keeper: CpuTime | None, vcpus: tuple[CpuTime, ...] = ()) -> MachineCount:
    return MachineCount(
        vmm=Count(cpu=vmm, memory=Memory(rss_bytes=1)),
        keeper=Count(cpu=keeper),
        guest=Count(memory=Memory(usage_bytes=64)),
        vcpus=tuple(Count(cpu=one) for one in vcpus),
    )


def test_a_machine_is_its_vmm_and_its_keeper_and_the_rest_is_within() -> None:
    clock = Clock()
    first = count(vmm=TIME, keeper=TIME, vcpus=(TIME, TIME))
    assert clock.take(first) == {"total": 0, "vmm": 0, "keeper": 0, "guest": None, "vcpu0": 0, "vcpu1": 0}
    vmm = later(user_ms=1000, system_ms=0)
    second = count(vmm=vmm, keeper=later(user_ms=0, system_ms=20), vcpus=(vmm, TIME))
    assert clock.take(second, after_s=2) == {
        "total": 51,
        "vmm": 50,
        "keeper": 1,
        "guest": None,
        "vcpu0": 50,
        "vcpu1": 0,
    }


def test_a_part_that_was_away_begins_anew() -> None:
    clock = Clock()
    clock.take(count(vmm=TIME, keeper=TIME))
    assert clock.take(count(vmm=TIME, keeper=None)) == {"total": 0, "vmm": 0, "guest": None}
    assert clock.take(count(vmm=TIME, keeper=later(user_ms=900, system_ms=0)))["keeper"] == 0


def test_nothing_is_said_of_a_machine_that_is_gone() -> None:
    clock = Clock()
    assert clock.take(None) == {}
    clock.take(count(vmm=TIME, keeper=None))
    assert clock.take(None) == {}
    # Nobody comes back, but what one bad look had missed is in the next one's span.
    assert clock.take(count(vmm=later(user_ms=1000, system_ms=0), keeper=None))["vmm"] == 50
