"""Job files: what is read exactly, and what is refused by name and line."""

from pathlib import Path
from typing import Any

import pytest

from driver.devhost.errors import JobFileError
from driver.devhost.hcltree import config_json, parse
from driver.devhost.job import Artifact, Port, Resources
from driver.devhost.jobfile import job_of
from driver.devhost.restarts import BATCH_POLICY, SERVICE_POLICY, RestartPolicy

PATH = Path("j.nomad.hcl")

WHOLE = """
job "web" {
  type        = "service"
  datacenters = ["dc7"]
  namespace   = "prod"
  region      = "eu"
  name        = "the web"
  meta {
    a = "job"
    b = "job"
  }
  group "g" {
    count = 1
    meta = { b = "group", c = 3, d = true }
    ephemeral_disk {
      size = 300
    }
    network {
      mode = "host"
      port "http" {
        static = 8080
        to     = 80
      }
      port "x" {}
      port "same" { to = -1 }
    }
    restart {
      attempts = 5
      delay    = "1m30s"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "t" {
      driver       = "chv"
      user         = "nobody"
      leader       = true
      kill_timeout = "45s"
      kill_signal  = "SIGINT"
      meta {
        c = "task"
      }
      env {
        FOO = "bar ${NOMAD_TASK_NAME}"
        N   = 4
      }
      restart {
        interval = "1h"
        mode     = "delay"
      }
      logs {
        disabled = true
      }
      artifact {
        source      = "http://localhost/x.tar.gz"
        destination = "local/y"
        mode        = "file"
        options {
          archive = "false"
        }
      }
      resources {
        cores      = 2
        memory     = 128
        memory_max = -1
      }
      config {
        image = "local/x.raw"
      }
    }
  }
}
"""


def task(inside: str) -> str:
    return f'job "j" {{\n  group "g" {{\n    task "t" {{\n      driver = "chv"\n{inside}\n    }}\n  }}\n}}\n'


def config(inside: str) -> Any:
    return config_json(parse(inside, PATH))


def test_reads_everything_it_knows() -> None:
    job = job_of(WHOLE, PATH)
    assert (job.id, job.name, job.type, job.group) == ("web", "the web", "service", "g")
    assert (job.namespace, job.region, job.datacenter) == ("prod", "eu", "dc7")
    assert job.ports == (
        Port(label="http", static=8080, to=80),
        Port(label="x"),
        Port(label="same", to=-1),
    )
    one = job.task
    assert (one.name, one.driver, one.user, one.kill_signal, one.logs) == ("t", "chv", "nobody", "SIGINT", False)
    assert one.kill_timeout_s == 30  # the client's max_kill_timeout
    assert one.meta == {"a": "job", "b": "group", "c": "task", "d": "true"}
    assert one.env == {"FOO": "bar ${NOMAD_TASK_NAME}", "N": "4"}
    assert one.restart == RestartPolicy(attempts=5, interval_s=3600, delay_s=90, mode="delay")
    assert one.resources == Resources(cpu_mhz=100, cores=2, memory_mib=128, memory_max_mib=-1)
    assert one.artifacts == (
        Artifact(source="http://localhost/x.tar.gz", destination="local/y", mode="file", options={"archive": "false"}),
    )
    assert one.config == {"image": "local/x.raw"}


def test_defaults_are_nomads() -> None:
    job = job_of(task(""), PATH)
    assert (job.type, job.namespace, job.region, job.datacenter) == ("service", "default", "global", "dc1")
    assert job.task.restart == SERVICE_POLICY
    assert job.task.kill_timeout_s == 5
    assert job.task.resources == Resources(cpu_mhz=100, cores=0, memory_mib=300, memory_max_mib=0)
    batch = job_of(task("").replace("{\n  group", '{\n  type = "batch"\n  group', 1), PATH)
    assert batch.task.restart == BATCH_POLICY


def test_every_job_of_ours_can_be_read() -> None:
    every = (Path(__file__).parents[2] / "nomad-jobs").glob("*.nomad.hcl")
    for_agents = {"cloud-image.nomad.hcl", "tokens.nomad.hcl"}  # templates and devices
    jobs = sorted(path for path in every if path.name not in for_agents)
    names = [job_of(path.read_text(), path).id for path in jobs]
    assert [f"{name}.nomad.hcl" for name in names] == [path.name for path in jobs]
    assert {"hello", "service", "sleep", "exit-code", "restart", "http"} <= set(names)


REFUSED = [
    ("constraint {\n}", 5, "block constraint in task: not supported by chv dev"),
    ('template {\n  data = "x"\n}', 5, "block template in task: not supported by chv dev"),
    ("\nservice {\n}", 6, "block service in task: not supported by chv dev"),
    ("colour = 1", 5, "attribute colour in task: not supported by chv dev"),
    ('resources {\n  device "x" {}\n}', 6, "block device in resources: not supported by chv dev"),
    ("resources {\n  cpu = 1\n  cores = 1\n}", 7, "resources: cpu and cores exclude each other"),
    ('resources {\n  memory = "much"\n}', 6, "memory = 'much': expected a whole number from 10 to 2147483647"),
    ('kill_timeout = "soon"', 5, "kill_timeout = 'soon': expected a time like 30s"),
    ("kill_timeout = 30", 5, "kill_timeout = 30: expected a time like 30s"),
    ('restart {\n  interval = "1s"\n}', 6, "interval = '1s': expected a time like 30s, at least 5s"),
    ('restart {\n  mode = "never"\n}', 6, "mode = 'never': expected fail or delay"),
    ("logs {\n  destination = 1\n}", 6, "attribute destination in logs: not supported by chv dev"),
    ('leader = "yes"', 5, "leader = 'yes': expected true or false"),
    ('user = upper("x")', 5, "function upper: only plain values are supported by chv dev"),
    (
        'user = "${upper("x")}"',
        5,
        "expression 'upper(\"x\")': only variables are supported by chv dev, no functions or operators",
    ),
    ("user = var.x", 5, "variable var.x: only plain values are supported by chv dev"),
    ('user = "${var.x}"', 5, "variable var.x: input variables are not supported by chv dev"),
    ('user = "${local.x}"', 5, "variable local.x: local values are not supported by chv dev"),
    ("user = 1 + 2", 5, "an operator (1 + 2): only plain values are supported by chv dev"),
    ("user = true ? 1 : 2", 5, "a condition (true ? 1 : 2): only plain values are supported by chv dev"),
    ("env {\n  A = [1]\n}", 6, "env: A = [1], expected a string"),
    ("config = { a = 1 }", 5, "config: expected a block, without ="),
    ("config {\n}\nconfig {\n}", 7, "block config: chv dev knows one, this is another"),
    (
        'config {\n  a = "%{ if x }y%{ endif }"\n}',
        6,
        "directive '%{ if x }': not supported by chv dev (`%%{` is a literal `%{`)",
    ),
    ("config {\n  a = 1\n  a = 2\n}", 7, "a: was set before"),
    ("config {\n  a = 1\n  a {\n  }\n}", 7, "a: was set before"),
    ("config {\n  a = 1 b = 2\n}", 6, "b: must begin on a line of its own"),
    ("config { a = 1 b = 2 }", 5, "config: a block on one line can hold one attribute and nothing else"),
    ("config { disk { a = 1 } }", 5, "config: a block on one line can hold one attribute and nothing else"),
    ("config {\n  a = 1 }", 6, "config: its closing brace must begin on a line of its own"),
    ('config {\n  a = "x\ny"\n}', 6, "a quoted string cannot go over a line break, use a heredoc"),
    ('config {\n  a = "\\q"\n}', 6, 'escape \\q: expected one of \\n \\r \\t \\" \\\\ \\uNNNN \\UNNNNNNNN'),
    (
        'artifact {\n  source = "git::https://x/y"\n}',
        6,
        "source = 'git::https://x/y': chv dev brings local files and http(s) addresses",
    ),
    (
        'artifact {\n  source = "https://x/y.zip"\n}',
        5,
        "source = 'https://x/y.zip': chv dev unpacks no archives, options archive = false keeps it",
    ),
    ('artifact {\n  source = "x"\n  headers {\n  }\n}', 7, "block headers in artifact: not supported by chv dev"),
]


@pytest.mark.parametrize(("inside", "line", "problem"), REFUSED)
def test_refuses_by_name_and_line(inside: str, line: int, problem: str) -> None:
    with pytest.raises(JobFileError) as caught:
        job_of(task(inside), PATH)
    assert str(caught.value) == f"j.nomad.hcl:{line}: {problem}"


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "the file: it has no job"),
        ('variable "x" {\n}\n', 1, "block variable at the top of the file: not supported by chv dev"),
        ('job "a" {\n}\n', 1, "job: it has no group"),
        ('job "a" {\n  type = "system"\n}\n', 2, "type = 'system': chv dev runs service and batch"),
        ('job "a" {\n  periodic {\n  }\n}\n', 2, "block periodic in job: not supported by chv dev"),
        ('job "a" {\n  group "g" {\n    count = 2\n  }\n}\n', 3, "count = 2: chv dev runs one"),
        (
            'job "a" {\n  group "g" {\n    volume "v" {\n    }\n  }\n}\n',
            3,
            "block volume in group: not supported by chv dev",
        ),
        (
            'job "a" {\n  group "g" {\n    network {\n      mode = "bridge"\n    }\n  }\n}\n',
            4,
            "mode = 'bridge': chv dev has host networks only",
        ),
        (
            'job "a" {\n  group "g" {\n  }\n  group "h" {\n  }\n}\n',
            4,
            "block group: chv dev knows one, this is another",
        ),
        ('job "a" {\n  group "g" {\n    task "t" {\n    }\n  }\n}\n', 3, "task: it has no driver"),
        ("job {\n}\n", 1, "job: expected one name"),
        ('job "a" {\n  x = \n}\n', 2, "not HCL at 'x ='"),
        ('job "a" {\n', 2, "not HCL at 'the end'"),
        (
            'job "a" {\n  group "g" {\n    reschedule {\n      attempts = 3\n    }\n  }\n}\n',
            3,
            "reschedule: chv dev has one node, only attempts = 0 with unlimited = false",
        ),
    ],
)
def test_refuses_above_the_task(text: str, line: int, problem: str) -> None:
    with pytest.raises(JobFileError) as caught:
        job_of(text, PATH)
    assert str(caught.value) == f"j.nomad.hcl:{line}: {problem}"


CONFIGS: list[tuple[str, Any]] = [
    ("a = 1\n", {"a": 1}),
    ("a = -1\nb = -0.5\nc = 1e3\nd = 1.0\n", {"a": -1, "b": -0.5, "c": 1000, "d": 1}),
    ("a = true\nb = null\n", {"a": True, "b": None}),
    ('a = "x\\n\\"\\\\\\u0041"\n', {"a": 'x\n"\\A'}),
    ('a = ["x", 1,\n  true,\n]\n', {"a": ["x", 1, True]}),
    # An object as a value arrives as a list of one; deeper ones stay as they are.
    ('a = { k = "v", "q r" : { x = 1 } }\n', {"a": [{"k": "v", "q r": {"x": 1}}]}),
    ('a = [{ k = "v" }]\n', {"a": [{"k": "v"}]}),
    ("disk { a = 1 }\ndisk {\n  a = 2\n}\n", {"disk": [{"a": 1}, {"a": 2}]}),
    ('net "lan" {\n  a = 1\n}\nnet br {}\n', {"net": [{"lan": [{"a": 1}]}, {"br": [{}]}]}),
    ('a = <<EOT\nx\n  y "q" \\n\nEOT\n', {"a": 'x\n  y "q" \\n\n'}),
    ("a = <<EOT\nEOT\n", {"a": ""}),
    ("a = <<-EOT\n    x\n\n      y\n    EOT\nb = 1\n", {"a": "x\n\n  y\n", "b": 1}),
    ("a = <<-EOT\n  ${meta.x}\n    y\n  EOT\n", {"a": "${meta.x}\n  y\n"}),
    ('a = "${meta.x}/k ${ NOMAD_PORT_http } ${env["A.B"]}"\n', {"a": '${meta.x}/k ${NOMAD_PORT_http} ${env["A.B"]}'}),
    # Read twice: one dollar goes here, the other on the node.
    ('a = "$$${HOME} $${X} $HOME 5$ %%{x}"\n', {"a": "$${HOME} ${X} $HOME 5$ %{x}"}),
    ("a = <<EOT\n$$${HOME} $${X}\nEOT\n", {"a": "$${HOME} ${X}\n"}),
    ("# c\n// d\n/* e\n f */\na = 1 # g\n", {"a": 1}),
]


@pytest.mark.parametrize(("text", "wanted"), CONFIGS)
def test_config_keeps_values_exactly(text: str, wanted: Any) -> None:
    assert config(text) == wanted
