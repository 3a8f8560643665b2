"""The file in which the driver tells its neighbours of this host's cores."""

import json
from pathlib import Path

import pytest

from driver.cores_file import publish
from tests.unit.test_cores_plan import topology
from vmlib.cores.plan import Host, Policy


def test_what_somebody_left_who_was_killed_while_writing_goes_with_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "cores.json"
    host = Host(topology=topology(4), policy=Policy(usable=frozenset({0, 1}), dedicated=frozenset({2, 3})))
    publish(path, host, mhz={})
    before = path.stat()
    (tmp_path / ".cores.json.1234abcd").write_text("{")
    publish(path, host, mhz={})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["cores.json", "cores.lock"]
    assert path.stat().st_ino == before.st_ino  # nothing new to say
    assert json.loads(path.read_text())["dedicated"] == "2-3"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\0", b"[" * 100_000])
def test_a_damaged_one_is_set_aside_and_written_anew(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cores.json"
    host = Host(topology=topology(4), policy=Policy(usable=frozenset({0, 1}), dedicated=frozenset({2, 3})))
    publish(path, host, mhz={})
    whole = path.read_bytes()
    path.write_bytes(data)
    publish(path, host, mhz={})
    assert path.read_bytes() == whole
    assert len(list(tmp_path.glob("cores.json.corrupt-*"))) == 1
