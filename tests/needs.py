"""What tests need from the machine: a probe for each word that `CHV_TEST_REQUIRE` and `pytest.mark.needs` know."""

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# What a tier needs as a whole.
TIERS: dict[str, tuple[str, ...]] = {
    "unit": (),
    "integration": ("root", "qemu"),
    "conformance": ("go",),
    "nomad": ("root", "qemu", "nomad"),
}


def required() -> frozenset[str]:
    """The words whose lack is a failure. Raises ValueError for one that nobody knows."""
    words = frozenset(word.strip() for word in os.environ.get("CHV_TEST_REQUIRE", "").split(",") if word.strip())
    unknown = sorted(words - PROBES.keys())
    if unknown:
        raise ValueError(f"CHV_TEST_REQUIRE names {', '.join(unknown)}, expected words of {', '.join(sorted(PROBES))}")
    return words


@cache
def lacking(name: str) -> str:
    """Why `name` cannot be used here, in a sentence; "" when it can."""
    return PROBES[name]()


def find_go() -> Path | None:
    return _find("go", beside_python=True)


def find_nomad() -> Path | None:
    """The agent named by CHV_NOMAD, else the one on PATH."""
    named = os.environ.get("CHV_NOMAD")
    return Path(named).absolute() if named else _find("nomad")


def _find(program: str, *, beside_python: bool = False) -> Path | None:
    path = os.environ.get("PATH", os.defpath)
    if beside_python:
        path = f"{path}{os.pathsep}{Path(sys.executable).parent}"
    found = shutil.which(program, path=path)
    return Path(found) if found else None


def _qemu() -> str:
    missing = [program for program in ("qemu-system-x86_64", "qemu-img") if _find(program) is None]
    return f"{' and '.join(missing)} not on PATH" if missing else ""


def _go() -> str:
    return "" if find_go() else "no go on PATH and none beside this Python"


def _nomad() -> str:
    nomad = find_nomad()
    if nomad is None:
        return "no nomad on PATH and CHV_NOMAD is not set"
    return "" if os.access(nomad, os.X_OK) else f"CHV_NOMAD = {nomad}: not an executable file"


def _root() -> str:
    return "" if os.geteuid() == 0 else "not running as root"


def _cgroup() -> str:
    """A cgroup tree in which we may make groups."""
    writable = [path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpuset")) if os.access(path, os.W_OK)]
    return "" if writable else "no writable cgroup tree at /sys/fs/cgroup"


PROBES: dict[str, Callable[[], str]] = {
    "qemu": _qemu,
    "go": _go,
    "nomad": _nomad,
    "root": _root,
    "cgroup": _cgroup,
}
