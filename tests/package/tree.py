"""What packages with their dependencies inside are made of: a tree of our code and the very packages that were tested.

Those are copied from the environment of this checkout: a build needs no network, and ships nothing that the tests
have not seen. They are for one Python only: the one that runs this.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MANYLINUX = re.compile(r"manylinux_2_(\d+)_")
_OLD_MANYLINUX = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
# For type checkers and compilers alone.
_LEFT_OUT = (".pyi", ".pyx", ".pxd", ".c", ".h")


def build_wheel(into: Path, work: Path) -> Path:
    """The wheel of this checkout. `work` is a directory that does not exist yet."""
    work.mkdir()
    # A copy, because a build writes into its source tree.
    for name in ("driver", "vmlib"):
        shutil.copytree(CHECKOUT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(CHECKOUT / name, work / name)
    set_modes(work)  # they come along in the archive
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *options, f"--wheel-dir={into}", str(work))
    (wheel,) = into.glob("chv-*.whl")
    return wheel


def make_tree(wheel: Path, into: Path) -> int:
    """Fill `into` with what is in the wheel and all that it needs. Returns the minor version of the glibc for that."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    glibc = 0
    for one in dependencies():
        glibc = max(glibc, _glibc(one))
        for file in one.files or ():
            if ".." in file.parts or "__pycache__" in file.parts or file.suffix in _LEFT_OUT:
                continue
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)
    set_modes(into)
    return glibc


def compile_tree(top: Path, shown_as: str) -> None:
    """Compile all modules beneath `top`, as root's Python would do at run time, and nobody would take away again.

    Checked by nobody against its source, and the same bytes each time: by a fresh interpreter, without other workers.
    """
    how = ("--invalidation-mode", "unchecked-hash", "-q", "-j1", "-s", str(top), "-p", shown_as)
    run(sys.executable, "-S", "-m", "compileall", *how, str(top), PYTHONHASHSEED="0")


def dependencies() -> list[Distribution]:
    """What the project needs at run time, and what that needs, as it is installed here."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    found: dict[str, Distribution] = {}

    def add(requirement: Requirement) -> None:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return
        one = distribution(requirement.name)
        if one.name not in found:
            found[one.name] = one
            for text in one.requires or ():
                add(Requirement(text))

    for text in project["dependencies"]:
        add(Requirement(text))
    return [found[name] for name in sorted(found)]


def set_modes(top: Path) -> None:
    """The same whatever the umask of whoever cloned: 755 for directories and what has an execute bit, else 644."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _glibc(one: Distribution) -> int:
    """The least that one of the tags asks for: a wheel has several, for old and new names of one thing."""
    return min(_glibcs(one.read_text("WHEEL") or ""), default=0)


def _glibcs(text: str) -> Iterator[int]:
    for line in text.splitlines():
        if line.startswith("Tag:"):
            yield from (int(found) for found in _MANYLINUX.findall(line))
            yield from (minor for name, minor in _OLD_MANYLINUX.items() if f"-{name}_" in line)


def run(*command: str, **environment: str) -> str:
    """What the command prints. Ends the build with its words when it fails."""
    env = {**os.environ, **environment}
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"package: {' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
