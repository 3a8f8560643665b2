"""Names of everything: unique where they must be, short where they must be."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vmlib.paths import Layout, MachinePaths, RunPaths, run_key

LAYOUT = Layout(Path("/var/lib/chv"), Path("/run/chv"))
NOMAD_ID = "0b4c8e2f-7a51-4f0e-8a57-1a2b3c4d5e6f/a-task-with-a-rather-long-name/0123abcd"


def _all(paths: MachinePaths | RunPaths) -> dict[str, Path]:
    names = [name for name in dir(type(paths)) if isinstance(getattr(type(paths), name), property)]
    return {name: getattr(paths, name) for name in names}


def test_a_socket_fits_into_its_address() -> None:
    run = LAYOUT.run(NOMAD_ID)
    assert all(len(str(path)) <= 60 for path in _all(run).values())


def test_no_two_names_of_a_machine_are_one_path() -> None:
    for paths in (LAYOUT.machine("alloc/web"), LAYOUT.run(NOMAD_ID)):
        named = _all(paths)
        assert len(set(named.values())) == len(named) > 5
        assert all(paths.root in path.parents for path in named.values())


@given(one=st.text(), other=st.text())
def test_two_starts_never_share_a_run_directory(one: str, other: str) -> None:
    assert (LAYOUT.run(one) == LAYOUT.run(other)) == (one == other)


@given(machine_id=st.text())
def test_a_run_key_is_safe_in_a_path_a_cgroup_and_an_option(machine_id: str) -> None:
    assert len(run_key(machine_id)) == 12
    assert set(run_key(machine_id)) <= set("0123456789abcdef")


def test_run_directories_lie_side_by_side() -> None:
    assert LAYOUT.run(NOMAD_ID).root.parent == LAYOUT.runs
    assert LAYOUT.machine("alloc/web").root == Path("/var/lib/chv/machines/alloc/web")
