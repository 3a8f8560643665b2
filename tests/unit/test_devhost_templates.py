"""`${…}` on the node: what Nomad replaces, and what it refuses in which words."""

from pathlib import Path
from typing import Any

import pytest

from driver.devhost.environment import config_variables, replace_references, task_environment
from driver.devhost.jobfile import job_of
from driver.devhost.node import Node
from driver.devhost.templates import TemplateError, render

NODE = Node(
    id="11111111-0000-0000-0000-000000000000",
    name="host-1",
    datacenter="dc1",
    attributes={
        "kernel.name": "linux",
        "driver.chv": "true",
        "driver.chv.version": "0.1.0",
        "unique.hostname": "host-1",
    },
    meta={"rack": "r 1", "chv_guest": "/srv/guest", "a.b": "deep"},
)
JOB = job_of(
    """
job "j" {
  group "g" {
    network {
      port "http" { to = 80 }
      port "my-port" {}
    }
    task "t" {
      driver = "chv"
      meta {
        owner = "me on ${meta.rack}"
      }
      env {
        FOO  = "${NOMAD_ALLOC_DIR}/x ${nobody.knows}"
        A_B  = "1"
      }
      resources {
        memory_max = 400
      }
    }
  }
}
""",
    Path("j"),
)
ENV = task_environment(
    JOB,
    NODE,
    alloc_id="deadbeef-1234-0000-0000-000000000000",
    cores="",
    cpu_mhz=100,
    ports={"http": (20001, 80), "my-port": (20002, 20002)},
    host_ip="127.0.0.1",
)
VARIABLES = config_variables(ENV, NODE)


def test_environment_is_nomads() -> None:
    assert ENV == {
        "NOMAD_ALLOC_DIR": "/alloc",
        "NOMAD_TASK_DIR": "/local",
        "NOMAD_SECRETS_DIR": "/secrets",
        "NOMAD_MEMORY_LIMIT": "300",
        "NOMAD_MEMORY_MAX_LIMIT": "400",
        "NOMAD_CPU_LIMIT": "100",
        "NOMAD_CPU_CORES": " ",
        "NOMAD_ALLOC_ID": "deadbeef-1234-0000-0000-000000000000",
        "NOMAD_SHORT_ALLOC_ID": "deadbeef",
        "NOMAD_ALLOC_NAME": "j.g[0]",
        "NOMAD_ALLOC_INDEX": "0",
        "NOMAD_GROUP_NAME": "g",
        "NOMAD_TASK_NAME": "t",
        "NOMAD_JOB_ID": "j",
        "NOMAD_JOB_NAME": "j",
        "NOMAD_DC": "dc1",
        "NOMAD_NAMESPACE": "default",
        "NOMAD_REGION": "global",
        "NOMAD_ADDR_http": "127.0.0.1:20001",
        "NOMAD_HOST_ADDR_http": "127.0.0.1:20001",
        "NOMAD_IP_http": "127.0.0.1",
        "NOMAD_HOST_IP_http": "127.0.0.1",
        "NOMAD_PORT_http": "80",
        "NOMAD_ALLOC_PORT_http": "80",
        "NOMAD_HOST_PORT_http": "20001",
        "NOMAD_ADDR_my_port": "127.0.0.1:20002",
        "NOMAD_HOST_ADDR_my-port": "127.0.0.1:20002",
        "NOMAD_IP_my_port": "127.0.0.1",
        "NOMAD_HOST_IP_my-port": "127.0.0.1",
        "NOMAD_PORT_my_port": "20002",
        "NOMAD_ALLOC_PORT_my-port": "20002",
        "NOMAD_HOST_PORT_my_port": "20002",
        "NOMAD_META_OWNER": "me on r 1",
        "NOMAD_META_owner": "me on r 1",
        "FOO": "/alloc/x ${nobody.knows}",
        "A_B": "1",
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("${NOMAD_PORT_http}", "80"),
        ("a${NOMAD_PORT_http}b", "a80b"),
        ("${meta.chv_guest}/vmlinuz", "/srv/guest/vmlinuz"),
        ("${node.unique.name} ${node.meta.rack}", "host-1 r 1"),
        ("${attr.kernel.name}", "linux"),
        # What has something below it wins over the plain value.
        ("${attr.driver.chv.version}", "0.1.0"),
        ("${meta.a.b}", "deep"),
        ('${env["NOMAD_TASK_NAME"]} ${env.FOO}', "t /alloc/x ${nobody.knows}"),
        ("${FOO}", "/alloc/x ${nobody.knows}"),
        ("${NOMAD_META_owner}", "me on r 1"),
        ("$HOME $$ $", "$HOME $$ $"),
        ("$${HOME} %%{x}", "${HOME} %{x}"),
        ('back\\slash "quotes"', 'back\\slash "quotes"'),
    ],
)
def test_replaces_what_nomad_replaces(text: str, wanted: str) -> None:
    assert render(text, VARIABLES) == wanted


def test_a_reference_alone_keeps_its_type() -> None:
    found: Any = render("${env}", VARIABLES)
    assert found["NOMAD_TASK_NAME"] == "t"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x ${HOME} y", 'Unknown variable: There is no variable named "HOME".'),
        ("${meta.nothing}", 'Unsupported attribute: This object does not have an attribute named "nothing".'),
        ("${NOMAD_DC.x}", "Unsupported attribute: This value does not have any attributes."),
        ('${env["NO"]}', 'Missing map element: This map does not have an element with the key "NO".'),
        (
            "x${meta}",
            (
                "Invalid template interpolation value: Cannot include the given value in a string template: "
                "string required."
            ),
        ),
        (
            'a ${upper("x")}',
            "expression 'upper(\"x\")': only variables are supported by chv dev, no functions or operators",
        ),
        ("%{ if x }", "directive '%{ if x }': not supported by chv dev (`%%{` is a literal `%{`)"),
        ("${x", "'${x' has no closing brace (a literal `${` is written `$${`)"),
    ],
)
def test_refuses_in_nomads_words(text: str, problem: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(text, VARIABLES)
    assert str(caught.value) == problem


def test_outside_config_unknown_references_stay() -> None:
    assert replace_references("${a.b} ${c} $d ${e f}", {"a.b": "1"}, {"c": "2"}) == "1 2 $d ${e f}"
