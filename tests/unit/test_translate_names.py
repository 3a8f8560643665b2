"""What machines and their guests are called."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.translate import default_hostname, machine_name
from tests.unit.job_tasks import ALLOC


@pytest.mark.parametrize(
    ("task", "safe"),
    [
        ("web", "web"),
        ("web-1_a.b", "web-1_a.b"),
        ("my task", "my%20task"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("a~b", "a%7Eb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a..b", "a%2E%2Eb"),
        (".hidden", "%2Ehidden"),
        ("ä", "%C3%A4"),
        ("a\nb", "a%0Ab"),
        (129 * "x", 111 * "x" + "~0ec9eb33e74510bc"),
    ],
)
def test_a_machines_name_is_the_alloc_and_the_escaped_task(task: str, safe: str) -> None:
    assert machine_name(ALLOC, task) == f"{ALLOC}/{safe}"


def test_an_alloc_id_is_escaped_too() -> None:
    assert machine_name("..", "x") == "%2E%2E/x"


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_safe_as_directories_and_differ_when_tasks_do(one: str, other: str) -> None:
    for task in (one, other):
        alloc, _, name = machine_name("a", task).partition("/")
        assert alloc == "a"
        assert re.fullmatch(r"[A-Za-z0-9_%~.-]{1,128}", name)
        assert ".." not in name
        assert not name.startswith(".")
    assert (machine_name("a", one) == machine_name("a", other)) == (one == other)


@given(st.text(), st.text())
def test_a_default_hostname_is_always_one_label(job: str, task: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", default_hostname(job, task))


@pytest.mark.parametrize(
    ("job", "task", "name"),
    [
        ("web", "vm", "web-vm"),
        ("Batch/dispatch-17", "vm_1", "batch-dispatch-17-vm-1"),
        ("", "", "machine"),
        ("ä", "ö", "machine"),
        (70 * "j", "t", 63 * "j"),
    ],
)
def test_a_default_hostname_tells_job_and_task(job: str, task: str, name: str) -> None:
    assert default_hostname(job, task) == name
