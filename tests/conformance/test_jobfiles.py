"""Every job file in nomad-jobs/ says the same to hcl/v2 as to the embedded host, down to the bytes for the driver."""

import re
from pathlib import Path
from typing import Any

import pytest

from driver.devhost import hclspec
from driver.devhost.hcltree import config_json, parse
from driver.devhost.jobfile import read_job
from driver.keys import task_spec
from tests.conformance.encoder import Encoder
from tests.jobs import FOR_AGENTS

JOBS = sorted((Path(__file__).resolve().parents[2] / "nomad-jobs").rglob("*.nomad.hcl"))
FOR_BOTH = [path for path in JOBS if path.name.partition(".")[0] not in FOR_AGENTS]
_REFERENCE = re.compile(r"(?<!\$)\$\{([A-Za-z_][\w.-]*)\}")


def test_there_are_job_files() -> None:
    assert JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_whole_file_is_read_alike(encoder: Encoder, path: Path) -> None:
    text = path.read_text()
    assert config_json(parse(text, path)) == encoder.tree(text)


@pytest.mark.parametrize(
    "path", [one for one in JOBS if one.name.partition(".")[0] not in FOR_AGENTS], ids=lambda path: path.name
)
def test_config_reaches_the_driver_alike(encoder: Encoder, path: Path) -> None:
    text = path.read_text()
    job = read_job(path)
    assert job.task.driver == "chv"
    config = _inner(encoder.tree(text), "job", "group", "task")["config"][0]
    variables = _values(text)
    packed = encoder.of_json(task_spec(), config, variables)
    assert hclspec.encode(task_spec(), job.task.config, variables) == packed


def _inner(tree: dict[str, Any], *blocks: str) -> dict[str, Any]:
    """The one block below one block below …, each with one label."""
    for block in blocks:
        (labelled,) = tree[block]
        ((tree,),) = labelled.values()
    return tree


def _values(text: str) -> dict[str, Any]:
    """A value for everything that the file refers to, as the client would have one."""
    tree: dict[str, Any] = {}
    for name in _REFERENCE.findall(text):
        *path, last = name.split(".")
        level = tree
        for part in path:
            level = level.setdefault(part, {})
        level[last] = f"value of {name}"
    return tree
