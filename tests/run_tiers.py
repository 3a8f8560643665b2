"""`make test`: the tiers that are made of many small waits on all CPUs, then those that want the machine alone.

With a path among the arguments only that is tested, in one process.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SIDE_BY_SIDE = ("unit", "integration", "conformance")
ALONE = ("nomad", "lab")  # a node that is emulated, with agents that count seconds
_NO_TESTS = 5  # pytest's exit code when -k leaves none


def main(arguments: list[str]) -> int:
    if any(Path(one.partition("::")[0]).exists() for one in arguments):
        return _pytest(*arguments, "--junitxml=.cache/junit.xml")
    workers = len(os.sched_getaffinity(0))
    codes = [
        _pytest(
            *(f"tests/{tier}" for tier in SIDE_BY_SIDE),
            *(f"--numprocesses={workers}", "--dist=worksteal", "--junitxml=.cache/junit.xml", *arguments),
        ),
        _pytest(*(f"tests/{tier}" for tier in ALONE), "--junitxml=.cache/junit-alone.xml", *arguments),
    ]
    failed = [code for code in codes if code not in (0, _NO_TESTS)]
    return failed[0] if failed else min(codes)


def _pytest(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=TESTS.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
