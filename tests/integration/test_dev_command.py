"""`chv dev` as a person runs it, on a real guest: ^C, artifacts, refusals, and nothing left behind."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests import leftovers
from tests.guest import build

JOBS = Path(__file__).parents[2] / "nomad-jobs"
READY = "chv test guest: ready"
BEGINNING = ["Received", "Task Setup", "Started"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """All that one run of `chv dev --json` said."""

    code: int
    lines: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def nomads_events(self) -> list[str]:
        return [line["type"] for line in self.of("event") if line["type"] != "Driver"]

    @property
    def console(self) -> str:
        return "".join(line["text"] for line in self.of("output") if line["stream"] == "stdout")


@pytest.fixture
def config(short_dir: Path, guest: build.Guest) -> Iterator[Path]:
    """An agent file of our own; at the end nothing of what it led to may be left."""
    path = short_dir / "agent.hcl"
    path.write_text(f"""
client {{
  meta {{ chv_guest = "{guest.kernel.parent}" }}
}}
plugin "chv" {{
  config {{
    data_dir    = "{short_dir}/data"
    run_dir     = "{short_dir}/run"
    image_paths = ["{guest.kernel.parent}"]
    vm_uids     = "220000-220099"
    network "user0" {{ mode = "user" }}
  }}
}}
""")
    with leftovers.none_left(run_dir=short_dir / "run", data_dir=short_dir / "data"):
        yield path


@contextlib.contextmanager
def dev(chv: Path, config: Path, job: Path, *more: str) -> "Iterator[subprocess.Popen[str]]":
    """In a session of its own: a ^C at the terminal of whoever runs the tests is not for it."""
    argv = [str(chv), "dev", "--json", "--config", str(config), *more, str(job)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(chv: Path, config: Path, job: Path, *more: str, after: str = "", signals: int = 1) -> Told:
    """To its end; with `after`, ^C comes when that stands on the console."""
    lines: list[dict[str, Any]] = []
    console = ""
    pending = bool(after)
    with dev(chv, config, job, *more) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["kind"] == "output" and lines[-1]["stream"] == "stdout":
                console += lines[-1]["text"]
            if pending and after in console:
                pending = False
                process.send_signal(signal.SIGINT)
            if signals == 2 and lines[-1].get("message", "").startswith("power button"):
                process.send_signal(signal.SIGINT)
        return Told(code=process.wait(30), lines=lines)


def changed(job: str, directory: Path, old: str, new: str) -> Path:
    text = (JOBS / f"{job}.nomad.hcl").read_text()
    assert old in text
    path = directory / "changed.nomad.hcl"
    path.write_text(text.replace(old, new))
    return path


def test_ctrl_c_presses_the_power_button(chv: Path, config: Path) -> None:
    told = run(chv, config, JOBS / "service.nomad.hcl", after=READY)
    assert told.code == 0
    assert told.nomads_events == [*BEGINNING, "Killing", "Terminated", "Killed"]
    assert "power button" in told.console


def test_a_second_ctrl_c_pulls_the_plug(chv: Path, config: Path, tmp_path: Path) -> None:
    job = changed("service", tmp_path, "panic=-1", "panic=-1 ignore-acpi")
    told = run(chv, config, job, after=READY, signals=2)
    assert told.code == 128 + signal.SIGKILL
    at = {event["type"]: event["time"] for event in told.of("event")}
    assert at["Terminated"] - at["Killing"] < 25  # the kill_timeout is 30 s
    assert told.nomads_events == [*BEGINNING, "Killing", "Terminated", "Killed"]


def test_artifacts_are_there_before_the_machine(chv: Path, config: Path, guest: build.Guest, tmp_path: Path) -> None:
    class Initrd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(guest.initrd.read_bytes())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
            pass

    (tmp_path / "kernel").write_bytes(guest.kernel.read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), Initrd) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        artifacts = f"""
      artifact {{
        source = "kernel"
      }}
      artifact {{
        source      = "http://127.0.0.1:{server.server_port}/i"
        destination = "local/initrd"
        mode        = "file"
      }}
      config {{"""
        job = changed("hello", tmp_path, "      config {", artifacts)
        text = job.read_text().replace("${meta.chv_guest}/vmlinuz", "local/kernel")
        job.write_text(text.replace("${meta.chv_guest}/initrd.img", "${NOMAD_TASK_DIR}/initrd"))
        told = run(chv, config, job)
        server.shutdown()
    assert told.code == 0
    assert told.nomads_events == ["Received", "Task Setup", "Downloading Artifacts", "Started", "Terminated"]


def test_a_job_file_it_does_not_know_is_refused(chv: Path, config: Path, tmp_path: Path) -> None:
    job = changed("hello", tmp_path, "      config {", "      vault {\n      }\n      config {")
    told = run(chv, config, job)
    line = job.read_text().splitlines().index("      vault {") + 1
    assert told.code == 2
    assert told.lines == [
        {"kind": "refused", "message": f"{job}:{line}: block vault in task: not supported by chv dev"}
    ]


def test_a_config_that_does_not_fit_is_refused_by_the_plugins_schema(chv: Path, config: Path, tmp_path: Path) -> None:
    job = changed("hello", tmp_path, "placement = ", "colour = ")
    told = run(chv, config, job)
    assert told.code == 2
    assert told.nomads_events == ["Received", "Task Setup", "Failed Validation", "Not Restarting"]
    assert told.lines[-1]["message"] == 'Invalid label: No argument or block type is named "colour".'


def test_what_the_driver_refuses_is_a_failure(chv: Path, config: Path, tmp_path: Path) -> None:
    job = changed("hello", tmp_path, "/vmlinuz", "/nothing")
    told = run(chv, config, job)
    assert told.code == 1
    assert told.nomads_events == ["Received", "Task Setup", "Driver Failure", "Not Restarting"]


@pytest.mark.parametrize(
    ("task", "lint"),
    [
        ('kill_timeout = "30s"', []),
        (
            'kill_timeout = "2s"',
            ["kill_timeout is 2 s: most guests need a kill_timeout of 30 s, Nomad's default is 5 s"],
        ),
        ("", ["kill_timeout is 5 s: most guests need a kill_timeout of 30 s, Nomad's default is 5 s"]),
        ('kill_timeout = "2s"\n kill_signal = "SIGKILL"', []),
    ],
)
def test_a_short_kill_timeout_is_a_lint(chv: Path, config: Path, tmp_path: Path, task: str, lint: list[str]) -> None:
    job = changed("hello", tmp_path, 'kill_timeout = "30s"', task)
    job.write_text(job.read_text().replace("/vmlinuz", "/nothing"))  # nothing has to start for it
    told = run(chv, config, job)
    assert [line["message"] for line in told.of("lint")] == lint


def test_the_allocs_directory_is_kept_on_demand(chv: Path, config: Path, tmp_path: Path) -> None:
    told = run(chv, config, JOBS / "hello.nomad.hcl", "--keep", "--alloc-dir", str(tmp_path / "allocs"))
    (root,) = (tmp_path / "allocs").iterdir()
    assert (root / "alloc/logs/hello.stdout.0").read_bytes().decode() == told.console
