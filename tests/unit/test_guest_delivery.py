"""The guest agent as one file, and the boothook around it."""

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

from vmlib.guest.delivery import agent_source, boothook

END = "end of the guest agent"


def bound(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Each name that the file binds at its top, with what it stands for if that is imported."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, f"module {alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from ((name.id, "") for name in ast.walk(target) if isinstance(name, ast.Name))


def test_it_is_python_of_3_6() -> None:
    """Its syntax; `make lint` looks at the names of the standard library."""
    ast.parse(agent_source(), feature_version=(3, 6))


def test_its_parts_do_not_take_one_anothers_names() -> None:
    origins: dict[str, str] = {}
    for name, origin in bound(ast.parse(agent_source())):
        assert name not in origins or (origin and origins[name] == origin), name
        origins[name] = origin
    assert {"Agent", "Run", "Decoder"} <= origins.keys()


def test_it_imports_nothing_of_ours_and_nothing_from_the_future() -> None:
    modules = [origin for _, origin in bound(ast.parse(agent_source())) if origin]
    assert not [origin for origin in modules if "vmlib" in origin or "__future__" in origin]
    assert "from vmlib" not in agent_source()


def test_it_can_be_loaded_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "agent.py"
    path.write_text(agent_source())
    found = runpy.run_path(str(path), run_name="agent")
    assert callable(found["main"])


def test_the_boothook_is_a_small_script_that_holds_it_whole() -> None:
    text = boothook().decode()
    assert text.startswith("#!/bin/sh\n")
    assert len(boothook()) < 64 << 10
    before, _, rest = text.partition(f"<<'{END}'\n")
    assert rest.startswith(agent_source())
    assert END not in before


def test_no_line_of_the_agent_ends_the_script_around_it() -> None:
    assert END not in agent_source()
    assert agent_source().endswith("\n")
    assert boothook().decode().splitlines().count(END) == 1
