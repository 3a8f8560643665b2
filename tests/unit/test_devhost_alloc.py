"""The allocation on disk and in StartTask, artifacts, and the plugin's log lines as the agent reads them."""

import hashlib
import stat
from pathlib import Path

import grpc
import pytest

from driver._pb import recoverable_error_pb2, status_pb2
from driver.devhost.alloc import Alloc, AllocPaths, allocate, take_ports
from driver.devhost.artifacts import bring
from driver.devhost.client import go_name, is_recoverable
from driver.devhost.errors import ArtifactError, DevHostError
from driver.devhost.job import Artifact, Port
from driver.devhost.jobfile import job_of
from driver.devhost.node import Cpu, Node, parse_cpu_list
from driver.devhost.pluginproc import LogLine, parse_log_line

NODE = Node(id="node-id", name="host-1", cpus=tuple(Cpu(id=n, socket=0, numa_node=n // 2, mhz=2000) for n in (3, 0, 1)))


def alloc(directory: Path, resources: str, *, network: str = "", task: str = "") -> Alloc:
    inside = f'driver = "chv"\n{task}\n resources {{\n{resources}\n}}'
    text = f'job "j" {{\n group "g" {{\n{network}\n task "t" {{\n {inside}\n}}\n}}\n}}\n'
    return allocate(job_of(text, directory / "j"), NODE, directory)


def test_directories_and_fifos_are_nomads(tmp_path: Path) -> None:
    paths = AllocPaths(root=tmp_path / "id", task="t")
    paths.make()
    found = {
        str(path.relative_to(paths.root)): f"{stat.filemode(path.stat().st_mode)}" for path in paths.root.rglob("*")
    }
    assert found == {
        "alloc": "drwxr-xr-x",
        "alloc/data": "drwxrwxrwx",
        "alloc/logs": "drwxrwxrwx",
        "alloc/logs/.t.stdout.fifo": "prw-------",
        "alloc/logs/.t.stderr.fifo": "prw-------",
        "alloc/tmp": "drwxrwxrwt",
        "t": "drwxrwxrwx",
        "t/local": "drwxrwxrwx",
        "t/secrets": "drwx------",
        "t/private": "drwx------",
        "t/tmp": "drwxrwxrwt",
    }


def test_mhz_tasks_get_what_they_ask_for(tmp_path: Path) -> None:
    made = alloc(tmp_path, "cpu = 600\nmemory = 128\nmemory_max = 256")
    sent = made.task_config("id", b"\x80").resources
    assert sent.allocated_resources.cpu.cpu_shares == 600
    assert (sent.allocated_resources.memory.memory_mb, sent.allocated_resources.memory.memory_max_mb) == (128, 256)
    assert sent.linux_resources.memory_limit_bytes == 256 * 2**20
    assert sent.linux_resources.PercentTicks == pytest.approx(0.1)
    assert sent.linux_resources.cpuset_cpus == ""


def test_cores_are_the_lowest_and_bring_their_mhz(tmp_path: Path) -> None:
    made = alloc(tmp_path, "cores = 2")
    sent = made.task_config("id", b"\x80")
    assert sent.resources.linux_resources.cpuset_cpus == "0,1"
    assert sent.resources.allocated_resources.cpu.cpu_shares == 4000
    assert sent.env["NOMAD_CPU_CORES"] == "0,1"


def test_too_many_cores_are_said(tmp_path: Path) -> None:
    with pytest.raises(DevHostError, match="cores = 4: this machine has 3"):
        alloc(tmp_path, "cores = 4")
    assert not list(tmp_path.iterdir())


def test_ports_reach_the_driver(tmp_path: Path) -> None:
    network = 'network {\n port "http" {\n to = 80\n}\n port "same" {\n to = -1\n}\n port "plain" {}\n}'
    made = alloc(tmp_path, "cpu = 100", network=network)
    sent = {port.label: port for port in made.task_config("id", b"").resources.ports}
    assert sent["http"].to == 80
    assert sent["same"].to == sent["same"].value
    assert sent["plain"].to == 0
    assert len({port.value for port in sent.values()}) == 3
    assert all(20000 <= port.value < 32000 and port.host_ip == "127.0.0.1" for port in sent.values())
    assert made.env["NOMAD_PORT_http"] == "80"
    assert made.env["NOMAD_HOST_PORT_http"] == str(sent["http"].value)


def test_a_static_port_twice_is_refused() -> None:
    with pytest.raises(DevHostError, match="port b: static = 21999 is taken on this machine"):
        take_ports((Port(label="a", static=21999), Port(label="b", static=21999)))


def test_disabled_logs_lead_nowhere(tmp_path: Path) -> None:
    made = alloc(tmp_path, "cpu = 100", task="logs {\n disabled = true\n}")
    sent = made.task_config("id", b"")
    assert (sent.stdout_path, sent.stderr_path) == ("/dev/null", "/dev/null")


def test_each_start_has_an_id_of_its_own(tmp_path: Path) -> None:
    made = alloc(tmp_path, "cpu = 100")
    first, second = made.new_task_id(), made.new_task_id()
    assert first != second
    assert first.rpartition("/")[0] == second.rpartition("/")[0] == f"{made.id}/t"


@pytest.mark.parametrize(
    ("destination", "mode", "wanted"),
    [("local/", "any", "local/x.txt"), ("local/y", "any", "local/y/x.txt"), ("local/y", "file", "local/y")],
)
def test_local_artifacts_are_copied(tmp_path: Path, destination: str, mode: str, wanted: str) -> None:
    (tmp_path / "x.txt").write_text("content")
    task_dir = tmp_path / "t"
    artifact = Artifact(source="x.txt", destination=destination, mode=mode)  # type: ignore[arg-type]
    assert bring(artifact, task_dir=task_dir, job_dir=tmp_path) == task_dir.resolve() / wanted
    assert (task_dir / wanted).read_text() == "content"


def test_a_wrong_checksum_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    right = hashlib.sha256(b"content").hexdigest()
    bring(Artifact(source="x", options={"checksum": f"sha256:{right}"}), task_dir=tmp_path / "t", job_dir=tmp_path)
    with pytest.raises(ArtifactError, match=f"source = 'x': its sha256 is {right}, expected 00"):
        bring(Artifact(source="x", options={"checksum": "sha256:00"}), task_dir=tmp_path / "t", job_dir=tmp_path)


@pytest.mark.parametrize(
    ("source", "destination", "problem"),
    [
        ("x", "../../y", "destination = '../../y': leads out of the task's directory"),
        ("nothing", "local/", "source = 'nothing': .*No such file"),
    ],
)
def test_bad_artifacts_are_said(tmp_path: Path, source: str, destination: str, problem: str) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ArtifactError, match=problem):
        bring(Artifact(source=source, destination=destination), task_dir=tmp_path / "a/b", job_dir=tmp_path)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            '{"@level":"INFO","@message":"m","@module":"x","@timestamp":"t","pid":3}',
            LogLine(level="info", message="m", module="x", pairs={"pid": 3}),
        ),
        ('{"@level":"warning","@message":"m"}', LogLine(level="debug", message='{"@level":"warning","@message":"m"}')),
        ('{"@level":"info","@message":5}', LogLine(level="debug", message='{"@level":"info","@message":5}')),
        ("[WARN] careful", LogLine(level="warn", message="careful")),
        ("plain", LogLine(level="debug", message="plain")),
    ],
)
def test_log_lines_as_the_agent_reads_them(line: str, wanted: LogLine) -> None:
    assert parse_log_line(line) == wanted


def test_only_the_detail_makes_an_error_recoverable() -> None:
    def metadata(recoverable: bool) -> list[tuple[str, bytes | str]]:
        status = status_pb2.Status(code=9)
        status.details.add().Pack(recoverable_error_pb2.RecoverableError(recoverable=recoverable))
        return [("other", "x"), ("grpc-status-details-bin", status.SerializeToString())]

    assert is_recoverable(metadata(True))
    assert not is_recoverable(metadata(False))
    assert not is_recoverable(None)


def test_codes_have_gos_names() -> None:
    assert [go_name(code) for code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.CANCELLED)] == [
        "FailedPrecondition",
        "Canceled",
    ]


def test_cpu_lists() -> None:
    assert parse_cpu_list("0-2,5\n") == [0, 1, 2, 5]
    assert parse_cpu_list("") == []


def test_topology_names_every_cpu() -> None:
    told = NODE.topology()
    assert sorted(told.node_ids) == [0, 1]
    assert [(core.core_id, core.node_id, core.base_speed) for core in told.cores] == [
        (3, 1, 2000),
        (0, 0, 2000),
        (1, 0, 2000),
    ]
