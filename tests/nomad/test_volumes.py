"""Host volumes and the task's own directories on a real agent: who reads and writes what, seen from both sides."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import build
from tests.nomad.agent import Agent
from tests.nomad.conftest import lifetime, make_agent
from tests.nomad.test_jobs import job_file

pytestmark = pytest.mark.needs("virtiofsd")


@pytest.fixture(scope="module")
def agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    agent = make_agent(guest, plugin_dir, dev=True)
    blocks = []
    for name in ("chv-data", "chv-fixed"):
        path = agent.paths.base / name
        path.mkdir()
        (path / "in").write_text(f"of {name}\n")
        read_only = "true" if name == "chv-fixed" else "false"
        blocks.append(f'host_volume "{name}" {{\n path = "{path}"\n read_only = {read_only}\n }}')
    agent.client_block = "\n".join(blocks)
    yield from lifetime(agent)


def run(agent: Agent, name: str) -> tuple[str, list[str]]:
    """The alloc and the console of one run of that job."""
    alloc = agent.wait_alloc(agent.run_job(job_file(name)), "complete", "failed", timeout_s=90)
    events = [message for _, message in agent.task_events(alloc, name)]
    assert agent.alloc(alloc)["ClientStatus"] == "complete", events
    return alloc, agent.logs(alloc).splitlines()


def test_a_writable_host_volume_is_written_and_a_read_only_one_is_not(agent: Agent) -> None:
    _, console = run(agent, "host-volume")
    for line in (
        "mounted chv:srv-data",
        "mounted chv:srv-fixed",
        "got /data/in of chv-data",
        "put /data/out",
        "got /fixed/in of chv-fixed",
        "not put /fixed/in",
    ):
        assert line in console
    base = agent.paths.base
    assert (base / "chv-data/out").read_text() == "done\n"
    assert (base / "chv-fixed/in").read_text() == "of chv-fixed\n"


def test_the_tasks_own_directories_are_shared_with_its_guest(agent: Agent) -> None:
    alloc, console = run(agent, "share")
    for line in ("put /local/greeting", "put /secrets/key", "got /secrets/key s3cret", "put /alloc/data/result"):
        assert line in console
    assert agent.command("alloc", "fs", alloc, "share/local/greeting").stdout == "hello\n"
    assert agent.command("alloc", "fs", alloc, "alloc/data/result").stdout == "42\n"


EVERYTHING = """
job "NAME" {
  type = "batch"
  group "g" {
    restart {
      attempts = 0
    }
    volume "data" {
      type   = "host"
      source = "chv-data"
    }
    task "vm" {
      driver = "chv"
      volume_mount {
        volume      = "data"
        destination = "/srv/data"
      }
      config {
        image     = "${meta.chv_guest}/disk.qcow2"
        placement = "shared"
        share     = ["local"]
        tpm       = true
        user_data = "#words mount=chv:srv-data:/d put=/d/with-seed:yes tpm poweroff"
      }
      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
"""


@pytest.mark.needs("swtpm")
def test_a_machine_with_a_volume_a_share_and_a_tpm_has_a_seed_that_mounts_them(agent: Agent) -> None:
    path = agent.paths.base / "all.nomad.hcl"
    path.write_text(EVERYTHING.replace("NAME", "all"))
    alloc = agent.wait_alloc(agent.run_job(path), "complete", "failed", timeout_s=120)
    console = agent.logs(alloc).splitlines()
    assert any(line.startswith("seed file vendor-data ") for line in console), console
    assert (agent.paths.base / "chv-data/with-seed").read_text() == "yes\n"
    assert "tpm 2 resets 1" in console
