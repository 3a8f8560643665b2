"""Disks on a real agent: what is on a persistent one survives the alloc, the job and the agent."""

import functools
import gzip
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.guest import build
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_jobs import job_file


@pytest.fixture(scope="module")
def agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    yield from lifetime(make_agent(guest, plugin_dir, dev=False))


def disks(agent: Agent, *words: str) -> Any:
    chv = str(agent.plugin_dir / "chv")
    done = subprocess.run(
        [chv, "disks", "--config", str(agent.paths.config), "--json", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout or "null")


def run(agent: Agent, name: str) -> tuple[str, list[str]]:
    """Console and events of one run of that job."""
    alloc = agent.wait_alloc(agent.run_job(job_file(name)), "complete", "failed", timeout_s=90)
    events = [message for _, message in agent.task_events(alloc, name)]
    assert agent.alloc(alloc)["ClientStatus"] == "complete", events
    return agent.logs(alloc), events


def test_what_is_on_a_persistent_disk_survives_job_and_agent_until_somebody_removes_it(agent: Agent) -> None:
    console, events = run(agent, "persistent")
    assert "wrote data" in console
    assert "disk created: persistent disk 'data' is new and empty, 1 GiB" in events

    agent.command("job", "stop", "-purge", "persistent")
    agent.stop()
    agent.start()
    console, events = run(agent, "persistent")
    assert "read data kept" in console
    assert not any("disk created" in event for event in events)

    (disk,) = disks(agent)
    assert (disk["namespace"], disk["job"], disk["group"], disk["name"]) == (
        *("default", "persistent", "persistent"),
        "data",
    )
    assert disk["used_bytes"] < 1 << 20
    disks(agent, "remove", disk["id"])
    assert disks(agent) == []


def test_new_copied_and_grown_disks_are_as_the_job_says(agent: Agent) -> None:
    console, _ = run(agent, "disks")
    assert [line for line in console.splitlines() if line.startswith("disk ")][:4] == [
        f"disk vda {2 << 30} ",
        f"disk vdb {1 << 30} new",
        f"disk vdc {100 << 20} grown",
        f"disk vdd {32 << 20} ro",
    ]
    for line in ("wrote new", "wrote grown", "not wrote ro", "read new a", "read grown b"):
        assert line in console.splitlines()


def test_three_allocs_on_one_image_write_to_overlays_of_their_own(agent: Agent, guest: build.Guest) -> None:
    before = (guest.directory / "disk.qcow2").read_bytes()
    agent.run_job(job_file("count"))

    def all_three() -> list[str] | None:
        allocs = sorted(agent.allocs("count"), key=lambda alloc: str(alloc["Name"]))
        ended = len(allocs) == 3 and all(alloc["ClientStatus"] == "complete" for alloc in allocs)
        return [agent.logs(alloc["ID"]) for alloc in allocs] if ended else None

    for index, log in enumerate(agent.wait_for("all three", all_three, timeout_s=150)):
        assert [line.split()[-1] for line in log.splitlines() if line.startswith("read ")] == [f"alloc-{index}"]
    assert (guest.directory / "disk.qcow2").read_bytes() == before


ARTIFACT = """
job "NAME" {
  type = "batch"
  group "g" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    task "NAME" {
      driver       = "chv"
      kill_timeout = "30s"
      artifact {
        source  = "URL/disk.qcow2.gz"
        options {
          archive = false
        }
      }
      config {
        image        = "local/disk.qcow2.gz"
        placement    = "shared"
        user_data    = "#words exit=0"
      }
      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
"""


def test_an_image_that_jobs_download_is_unpacked_once_and_collected_when_the_operator_says_so(
    agent: Agent, guest: build.Guest, tmp_path: Path
) -> None:
    (tmp_path / "disk.qcow2.gz").write_bytes(gzip.compress((guest.directory / "disk.qcow2").read_bytes(), 1))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    images = agent.paths.chv_data / "cache/images"
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = []
        for name in ("first-download", "second-download"):
            path = agent.paths.base / f"{name}.nomad.hcl"
            path.write_text(ARTIFACT.replace("NAME", name).replace("URL", f"http://127.0.0.1:{server.server_port}"))
            alloc = agent.wait_alloc(agent.run_job(path), "complete", "failed", timeout_s=90)
            assert agent.alloc(alloc)["ClientStatus"] == "complete", agent.task_events(alloc, name)
            made.append([(path.name, path.stat().st_ino) for path in images.iterdir()])
        server.shutdown()
    assert len(made[0]) == 1
    assert made[0] == made[1]

    (images / f"{'0' * 64}.raw").write_bytes(bytes(4096))  # of machines that are gone
    agent.stop()
    agent.cores_block = 'gc {\n  image_cache_max = "0"\n}'
    agent.start()
    agent.wait_for("only what machines build on", lambda: len(list(images.iterdir())) == 1)
    assert made[0] == [(path.name, path.stat().st_ino) for path in images.iterdir()]


SHARED = """
job "NAME" {
  type = "batch"
  group "g" {
    count = 2
    restart {
      attempts = 0
      mode     = "fail"
    }
    task "vm" {
      driver       = "chv"
      kill_timeout = "30s"
      config {
        image        = "${meta.chv_guest}/disk.qcow2"
        root_size    = "2GiB"
        placement    = "shared"
        user_data    = "#words read=data write=data:alloc-${NOMAD_ALLOC_INDEX} read=data"
        disk {
          name       = "data"
          size       = "16MiB"
          persistent = true
        }
        disk {
          name     = "again"
          source   = "${meta.chv_guest}/disk.raw"
          readonly = true
        }
      }
      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
"""


def test_allocs_of_one_image_have_disks_of_their_own_by_their_index(agent: Agent) -> None:
    path = agent.paths.base / "two.nomad.hcl"
    path.write_text(SHARED.replace("NAME", "two"))
    agent.run_job(path)

    def both() -> list[str] | None:
        allocs = sorted(agent.allocs("two"), key=lambda alloc: alloc["Name"])
        logs = [agent.logs(alloc["ID"]) for alloc in allocs]
        return logs if len(logs) == 2 and all(log.count("read data") == 2 for log in logs) else None

    for index, log in enumerate(agent.wait_for("both guests", both, timeout_s=120)):
        assert f"read data alloc-{index}" in log
        assert f"disk vda {2 << 30} " in log
    assert sorted(disk["index"] for disk in disks(agent)) == [0, 1]
    assert all(disk["holder"] for disk in disks(agent))
    agent.command("job", "stop", "-detach", "two")
    agent.wait_for("them to end", lambda: all(a["ClientStatus"] == "complete" for a in agent.allocs("two")))
    agent.wait_for("the disks to be free", lambda: not any(disk["holder"] for disk in disks(agent)))
    for disk in disks(agent):
        disks(agent, "remove", disk["id"])
