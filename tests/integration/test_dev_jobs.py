"""Jobs from their file to their end: every one of nomad-jobs/ on the embedded host, and `chv dev` as at a terminal."""

import asyncio
import json
import os
import re
import signal
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from driver.devhost.errors import JobFileError
from driver.devhost.events import ExitResult
from driver.devhost.jobfile import read_job
from tests.integration.nodes import READY, Node, kinds, shown, told, until, until_says
from tests.jobs import FOR_AGENTS

JOBS = Path(__file__).parents[2] / "nomad-jobs"
STARTED = "Started: Task started by client"
BEGIN = ["Received: Task received by client", "Task Setup: Building Task Directory", STARTED]


@dataclass(frozen=True, kw_only=True)
class Life:
    """What becomes of a job that ends by itself."""

    result: ExitResult
    events: list[str]
    starts: int = 1
    last_line: str


ENDS = {
    "hello": Life(result=ExitResult(), events=["Terminated: Exit Code: 0"], last_line=READY),
    "cores": Life(result=ExitResult(), events=["Terminated: Exit Code: 0"], last_line=READY),
    "sleep": Life(result=ExitResult(), events=["Terminated: Exit Code: 0"], last_line=READY),
    "share": Life(result=ExitResult(), events=["Terminated: Exit Code: 0"], last_line="got /secrets/key s3cret"),
    "exit-code": Life(
        result=ExitResult(exit_code=3),
        events=["Terminated: Exit Code: 3", "Not Restarting: Policy allows no restarts"],
        last_line="exit 3",
    ),
    "restart": Life(
        result=ExitResult(exit_code=1),
        events=[
            "Terminated: Exit Code: 1",
            "Restarting: Task restarting in 0s",
            STARTED,
            "Terminated: Exit Code: 1",
            'Not Restarting: Exceeded allowed attempts 1 in interval 10m0s and mode is "fail"',
        ],
        starts=2,
        last_line="exit 1",
    ),
}
RUNS = {"service", "http", "uefi"}
ON_AGENTS = {"persistent", "disks", "guest-exit"}  # these too, but what they do is shown in tests/nomad

NETWORKS = {"macvtap", "bridge", "two-interfaces"}  # for a host with such networks: in tests/nomad/test_networks.py
NEED_A_SERVER = {"nfs-root", "nfs-data"}  # in tests/lab/test_nfs_agent.py


def job_file(name: str) -> Path:
    return JOBS / f"{name}.nomad.hcl"


def console_lines(text: str) -> list[str]:
    """Without the kernel's own, which begin with a time."""
    return [line for line in text.splitlines() if line and not line.startswith("[")]


def test_every_job_of_the_directory_is_tested_here() -> None:
    assert {
        path.name.removesuffix(".nomad.hcl") for path in JOBS.glob("*.nomad.hcl")
    } == ENDS.keys() | RUNS | FOR_AGENTS.keys() | ON_AGENTS | NETWORKS | NEED_A_SERVER


@pytest.mark.parametrize("name", sorted(FOR_AGENTS))
def test_a_job_for_which_only_an_agent_will_do_is_refused_in_words(name: str) -> None:
    with pytest.raises(JobFileError, match=FOR_AGENTS[name]):
        read_job(job_file(name))


@pytest.mark.parametrize("name", sorted(ENDS))
async def test_a_job_that_ends_by_itself(node: Node, name: str) -> None:
    life = ENDS[name]
    async with node.host(job_file(name)) as host:
        assert await host.run() == life.result
        assert shown(host) == [*BEGIN, *life.events]
        assert kinds(host) == ["machine started", "cores"] * life.starts, f"{told(host)}\n{host.console()}"
        assert re.fullmatch(r"machine started: qemu with (tcg|kvm)(: .+)?, pid \d+", told(host)[0])
        console = host.console()
        # From the first byte: neither firmware nor loader says anything on the way, only a kernel that is alarmed.
        assert re.match(r"(\[ *[0-9.]+\] .*\n)*chv test guest: up", console)
        assert console.count("chv test guest: up") == life.starts
        assert console_lines(console)[-1] == life.last_line
        assert host.console("stderr") == ""


async def test_the_service_runs_until_it_is_stopped_and_then_powers_itself_off(node: Node) -> None:
    async with node.host(job_file("service")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, READY)
        host.kill()
        assert await life == ExitResult()
        assert shown(host) == [
            *BEGIN,
            "Killing: Sent interrupt. Waiting 30s before force killing",
            "Terminated: Exit Code: 0",
            "Killed: Task successfully killed",
        ]
        assert kinds(host) == ["machine started", "cores", "power button"]
        assert "power button" in console_lines(host.console())
        assert host.console("stderr") == "chv: power button pressed\n"


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


async def test_the_web_server_answers_on_the_port_that_nomad_gave(node: Node) -> None:
    async with node.host(job_file("http")) as host:
        life = asyncio.create_task(host.run())
        await until_says(host, "http on port 8080")
        port, _ = host.alloc.ports["http"]
        assert await asyncio.to_thread(fetch, port) == "hello from chv-guest\n"
        host.kill()
        assert await life == ExitResult()
        assert re.search(r"^address eth0 10\.0\.2\.15", host.console(), re.MULTILINE)


@pytest.mark.needs("uefi")
async def test_the_uefi_job_boots_its_disk_by_firmware(node: Node) -> None:
    async with node.host(job_file("uefi")) as host:
        life = asyncio.create_task(host.run())
        await until(lambda: "wrote variable" in host.console(), "the guest", host=host, timeout_s=150.0)
        assert "firmware uefi" in host.console().splitlines()
        host.kill()
        assert await life == ExitResult()


# ---------------------------------------------------------------------------------------------------------------------
# chv dev


def nothing_left(node: Node) -> None:
    """What `chv dev` leaves: not even the machine's directory, which Nomad's own jobs keep for a while."""
    assert node.machines() == []
    assert node.runs() == []
    assert list(node.allocs.iterdir()) == []
    assert list((node.base / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"), [("poweroff", 0), ("exit=0", 0), ("exit=3", 3), ("exit=255", 255), ("panic", 1)]
)
def test_the_exit_code_is_the_tasks_own(fake_node: Node, words: str, code: int) -> None:
    with fake_node.dev(fake_node.job(words)) as dev:
        assert dev.wait() == code
        assert dev.out_file.read_bytes().startswith(b"chv test guest: up\r\n")
        assert f"==> {'done' if code == 0 else f'failed, exit code {code}'}" in dev.err
    nothing_left(fake_node)


def test_a_vmm_that_is_killed_by_a_signal_is_128_and_the_signal(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job()) as dev:
        dev.until_says(READY)
        os.kill(fake_node.vmm.pid, signal.SIGSEGV)
        assert dev.wait() == 128 + signal.SIGSEGV
        assert "the VMM was killed by SIGSEGV" in dev.err
    nothing_left(fake_node)


def test_ctrl_c_asks_a_real_guest_to_power_itself_off(node: Node) -> None:
    with node.dev(node.job(type="service")) as dev:
        dev.until_says(READY)
        dev.press_ctrl_c()
        assert dev.wait() == 0
        assert "power button" in console_lines(dev.out)
        assert "power button pressed" in dev.err
        assert "forced off" not in dev.err
        assert "Traceback" not in dev.err
    nothing_left(node)


def test_a_second_ctrl_c_does_not_wait_for_the_guest(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job("ignore-acpi", type="service")) as dev:
        dev.until_says(READY)
        dev.press_ctrl_c()
        dev.until_says("power button pressed")
        asked = time.monotonic()
        dev.press_ctrl_c()
        assert dev.wait() == 137
        assert time.monotonic() - asked < 5
        assert "Traceback" not in dev.err
    nothing_left(fake_node)


def test_a_second_ctrl_c_does_not_wait_for_a_guest_agent_that_never_comes(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job(config='wait_for = "agent"')) as dev:
        dev.until_says("chv test guest: ready")
        dev.press_ctrl_c()
        dev.until_says("Killing")
        dev.press_ctrl_c()
        dev.wait()
        assert "the task was destroyed before its guest agent answered" in dev.err
        assert "Traceback" not in dev.err
    nothing_left(fake_node)


@pytest.mark.parametrize("later_s", [0.0, 0.15, 0.3, 0.5, 0.7])  # in each of the plugin's launches, and between them
def test_ctrl_c_before_the_task_runs_leaves_nothing(fake_node: Node, later_s: float) -> None:
    with fake_node.dev(fake_node.job()) as dev:
        dev.until_says("starting the plugin")
        time.sleep(later_s)
        dev.press_ctrl_c()
        assert dev.wait() in (130, 0)  # 0: it was faster, and the guest powered off
        assert "Traceback" not in dev.err
    nothing_left(fake_node)


def test_events_and_output_as_json_lines(fake_node: Node) -> None:
    with fake_node.dev(fake_node.job("exit=3"), "--json") as dev:
        assert dev.wait() == 3
        lines = [json.loads(line) for line in dev.out.splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    assert {event["type"] for event in events} == {
        *("Received", "Task Setup", "Driver", "Started", "Terminated", "Not Restarting"),
    }
    output = "".join(line["text"] for line in lines if line["kind"] == "output" and line["stream"] == "stdout")
    assert output.startswith("chv test guest: up")  # of the fake: no kernel says anything
    assert lines[-1] == {"kind": "exit", "code": 3, "exit_code": 3, "signal": 0, "oom_killed": False, "message": ""}


REFUSED = {
    "task block": ('vault {\n policies = ["x"]\n }', "", "block vault in task"),
    "group block": ("", 'service {\n name = "web"\n }', "block service in group"),
    "task attribute": ('shutdown_delay = "5s"', "", "attribute shutdown_delay in task"),
    "network mode": ("", 'network {\n mode = "bridge"\n }', "mode = 'bridge'"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_chv_dev_does_not_do_is_refused_by_name_and_line(fake_node: Node, what: str) -> None:
    task, group, words = REFUSED[what]
    job = fake_node.job(task=task, group=group)
    done = fake_node.command("dev", str(job))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(rf"chv dev: {re.escape(str(job))}:\d+: ", line)
    assert words in line
    assert done.stdout == ""
    assert not fake_node.layout.machines.exists()


def test_a_key_that_the_schema_does_not_know_is_refused_as_nomad_would(fake_node: Node) -> None:
    done = fake_node.command("dev", str(fake_node.job(config='vcpuz = 2\n vcpus = "many"')))
    assert done.returncode == 2
    assert "vcpuz" in done.stderr
    assert "Failed Validation" in done.stderr
    nothing_left(fake_node)


def test_a_start_that_fails_is_said_and_is_exit_code_one(fake_node: Node) -> None:
    done = fake_node.command("dev", str(fake_node.job(boot='kernel = "local/none"')))
    assert done.returncode == 1
    assert "Driver Failure" in done.stderr
    assert "no such file or directory" in done.stderr
    nothing_left(fake_node)


@pytest.mark.parametrize("words", [(), ("none.nomad.hcl",), ("--config", "none.hcl", "JOB"), ("--meta", "x", "JOB")])
def test_wrong_usage_is_exit_code_two(fake_node: Node, words: tuple[str, ...]) -> None:
    job = str(fake_node.job())
    done = fake_node.command("dev", *(job if word == "JOB" else word for word in words))
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_that_the_driver_refuses_says_every_complaint(fake_node: Node) -> None:
    fake_node.block = 'vfio_allow = ["01:00.0"]\n gc {\n orphan_grace = "soon"\n }'
    fake_node.write_agent_file()
    done = fake_node.command("dev", str(fake_node.job()))
    assert done.returncode != 0
    assert "vfio_allow" in done.stderr
    assert "gc.orphan_grace" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs("cgroup")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU to give away, one to keep")
async def test_a_machine_gets_the_dedicated_core_that_the_agent_file_withholds(fake_node: Node) -> None:
    last = max(os.sched_getaffinity(0))
    fake_node.block = f'cores {{\n dedicated = "{last}"\n smt = "thread"\n }}'
    fake_node.client_block = f'reserved {{\n cores = "{last}"\n }}'
    fake_node.write_agent_file()
    job = fake_node.job("exit=3")
    job.write_text(job.read_text().replace('placement = "shared"', 'placement = "exclusive"', 1))
    async with fake_node.host(job) as host:
        assert await host.run() == ExitResult(exit_code=3)
    assert f"cores: vCPU 0 on {last}; " in told(host)[1]


def test_a_list_of_cores_that_is_none_is_refused(fake_node: Node) -> None:
    fake_node.client_block = 'reserved {\n cores = "most"\n }'
    fake_node.write_agent_file()
    done = fake_node.command("dev", str(fake_node.job()))
    assert done.returncode == 2
    expected = "expected a list of CPUs in ascending ranges such as 0-3,8, found 'most'"
    words = f"chv dev: {fake_node.agent_file}: client.reserved.cores = 'most': {expected}"
    assert done.stderr.splitlines()[-1] == words


async def test_a_task_without_logs_runs_too(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job("sleep=1 exit=3", task="logs {\n disabled = true\n }")) as host:
        assert await host.run() == ExitResult(exit_code=3)


async def test_the_result_comes_over_deaths_of_the_guest_and_the_console_of_all_starts_is_one_log(
    fake_node: Node,
) -> None:
    async with fake_node.host(fake_node.job("say=here exit=9", attempts=2)) as host:
        assert await host.run() == ExitResult(exit_code=9)
        assert host.console().count("say here") == 3
        await until(lambda: kinds(host) == ["machine started", "cores"] * 3, "all events", host=host)


async def test_the_second_run_of_a_job_reads_what_the_first_one_wrote_on_a_persistent_disk(node: Node) -> None:
    for expected in ("read data", "read data kept"):
        async with node.host(job_file("persistent")) as host:
            assert await host.run() == ExitResult()
            assert expected in host.console().splitlines()
            assert ("disk created" in kinds(host)) == (expected == "read data")
