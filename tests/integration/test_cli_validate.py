"""`chv validate` as its reader sees it: every complaint at its line, and none that is not one."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.integration.nodes import Node
from tests.integration.test_cli import as_json

JOBS = Path(__file__).parent.parent.parent / "nomad-jobs"
KEYS = ["file", "line", "task", "key", "value", "expected"]

# Lines that draw a complaint end in `#!` and the complaint's key.
WRONG_JOB = """
variable "size" {
  default = "5GiB"
}

job "web" {
  type = "batch"
  group "g" {
    network {
      port "http" {}
    }
    task "vm" {
      driver = "chv"
      config {                                    #! image_format
        image     = "local/disk.img"
        root_size = "10G"                         #! root_size
        vcpus     = "many"                        #! vcpus
        colour    = "red"                         #! colour
        cmdline   = "quiet"                       #! cmdline
        hostname  = "${NOMAD_JOB_NAME}"
        ssh_authorized_keys = ["secretkey"]       #! ssh_authorized_keys[0]
        disk {
          name = "data"
          size = var.size
        }
        disk {                                    #! disk[1]
          name = "Data"                           #! disk[1].name
        }
        network_interface {
          network = "lan"
          mac     = "01:00:00:00:00:00"           #! network_interface[0].mac
          address = ["10.0.0.5"]                  #! network_interface[0].address[0]
        }
        share = ["local", "home"]                 #! share[1]
      }
      resources {
        memory = 8                                #! memory
        cores  = 1
      }
    }
    task "side" {
      driver = "docker"
      config {
        image = "redis"
        wrong = 1
      }
    }
  }
}
"""

WRONG_AGENT = """
client {
  reserved {
    cores = "0-x"                  #! client.reserved.cores
  }
}
plugin "chv" {
  data_dir = "/x"                  #! data_dir
  config {
    data_dir = "here"              #! data_dir
    nonsense = true                #! nonsense
    vm_uids  = "all"               #! vm_uids
    cores {
      smt = "both"                 #! cores.smt
    }
    network "lan" {                #! network.lan.parent
      mode = "macvtap"
    }
    network "a b" {                #! network['a b']
      mode   = "bridge"
      bridge = "br0"
      parent = "eth0"              #! network['a b'].parent
    }
    gc {
      orphan_grace = "${soon}"     #! gc.orphan_grace
    }
  }
}
plugin "chv-cores" {
  config {
    data_dir = "x"                 #! data_dir
  }
}
"""


def expected(text: str) -> set[tuple[int, str]]:
    lines = enumerate(text.splitlines(), 1)
    return {(number, line.partition("#!")[2].strip()) for number, line in lines if "#!" in line}


def put(node: Node, name: str, text: str) -> str:
    path = node.base / name
    path.write_text(text)
    return str(path)


def places(found: Sequence[dict[str, Any]]) -> set[tuple[int, str]]:
    assert all(list(one) == KEYS for one in found)
    return {(one["line"], one["key"]) for one in found}


def test_every_complaint_about_a_job_comes_at_once_each_at_its_line(fake_node: Node) -> None:
    file = put(fake_node, "web.nomad.hcl", WRONG_JOB)
    found = as_json(fake_node, "validate", file, code=1)
    assert places(found) == expected(WRONG_JOB)  # of a key that is not there the block's line
    assert {(one["file"], one["task"]) for one in found} == {(file, "web/g/vm")}
    by_key = {one["key"]: one for one in found}
    assert by_key["root_size"]["value"] == "'10G'"
    assert by_key["root_size"]["expected"] == "expected GiB (1024³) or GB (1000³) after the number"
    done = fake_node.command("validate", file)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(found)
    assert f"{file}:17: web/g/vm: vcpus = 'many': Incorrect attribute value type" in done.stdout
    assert "secretkey" not in done.stdout + json.dumps(found)
    assert "2 values not looked at" in done.stderr
    # The same from a pipe.
    piped = subprocess.run(
        [str(fake_node.chv), "validate", "-", "--json"], input=WRONG_JOB, capture_output=True, text=True, check=False
    )
    assert piped.returncode == 1
    assert places(json.loads(piped.stdout)) == places(found)


def test_every_complaint_about_an_agent_file_comes_at_once_each_at_its_line(fake_node: Node) -> None:
    found = as_json(fake_node, "validate", put(fake_node, "agent2.hcl", WRONG_AGENT), code=1)
    assert places(found) == expected(WRONG_AGENT)
    assert next(one["expected"] for one in found if one["key"] == "gc.orphan_grace").startswith("Variables not allowed")


def test_all_our_jobs_and_their_agent_file_are_fine_with_and_without_a_node(fake_node: Node) -> None:
    done = fake_node.command("validate", str(JOBS))
    assert done.returncode == 0, done.stdout
    assert len(done.stdout.splitlines()) == len(list(JOBS.glob("*.hcl")))
    job = fake_node.job()
    done = fake_node.command("validate", "--config", str(fake_node.agent_file), str(job), str(fake_node.agent_file))
    assert done.returncode == 0, done.stdout


def test_what_depends_on_the_node_is_checked_when_a_config_is_named(fake_node: Node) -> None:
    disk = 'disk {\n name = "iso"\n source = "/srv/x.raw"\n readonly = true\n }'
    config = f'network_interface {{\n network = "lan"\n }}\n{disk}'
    job = fake_node.job(boot=f'image = "{fake_node.images}/none.qcow2"', config=config)
    assert as_json(fake_node, "validate", str(job)) == []
    found = as_json(fake_node, "validate", "--config", str(fake_node.agent_file), str(job), code=1)
    assert [one["key"] for one in found] == ["network_interface[0].network", "disk[0].source"]
    assert "which are: user0" in found[0]["expected"]
    assert "beneath one of image_paths" in found[1]["expected"]
    job = fake_node.job(boot=f'image = "{fake_node.images}/none.qcow2"')
    (one,) = as_json(fake_node, "validate", "--config", str(fake_node.agent_file), str(job), code=1)
    assert (one["key"], one["value"]) == ("image", f"'{fake_node.images}/none.qcow2'")
    assert one["expected"] == "no such file or directory, expected a readable file"
    assert 'image = "' in job.read_text().splitlines()[one["line"] - 1]


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("cut.nomad.hcl", 'job "x" {\n group "g" {\n', 3, "not HCL at 'the end'"),
        ("twice.nomad.hcl", 'job "x" {\n type = "batch"\n type = "service"\n}\n', 3, "type: was set before"),
        ("agent3.hcl", 'plugin "chv" {{', 1, "'{' where a key was expected"),
        ("agent4.json", '{\n "plugin": [,]\n}', 2, "not JSON: expected a value"),
        ("job.json", '{"Job": {"TaskGroups": [}}', 1, "not JSON: expected a value"),
        ("deep.json", "[" * 5000, 1, "where a key was expected"),
    ],
)
def test_what_cannot_be_read_is_one_complaint_with_its_line(
    fake_node: Node, name: str, text: str, line: int, words: str
) -> None:
    (found,) = as_json(fake_node, "validate", put(fake_node, name, text), code=1)
    assert (found["line"], found["key"]) == (line, "")
    assert words in found["expected"]


def test_a_file_that_is_not_there_is_wrong_usage(fake_node: Node) -> None:
    done = fake_node.command("validate", "/nowhere/x.hcl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "chv: /nowhere/x.hcl: no such file or directory\n"


@pytest.mark.needs("nomad")
def test_what_nomad_makes_of_a_job_draws_the_same_complaints_and_ours_draw_none(fake_node: Node) -> None:
    def as_nomad_has_it(job: Path, name: str) -> str:
        argv = [str(needs.find_nomad()), "job", "run", "-output", str(job)]
        return put(fake_node, name, subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    hcl = put(fake_node, "web.nomad.hcl", WRONG_JOB)
    from_hcl = as_json(fake_node, "validate", hcl, code=1)
    from_json = as_json(fake_node, "validate", as_nomad_has_it(Path(hcl), "web.json"), code=1)
    words = ("task", "key", "value", "expected")
    assert sorted([one[word] for word in words] for one in from_json) == sorted(
        [one[word] for word in words] for one in from_hcl
    )
    text = (fake_node.base / "web.json").read_text().splitlines()
    for one in from_json:
        if (last := one["key"].rpartition(".")[2].partition("[")[0]) in ("root_size", "vcpus", "colour", "mac", "name"):
            assert f'"{last}"' in text[one["line"] - 1]
    ours = [as_nomad_has_it(job, f"{job.stem}.json") for job in sorted(JOBS.glob("*.nomad.hcl"))]
    assert as_json(fake_node, "validate", *ours) == []
