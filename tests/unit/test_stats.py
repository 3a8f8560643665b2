"""The numbers of a task as Nomad gets them."""

import math
from pathlib import Path

import pytest

from driver._pb import base_pb2
from driver._pb import driver_pb2 as pb
from driver.state import resource_usage, task_stats
from driver.stats import host_mhz, mhz_of
from vmlib.counters import Memory
from vmlib.meter import CpuUse, MachineUse, Use

CPU = CpuUse(percent=30.0, user_percent=20.0, system_percent=10.0)
Cpu, Mem = pb.CPUUsage, pb.MemoryUsage


def test_a_reply_has_every_field_that_the_client_dereferences() -> None:
    parts = {"vmm": Use(cpu=CPU, memory=Memory(rss_bytes=300)), "guest": Use(memory=Memory(usage_bytes=5)), "x": Use()}
    reply = task_stats("id", MachineUse(total=parts["vmm"], parts=parts), mhz=2000)
    assert reply.stats.id == "id"
    assert reply.stats.HasField("timestamp")
    assert set(reply.stats.resource_usage_by_pid) == {"vmm", "guest", "x"}
    for usage in (reply.stats.agg_resource_usage, *reply.stats.resource_usage_by_pid.values()):
        assert usage.HasField("cpu")
        assert usage.HasField("memory")
    assert reply.stats.agg_resource_usage.cpu.total_ticks == 600
    assert reply.stats.agg_resource_usage.memory.rss == 300


def test_measured_is_exactly_what_is_filled_in() -> None:
    cpu = CpuUse(percent=1.0, user_percent=0.0, system_percent=1.0, throttled_periods=0, throttled_ns=7)
    found = resource_usage(Use(cpu=cpu), mhz=1000)
    assert list(found.memory.measured_fields) == []
    assert set(found.cpu.measured_fields) == set(Cpu.Fields.values())
    assert (found.cpu.throttled_periods, found.cpu.throttled_time) == (0, 7)

    found = resource_usage(Use(memory=Memory(rss_bytes=0, swap_bytes=1, kernel_bytes=2)), mhz=1000)
    assert list(found.cpu.measured_fields) == []
    assert set(found.memory.measured_fields) == {Mem.RSS, Mem.SWAP, Mem.KERNEL_USAGE}

    found = resource_usage(Use(memory=Memory(cache_bytes=1, max_usage_bytes=2, usage_bytes=3)), mhz=1000)
    assert set(found.memory.measured_fields) == {Mem.CACHE, Mem.MAX_USAGE, Mem.USAGE}


def test_ticks_of_a_node_whose_mhz_nobody_knows_are_not_measured() -> None:
    found = resource_usage(Use(cpu=CPU), mhz=0.0)
    assert set(found.cpu.measured_fields) == {Cpu.USER_MODE, Cpu.SYSTEM_MODE, Cpu.PERCENT}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_that_would_hide_all_others_gets_out(bad: float) -> None:
    found = resource_usage(Use(cpu=CpuUse(percent=bad, user_percent=bad, system_percent=1.0)), mhz=2000)
    assert list(found.cpu.measured_fields) == [Cpu.SYSTEM_MODE]
    assert (found.cpu.percent, found.cpu.total_ticks, found.cpu.user_mode) == (0, 0, 0)


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
