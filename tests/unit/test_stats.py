"""CPU and memory numbers."""

import math
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from driver._pb import base_pb2
from driver.state import task_stats
from driver.stats import Sample, Usage, host_mhz, mhz_of, sample, usage
from vmlib.process import Identity, identify


def test_one_busy_core_is_a_hundred_percent() -> None:
    before = Sample(at=10.0, user_s=1.0, system_s=0.5, rss_bytes=1)
    after = Sample(at=12.0, user_s=2.5, system_s=1.0, rss_bytes=7)
    assert usage(before, after) == Usage(user_percent=75.0, system_percent=25.0, rss_bytes=7)
    assert usage(before, after).percent == 100.0


@given(
    before=st.none() | st.builds(Sample, *[st.floats(0, 1e9)] * 3, st.integers(0, 1 << 40)),
    after=st.builds(Sample, *[st.floats(0, 1e9)] * 3, st.integers(0, 1 << 40)),
)
def test_no_number_is_ever_negative_or_not_a_number(before: Sample | None, after: Sample) -> None:
    used = usage(before, after)
    assert all(math.isfinite(value) and value >= 0 for value in (used.user_percent, used.system_percent, used.percent))


def test_a_sample_is_of_that_very_process() -> None:
    me = identify(os.getpid())
    assert me is not None
    taken = sample(me, 1.0)
    assert taken is not None
    assert taken.rss_bytes > 1 << 20
    assert sample(Identity(me.pid, me.start_time + 1), 1.0) is None


def test_a_reply_has_every_field_that_the_client_dereferences() -> None:
    reply = task_stats("id", {"vmm": Usage(10, 20, 300), "keeper": Usage(1, 2, 30)}, mhz=2000)
    assert reply.stats.HasField("timestamp")
    total = reply.stats.agg_resource_usage
    assert total.cpu.percent == 33
    assert total.cpu.total_ticks == 660
    assert total.memory.rss == 330
    assert set(reply.stats.resource_usage_by_pid) == {"vmm", "keeper"}
    assert total.cpu.measured_fields
    assert total.memory.measured_fields


def test_mhz_is_what_nomad_counts_for_a_core() -> None:
    nomad = base_pb2.NomadConfig()
    assert mhz_of(None) == mhz_of(nomad) == 0.0
    nomad.driver.Topology.cores.add(base_speed=2000, max_speed=4000)
    nomad.driver.Topology.cores.add(guess_speed=3000)
    assert mhz_of(nomad) == 2500.0


def test_without_a_topology_the_kernel_is_asked(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2596.25\n")
    assert host_mhz(tmp_path / "cpuinfo") == 2596.25
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert host_mhz(tmp_path / "cpuinfo") == 0.0
