"""Machines on a real Cloud Hypervisor whose guests run. Each takes some ten seconds, so a few are asked for much."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.machines import DATA, READY, Running, root_of
from tests.integration.networks import network
from tests.integration.test_audit import NODES, SHUT_IN, Audit
from tests.lab.conftest import KvmHost
from tests.nomad.agent import Agent
from tests.nomad.test_jobs import job_file
from vmlib.cores.plan import Policy
from vmlib.disk.overlay import forget_backing
from vmlib.errors import HypervisorError
from vmlib.hypervisor.ch_api import ChApi
from vmlib.spec import CoresSpec, MacvtapLink, MountSpec, NicSpec

pytestmark = pytest.mark.needs("root", "cgroup2", "kvm", "cloud-hypervisor")

LAB_S = 120.0  # for what takes 3 s outside
EXCLUSIVE = CoresSpec(exclusive=True)
DEDICATED = Policy(usable=frozenset({0, 1, 2, 3}), dedicated=frozenset({4, 5, 6, 7}), dedicated_only=True)


def status_of(pid: int, tid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/task/{tid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def threads(one: Running) -> dict[str, dict[str, str]]:
    """Name and status of every thread but those that the kernel has put there."""
    found = [status_of(one.vmm, int(tid)) for tid in os.listdir(f"/proc/{one.vmm}/task")]
    return {status["Name"]: status for status in found if not status["Name"].startswith(("kvm-", "iou-"))}


def pins(one: Running) -> tuple[list[str], set[str]]:
    """The CPUs of each vCPU, and those of all other threads."""
    vcpus = [status_of(one.vmm, vcpu.thread_id)["Cpus_allowed_list"] for vcpu in one.machine.vcpus()]
    rest = {status["Cpus_allowed_list"] for name, status in threads(one).items() if not name.startswith("vcpu")}
    return vcpus, rest


def tids(one: Running) -> set[int]:
    return {vcpu.thread_id for vcpu in one.machine.vcpus()}


def ticks(one: Running) -> list[int]:
    return [int(number) for number in re.findall(r"^tick (\d+)\r?$", one.out.text, re.MULTILINE)]


def api(one: Running) -> ChApi:
    return ChApi(one.machine.run.root / "api", timeout_s=30)


def test_a_machine_is_confined_and_lives_on_over_a_reboot_a_pause_and_another_keeper(ch_host: KvmHost) -> None:
    ch_host.policy = DEDICATED
    one = ch_host.start(
        "reboot-once keep-writing=root tick",
        vcpus=2,
        cores=EXCLUSIVE,
        root=root_of(ch_host.guest, "disk.qcow2"),
        disks=(DATA,),
        balloon=True,
    )
    # An ordinary user without a right, its system calls filtered, its files those of the machine.
    for name, status in threads(one).items():
        assert (set(status["Uid"].split()), int(status["CapEff"], 16)) == ({"210000"}, 0), name
        assert status["NoNewPrivs"] == "1", name
        assert status["Seccomp"] == "2", name
    vmm = Audit(one.vmm)
    assert (vmm.capabilities, vmm.own_namespaces, vmm.sees("proc")) == ({0}, SHUT_IN, {"self"})
    assert vmm.sees("dev") == NODES | {"kvm", "pts", "ptmx"}
    assert (vmm.limit("core file size"), vmm.score) == ("0", "0")
    assert api(one).get("vm.info")["config"]["landlock_enable"] is True
    with pytest.raises(HypervisorError, match="Permission denied"):
        api(one).put("vm.add-disk", {"id": "more", "path": "/usr/bin/env", "readonly": True, "image_type": "Raw"})

    # On its cores from the first moment, and so are the new threads of a guest that has rebooted.
    before = tids(one)
    assert pins(one) == (["4", "6"], {"0-3"})
    one.until_line("rebooted", timeout_s=LAB_S)
    assert one.out.text.count(READY) == 2
    assert re.search(r"^disk vda [0-9]+ \r?\n", one.out.text, re.MULTILINE)  # no serial that was not asked for
    assert pins(one) == (["4", "6"], {"0-3"})
    assert tids(one).isdisjoint(before)
    assert ch_host.machines.cores.reconcile() == []
    assert pins(one) == (["4", "6"], {"0-3"})

    one.until_line("\nwrote root 1", timeout_s=LAB_S)
    one.until_line("tick 3", timeout_s=LAB_S)
    usage = one.machine.usage()
    assert usage.disks[0].write_bytes >= 1 << 20
    assert usage.disks[1].write_ops == 0  # since the reboot
    assert 0 < usage.memory_bytes <= 128 << 20

    one.kill_keeper()
    assert one.machine.settle() is None
    seen = ticks(one)[-1]
    one.until(lambda: ticks(one)[-1] > seen + 5, "the console to go on", LAB_S)
    assert ticks(one) == list(range(1, ticks(one)[-1] + 1))

    one.machine.pause()
    assert one.machine.status() == "paused"
    one.pass_time(1.0)
    seen = ticks(one)[-1]
    one.pass_time(3.0)
    assert ticks(one)[-1] == seen
    one.machine.resume()
    one.until(lambda: ticks(one)[-1] > seen + 2, "the console to go on", LAB_S)

    one.machine.press_power_button()
    record = one.end(LAB_S)
    assert (record.exit_code, record.message) == (0, "")
    for words in ("rebooted by the guest", "paused", "resumed", "power button pressed"):
        assert f"chv: {words}" in one.err.text
    overlay = one.machine.paths.disk_dir / "root-overlay.qcow2"
    with overlay.open("r+b") as file:
        forget_backing(file.fileno())  # a descriptor of that VMM's
    subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
    assert overlay.stat().st_blocks * 512 > 1 << 20
    one.machine.destroy()


def test_guests_on_macvtaps_reach_each_other_and_a_third_host_and_one_tells_its_exit_code(ch_host: KvmHost) -> None:
    def lan(last: str) -> tuple[NicSpec, ...]:
        return (NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac=f"52:54:00:00:00:{last}"),)

    with network() as net:
        serving = net.host.do(
            lambda: ch_host.start(
                "ip=eth0:192.0.2.10/24 http=80 ping=192.0.2.1", task="serving", vcpus=2, nics=lan("0a")
            )
        )
        calling = net.host.do(
            lambda: ch_host.start(
                "ip=eth0:192.0.2.11/24 ping=192.0.2.1 ping=192.0.2.10 fetch=http://192.0.2.10/ exit=7",
                task="calling",
                nics=lan("0b"),
            )
        )
        assert len(net.host.ours()) == 2
        serving.until_line("ping 192.0.2.1 ok", timeout_s=LAB_S)
        calling.until_line("fetched http://192.0.2.10/ hello from chv-guest", timeout_s=LAB_S)
        record = calling.end(LAB_S)
        assert (record.exit_code, record.signal, record.message) == (7, 0, "")
        (nic,) = serving.machine.usage().nics
        assert nic is not None
        assert nic.read_bytes > 0
        assert nic.write_bytes > 0
        for one in (calling, serving):
            net.host.do(one.machine.destroy)
        assert net.host.ours() == []


def test_a_panic_ends_one_machine_and_starts_another_anew(ch_host: KvmHost) -> None:
    ending = ch_host.start("panic", task="ending", on_panic="exit")
    going_on = ch_host.start("panic", task="going-on", on_panic="restart")
    record = ending.end(LAB_S)
    assert record.exit_code == 1
    assert record.message.startswith("guest panic")
    assert "Kernel panic" in record.message
    going_on.until_line("panicking", count=2, timeout_s=LAB_S)
    assert going_on.err.text.count("chv: panic") >= 1
    assert going_on.machine.running()
    for one in (ending, going_on):
        one.machine.destroy()


@pytest.mark.needs("virtiofsd")
def test_a_guest_that_reboots_has_its_share_and_after_a_look_its_cores_again(ch_host: KvmHost) -> None:
    shared = ch_host.directory / "shared"
    shared.mkdir()
    (shared / "of-host").write_text("hello\n")
    one = ch_host.start(
        "mount=chv:srv-data:/m get=/m/of-host reboot-once put=/m/of-guest:hi",
        cores=EXCLUSIVE,
        disks=(DATA,),
        mounts=(MountSpec(source=shared, guest_path="/srv/data"),),
    )
    placed = pins(one)
    one.until_line("put /m/of-guest", timeout_s=LAB_S)
    assert one.out.text.count("got /m/of-host hello") == 2
    assert (shared / "of-guest").read_text() == "hi\n"
    # Cores that others may need are not written into its config: the driver sees to them every few seconds.
    assert ch_host.machines.cores.reconcile() == []
    assert pins(one) == placed
    one.machine.press_power_button()
    assert one.end(LAB_S).exit_code == 0
    one.machine.destroy()


@pytest.mark.needs("nomad")
def test_jobs_run_on_it_by_themselves_and_because_they_name_it_on_a_real_agent(
    dev_agent: Agent, tmp_path: Path
) -> None:
    itself = job_file("exit-code").read_text()
    named = tmp_path / "named.nomad.hcl"
    named.write_text(
        itself.replace('"exit-code"', '"named"').replace("config {", 'config {\n hypervisor = "cloud-hypervisor"')
    )
    jobs = {"exit-code": dev_agent.run_job(job_file("exit-code")), "named": dev_agent.run_job(named)}
    reasons = {"exit-code": "", "named": ": pinned by the job"}
    for task, job in jobs.items():
        alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=LAB_S)
        events = dev_agent.task_events(alloc, task)
        (started,) = [words for kind, words in events if kind == "Driver" and words.startswith("machine started")]
        assert started.startswith(f"machine started: cloud-hypervisor with kvm{reasons[task]}, pid ")
        assert any("Exit Code: 3" in words for kind, words in events if kind == "Terminated")
        assert "chv test guest: up" in dev_agent.logs(alloc)


NEEDS_MORE = """
job "{task}" {{
  type = "batch"
  group "{task}" {{
    restart {{
      attempts = 0
    }}
    reschedule {{
      attempts = 0
    }}
    task "{task}" {{
      driver = "chv"
      config {{
        {config}
        placement = "shared"
      }}
      resources {{
        cpu    = 100
        memory = 128
      }}
    }}
  }}
}}
"""
DISK = """
        image     = "${meta.chv_guest}/disk.qcow2"
        user_data = "#words poweroff"
"""
USER_NETWORK = """
        kernel  = "${meta.chv_guest}/vmlinuz"
        initrd  = "${meta.chv_guest}/initrd.img"
        cmdline = "console=ttyS0 quiet panic=-1 no_timer_check poweroff"
        network_interface {
          network = "user0"
        }
"""


@pytest.mark.needs("nomad")
@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("disk", DISK, "has no firmware file to boot a disk with"),
        ("user", USER_NETWORK, "has no user-mode network"),
    ],
    ids=["firmware", "network"],
)
def test_a_job_that_it_cannot_run_runs_on_qemu_or_fails_when_it_names_it(
    dev_agent: Agent, tmp_path: Path, name: str, config: str, why: str
) -> None:
    def run(task: str, config: str) -> str:
        path = tmp_path / f"{task}.nomad.hcl"
        path.write_text(NEEDS_MORE.format(task=task, config=config))
        return dev_agent.run_job(path)

    def told(job: str, kind: str) -> tuple[str, list[str]]:
        """The status in which the job's alloc ended, and the events of that kind."""
        alloc = dev_agent.wait_alloc(job, "complete", "failed", timeout_s=LAB_S)
        words = [said for one, said in dev_agent.task_events(alloc, job) if one == kind]
        return str(dev_agent.alloc(alloc)["ClientStatus"]), words

    free = run(name, config)
    named = run(f"{name}-named", f'hypervisor = "cloud-hypervisor"{config}')
    status, words = told(free, "Driver")
    assert status == "complete", words
    assert words[0].startswith(f"machine started: qemu with kvm: cloud-hypervisor: {why}, pid ")
    status, (failure,) = told(named, "Driver Failure")
    assert status == "failed"
    assert f"no hypervisor here can run this machine (cloud-hypervisor: {why})" in failure


WITH_AGENT = """
job "agent" {
  type = "batch"
  group "agent" {
    restart {
      attempts = 0
    }
    reschedule {
      attempts = 0
    }
    task "agent" {
      driver = "chv"
      config {
        hypervisor = "cloud-hypervisor"
        kernel     = "${meta.chv_guest}/vmlinuz"
        initrd     = "${meta.chv_guest}/initrd-python.img"
        cmdline    = "console=ttyS0 quiet panic=-1 no_timer_check agent"
        placement  = "shared"
        wait_for   = "agent"
      }
      env {
        GREETING = "hello"
      }
      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
"""


@pytest.mark.needs("nomad")
def test_its_guest_agent_is_reached_over_vsock(dev_agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "agent.nomad.hcl"
    path.write_text(WITH_AGENT)
    alloc = dev_agent.wait_alloc(dev_agent.run_job(path), "running", "failed", timeout_s=LAB_S)
    events = [words for _, words in dev_agent.task_events(alloc, "agent")]
    assert any(words.startswith("agent ready") for words in events), events

    def run(*words: str, data: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [dev_agent.binary, "alloc", "exec", "-i", "-t=false", alloc, *words],
            env=os.environ | {"NOMAD_ADDR": dev_agent.address},
            input=data,
            capture_output=True,
            text=True,
            timeout=LAB_S,
            check=False,
        )

    done = run("sh", "-c", "echo $GREETING; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello\n", "err\n")
    assert run("wc", "-c", data="x" * 1_000_000).stdout.strip() == "1000000"
    run("/run/chv/chv-exit", "5")
    dev_agent.wait_alloc("agent", "failed", timeout_s=LAB_S)
    terminated = [words for kind, words in dev_agent.task_events(alloc, "agent") if kind == "Terminated"]
    assert any("Exit Code: 5" in words for words in terminated)
