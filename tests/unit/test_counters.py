"""What cgroups and /proc count of a machine, from a tree of files that looks like the kernel's."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vmlib import counters, process
from vmlib.counters import CpuTime, Group, MachineCounter, Memory
from vmlib.keeper.plan import KeeperPlan
from vmlib.paths import RunPaths
from vmlib.process import Identity

CPU_STAT_V2 = """usage_usec 1500
user_usec 1000
system_usec 500
nr_periods 9
nr_throttled 3
throttled_usec 70
"""
MEMORY_STAT_V2 = "anon 1000\nfile 500\nkernel 30\nshmem 200\n"
MEMORY_STAT_V1 = "cache 500\nrss 1000\nshmem 200\nswap 4\nhierarchical_memory_limit 9223372036854771712\n"


def write(group: Path, **files: str) -> Path:
    """Files with `_` for their dot."""
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("_", ".", 1)).write_text(text)
    return group


def v2(group: Path, cpu_stat: str = CPU_STAT_V2) -> Path:
    return write(
        group,
        cpu_stat=cpu_stat,
        memory_stat=MEMORY_STAT_V2,
        memory_current="1600\n",
        memory_peak="1900\n",
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_v2_tells_all_in_one_group(tree: Path) -> None:
    group = v2(tree / "chv.slice/x/vmm")
    (group / "memory.swap.current").write_text("4\n")
    found = counters.find_group([str(group)])
    assert found == Group(cpu_v2=group, memory_v2=group)
    count = found.reader()()
    assert count.cpu == CpuTime(
        origin=str(group),
        total_ns=1_500_000,
        user_ns=1_000_000,
        system_ns=500_000,
        throttled_periods=3,
        throttled_ns=70_000,
    )
    assert count.memory == Memory(
        rss_bytes=1200, cache_bytes=300, usage_bytes=1600, max_usage_bytes=1900, kernel_bytes=30, swap_bytes=4
    )


def test_v2_without_the_cpu_controller_counts_no_throttling_and_an_old_kernel_no_peak(tree: Path) -> None:
    group = v2(tree / "x", CPU_STAT_V2[: CPU_STAT_V2.index("nr_periods")])
    (group / "memory.peak").unlink()
    count = counters.find_group([str(group)]).reader()()
    assert count.cpu is not None
    assert (count.cpu.throttled_periods, count.cpu.throttled_ns) == (None, None)
    assert count.memory is not None
    assert (count.memory.max_usage_bytes, count.memory.swap_bytes) == (None, None)


@pytest.fixture
def v1(tree: Path) -> list[str]:
    return [
        str(write(tree / "cpu/x", cpu_stat="nr_periods 9\nnr_throttled 3\nthrottled_time 70\n")),
        str(write(tree / "cpuacct/x", cpuacct_usage="1500\n", cpuacct_stat="user 3\nsystem 2\n")),
        str(
            write(
                tree / "memory/x",
                memory_stat=MEMORY_STAT_V1,
                memory_usage_in_bytes="1600\n",
                memory_max_usage_in_bytes="1900\n",
            )
        ),
        str(write(tree / "pids/x")),
    ]


def test_v1_tells_it_in_one_hierarchy_each(v1: list[str]) -> None:
    count = counters.find_group(v1).reader()()
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert count.cpu == CpuTime(
        origin=v1[1],
        total_ns=1500,
        user_ns=3 * tick_ns,
        system_ns=2 * tick_ns,
        throttled_periods=3,
        throttled_ns=70,
    )
    assert count.memory == Memory(
        rss_bytes=1200, cache_bytes=300, usage_bytes=1600, max_usage_bytes=1900, kernel_bytes=None, swap_bytes=4
    )


def test_where_v1_and_v2_are_mounted_v2_tells_cpu_time_and_v1_throttling(v1: list[str], tree: Path) -> None:
    unified = write(tree / "unified/x", cpu_stat="usage_usec 8\nuser_usec 5\nsystem_usec 3\n")
    for paths in ([*v1, str(unified)], [str(unified), *v1]):
        cpu = counters.find_group(paths).reader()().cpu
        assert cpu is not None
        assert (cpu.total_ns, cpu.throttled_periods, cpu.throttled_ns) == (8000, 3, 70)


def count_of(group: Path) -> list[tuple[CpuTime | None, Memory | None]]:
    """Whatever the hierarchy is taken for."""
    groups = (Group(cpu_v2=group, quota=group, memory_v2=group), Group(cpuacct=group, quota=group, memory_v1=group))
    counts = [one.reader()() for one in groups]
    return [(one.cpu, one.memory) for one in counts]


@pytest.mark.parametrize("text", ["", "garbage", "usage_usec", "usage_usec -3\n", "rss x\nanon\n", "\0"])
def test_files_that_cannot_be_understood_count_nothing(tree: Path, text: str) -> None:
    names = ("cpu_stat", "memory_stat", "memory_current", "cpuacct_usage", "cpuacct_stat", "memory_usage_in_bytes")
    group = write(tree / "x", **dict.fromkeys(names, text))
    assert count_of(group) == [(None, None)] * 2


def test_unreadable_files_count_nothing(tree: Path) -> None:
    group = tree / "x"
    for name in ("cpu.stat", "memory.stat", "memory.current", "memory.usage_in_bytes"):
        (group / name).mkdir(parents=True)
    (group / "cpuacct.usage").write_bytes(b"\xff\xfe")
    assert count_of(group) == [(None, None)] * 2


# -- a machine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def me() -> Identity:
    """A VMM that surely lives."""
    found = process.identify(os.getpid())
    assert found is not None
    return found


@pytest.fixture
def run(tmp_path: Path, tree: Path, me: Identity) -> RunPaths:
    found = RunPaths(tmp_path / "run")
    found.root.mkdir()
    plan = KeeperPlan(
        id="x",
        run_dir=str(found.root),
        exit_record="",
        stdout="",
        stderr="",
        argv=[],
        cgroups=[str(v2(tree / "vmm"))],
        keeper_cgroups=[str(v2(tree / "keeper"))],
    )
    found.plan.write_bytes(plan.dump())
    found.threads.write_text(f"[{me.pid}, {me.pid}]")
    process.save_identity(found.keeper, me)
    return found


def counter(run: RunPaths, who: Identity, *, hugepages: bool = False) -> MachineCounter:
    return MachineCounter(run, who, memory_mib=64, hugepages=hugepages)


def origins(run: RunPaths, one: MachineCounter) -> tuple[str, str]:
    found = one.read()
    assert found is not None
    assert found.vmm.cpu is not None
    assert found.keeper.cpu is not None
    return tuple(part.origin.removeprefix(f"{run.root.parent}/") for part in (found.vmm.cpu, found.keeper.cpu))  # type: ignore[return-value]


def test_a_machine_is_counted_by_its_groups_and_each_vcpu_by_its_thread(run: RunPaths, me: Identity) -> None:
    one = counter(run, me)
    assert origins(run, one) == ("cgroup/vmm", "cgroup/keeper")
    found = one.read()
    assert found is not None
    assert found.guest.memory == Memory(usage_bytes=64 << 20)
    assert found.vmm.memory is not None
    assert found.vmm.memory.usage_bytes == 1600
    # A keeper was somebody else's before it came into its group, and so is its memory.
    assert found.keeper.memory is not None
    assert found.keeper.memory.usage_bytes is None
    assert (found.keeper.memory.rss_bytes or 0) > 1 << 20
    first, second = (vcpu.cpu for vcpu in found.vcpus)
    assert first is not None
    assert second is not None
    assert first.origin == f"{me.pid} {me.start_time}"
    assert found.guest.cpu is not None
    assert found.guest.cpu.total_ns == first.total_ns + second.total_ns > 0


def test_a_machine_that_is_gone_counts_nothing_though_its_groups_are_there(run: RunPaths, me: Identity) -> None:
    assert counter(run, replace(me, start_time=me.start_time + 1)).read() is None


def test_a_machine_without_groups_is_counted_by_its_processes(run: RunPaths, me: Identity) -> None:
    plan = KeeperPlan.load(run.plan.read_bytes())
    run.plan.write_bytes(replace(plan, cgroups=[], keeper_cgroups=[]).dump())
    one = counter(run, me)
    process_ = f"{me.pid} {me.start_time}"
    assert origins(run, one) == (process_, process_)
    found = one.read()
    assert found is not None
    assert found.vmm.memory is not None
    assert found.vmm.memory.rss_bytes is not None
    assert found.vmm.memory.rss_bytes > 1 << 20
    assert found.vmm.memory.cache_bytes is None
    run.keeper.unlink()  # a keeper that is being replaced
    found = counter(run, me).read()
    assert found is not None
    assert found.keeper.cpu is None


def test_a_group_that_vanishes_and_comes_back(run: RunPaths, me: Identity, tree: Path) -> None:
    one = counter(run, me)
    assert origins(run, one) == ("cgroup/vmm", "cgroup/keeper")
    shutil.rmtree(tree)
    process_ = f"{me.pid} {me.start_time}"
    assert origins(run, one) == (process_, process_)
    v2(tree / "vmm")
    assert origins(run, one) == ("cgroup/vmm", process_)
    v2(tree / "keeper")
    assert origins(run, one) == ("cgroup/vmm", "cgroup/keeper")


def test_a_group_that_counts_no_memory_has_its_process_s(run: RunPaths, me: Identity, tree: Path) -> None:
    (tree / "vmm/memory.current").unlink()
    (tree / "vmm/memory.stat").unlink()
    found = counter(run, me).read()
    assert found is not None
    assert found.vmm.cpu is not None
    assert found.vmm.cpu.origin == str(tree / "vmm")
    assert found.vmm.memory is not None
    assert found.vmm.memory.usage_bytes is None


@pytest.mark.parametrize("plan", [None, b"", b"{}", b"[]", b"\xff"])
def test_a_plan_that_cannot_be_read_is_no_reason_to_count_nothing(
    run: RunPaths, me: Identity, plan: bytes | None
) -> None:
    run.plan.unlink()
    if plan is not None:
        run.plan.write_bytes(plan)
    found = counter(run, me).read()
    assert found is not None
    assert found.vmm.cpu is not None
    assert found.vmm.cpu.origin.startswith(f"{me.pid} ")


@pytest.mark.parametrize("threads", [None, "", "[1", "{}", '["x"]', "[null]", "3", "[999999999]"])
def test_vcpus_whose_threads_are_not_known_now_are_left_out(run: RunPaths, me: Identity, threads: str | None) -> None:
    run.threads.unlink()
    if threads is not None:
        run.threads.write_text(threads)
    found = counter(run, me).read()
    assert found is not None
    assert found.vcpus == ()
    assert found.guest.cpu is None


def test_huge_pages_are_asked_of_the_process(run: RunPaths, me: Identity) -> None:
    found = counter(run, me, hugepages=True).read()  # this process has none
    assert found is not None
    assert found.vmm.memory is not None
    assert found.vmm.memory.rss_bytes == 1200


def test_another_keeper_is_counted_once_it_is_there(run: RunPaths, me: Identity) -> None:
    plan = KeeperPlan.load(run.plan.read_bytes())
    run.plan.write_bytes(replace(plan, keeper_cgroups=[]).dump())
    process.save_identity(run.keeper, Identity(me.pid, me.start_time + 1))  # who has ended
    one = counter(run, me)
    found = one.read()
    assert found is not None
    assert (found.keeper.cpu, found.keeper.memory) == (None, None)
    process.save_identity(run.keeper, me)
    assert origins(run, one) == ("cgroup/vmm", f"{me.pid} {me.start_time}")


def test_threads_that_are_others_after_a_reboot_are_looked_up_again(run: RunPaths, me: Identity) -> None:
    run.threads.write_text("[999999999]")
    one = counter(run, me)
    found = one.read()
    assert found is not None
    assert found.vcpus == ()
    run.threads.write_text(f"[{me.pid}]")
    found = one.read()
    assert found is not None
    assert len(found.vcpus) == 1
