"""`make package`: a wheel, a one-file executable and a Debian package into dist/.

SOURCE_DATE_EPOCH, or the time of the last commit, is the time in all archives: one commit gives the same bytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from driver import __version__
from tests.package.deb import build_deb
from tests.package.onefile import build_onefile
from tests.package.tree import CHECKOUT, PYTHON, build_wheel, make_tree, run

_ZIP_BEGINS = 315532800  # 1980: nothing older can stand in a wheel


def build(into: Path) -> list[Path]:
    """Build all that can be built here; without dpkg-deb there is no Debian package. Returns what was made."""
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(_last_commit()))
    into.mkdir(parents=True, exist_ok=True)
    old = os.umask(0o022)  # modes come along in archives
    try:
        return _build(into)
    finally:
        os.umask(old)


def _build(into: Path) -> list[Path]:
    made = [into / f"chv-{__version__}-py{PYTHON.replace('.', '')}", into / f"chv_{__version__}_{_architecture()}.deb"]
    with tempfile.TemporaryDirectory(prefix="chv-package-") as name:
        work = Path(name)
        _say("wheel")
        wheel = build_wheel(work, work / "source")
        made.insert(0, Path(shutil.copy(wheel, into)))
        glibc = make_tree(wheel, work / "site")
        _say(f"one file, for Python {PYTHON}")
        build_onefile(work / "site", made[1])
        if shutil.which("dpkg-deb") is None:
            _say("no dpkg-deb here, so no Debian package")
            return made[:2]
        _say("Debian package")
        build_deb(work / "site", glibc, made[2], work / "deb")
    return made


def _architecture() -> str:
    return run("dpkg", "--print-architecture").strip() if shutil.which("dpkg") else "amd64"


def _last_commit() -> int:
    command = ("git", "-C", str(CHECKOUT), "log", "-1", "--format=%ct")
    try:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return _ZIP_BEGINS  # not a clone


def _say(text: str) -> None:
    print(f"package: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="build what is handed to operators")
    parser.add_argument("into", nargs="?", type=Path, default=CHECKOUT / "dist")
    for path in build(parser.parse_args().into.absolute()):
        print(path)


if __name__ == "__main__":
    main()
