"""What a real agent shows of a machine's numbers, and that they make sense."""

import os
import re
from pathlib import Path
from typing import Any

from tests.nomad.agent import Agent

BUSY = "idle=poll"  # the guest's kernel spins where it would halt
MIB = 1 << 20
VCPUS = 2


def busy_job(directory: Path) -> Path:
    path = directory / "busy.nomad.hcl"
    path.write_text(
        f"""
job "busy" {{
  group "g" {{
    task "vm" {{
      driver       = "chv"
      kill_timeout = "30s"
      config {{
        kernel    = "${{meta.chv_guest}}/vmlinuz"
        initrd    = "${{meta.chv_guest}}/initrd.img"
        cmdline   = "console=ttyS0 quiet panic=-1 no_timer_check {BUSY}"
        placement = "shared"
        vcpus     = {VCPUS}
      }}
      resources {{
        cpu    = 100
        memory = 128
      }}
    }}
  }}
}}
"""
    )
    return path


def test_numbers_of_a_busy_machine_make_sense(dev_agent: Agent, tmp_path: Path) -> None:
    job = dev_agent.run_job(busy_job(tmp_path))
    alloc = dev_agent.wait_alloc(job, "running")
    dev_agent.wait_for("the guest", lambda: "chv test guest: ready" in dev_agent.logs(alloc))

    def busy() -> dict[str, Any] | None:
        task: dict[str, Any] = dev_agent.get(f"/v1/client/allocation/{alloc}/stats")["Tasks"]["vm"]
        return task if task["ResourceUsage"]["CpuStats"]["Percent"] > 10 else None

    task = dev_agent.wait_for("two samples", busy)
    cpu, memory = task["ResourceUsage"]["CpuStats"], task["ResourceUsage"]["MemoryStats"]
    assert cpu["Percent"] <= 100 * (os.cpu_count() or 1) + 10
    assert abs(cpu["UserMode"] + cpu["SystemMode"] - cpu["Percent"]) < 0.2 * cpu["Percent"]
    assert {"Percent", "Total Ticks", "User Mode", "System Mode"} <= set(cpu["Measured"])
    (node,) = dev_agent.get("/v1/nodes")
    resources = dev_agent.get(f"/v1/node/{node['ID']}")["NodeResources"]
    mhz = resources["Cpu"]["CpuShares"] / resources["Cpu"]["TotalCpuCores"]
    assert abs(cpu["TotalTicks"] - cpu["Percent"] / 100 * mhz) < 0.02 * cpu["TotalTicks"]
    assert {"RSS", "Cache", "Usage", "Max Usage"} <= set(memory["Measured"])
    assert 32 * MIB < memory["RSS"] < 512 * MIB
    assert memory["RSS"] / 2 < memory["Usage"] <= memory["MaxUsage"] + MIB

    pids = task["Pids"]
    assert pids.keys() == {"vmm", "keeper", "guest", "vcpu0", "vcpu1"}
    parts = {name: one["CpuStats"]["Percent"] for name, one in pids.items()}
    assert abs(parts["vmm"] + parts["keeper"] - cpu["Percent"]) < 1
    assert abs(parts["vcpu0"] + parts["vcpu1"] - parts["guest"]) < 1
    assert parts["guest"] > 0.5 * parts["vmm"]
    assert all(parts[f"vcpu{index}"] > 0 for index in range(VCPUS))
    assert pids["guest"]["MemoryStats"]["Usage"] == 128 * MIB
    assert not pids["vcpu0"]["MemoryStats"]["Measured"]

    shown = dev_agent.command("alloc", "status", "-stats", alloc).stdout
    print(shown)
    used = re.search(r"^(\d+)/\d+ MHz\s+(\d+) MiB/", shown, re.MULTILINE)
    assert used is not None
    assert int(used[1]) > 0.05 * mhz
    assert 32 < int(used[2]) < 512
    for word in ("Percent", "User Mode", "System Mode", "RSS", "Max Usage"):
        assert word in shown
    assert "NaN" not in shown

    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
