"""`make test`: the tiers that are made of many small waits on all CPUs, then those that count seconds.

With a path among the arguments only that is tested, in one process.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab.rounds import ROUNDS

CHECKOUT = Path(__file__).parent.parent
SIDE_BY_SIDE = ("unit", "integration", "conformance")
_LAB = "tests/lab/test_round.py"
_NO_TESTS = 5  # pytest's exit code when -k leaves none


def main(arguments: list[str]) -> int:
    if any(Path(one.partition("::")[0]).exists() for one in arguments):
        return _pytest("", *arguments)
    cpus = len(os.sched_getaffinity(0))
    workers = cpus + cpus // 2  # a test waits for a third of its time
    codes = [
        _pytest(
            "", *(f"tests/{tier}" for tier in SIDE_BY_SIDE), f"--numprocesses={workers}", "--dist=worksteal", *arguments
        ),
        *_both(arguments),
    ]
    failed = [code for code in codes if code not in (0, _NO_TESTS)]
    return failed[0] if failed else min(codes)


def _both(arguments: list[str]) -> Iterator[int]:
    """The agents' tests, whose words come as they are said; beside them and after, one boot of the node after another.

    They share nothing but CPUs, of which real agents leave half idle. Two nodes at once take longer than one by one.
    """
    print(f"tests/lab runs beside tests/nomad; its output follows, and is in {_log('*')} until then", flush=True)
    runs = {"faults": f"{_LAB}::test_a_node_that_the_emulator_resets_is_told_from_one_that_ends_too_soon"}
    runs |= {name: f"{_LAB}::test_what_only_the_node_can_show[{name}]" for name in ROUNDS}
    with ThreadPoolExecutor(1) as node:
        try:
            boots = {name: node.submit(_told_later, name, test, arguments) for name, test in runs.items()}
            yield _pytest("-nomad", "tests/nomad", *arguments)
            for name, boot in boots.items():
                code = boot.result()
                print(_log(name).read_text(errors="replace"), end="", flush=True)
                yield code
        except BaseException:  # what runs has had the terminal's signal as well
            node.shutdown(wait=False, cancel_futures=True)
            raise


def _told_later(name: str, test: str, arguments: list[str]) -> int:
    with _log(name).open("wb") as out:
        return _pytest(f"-lab-{name}", test, *arguments, out=out.fileno())


def _log(name: str) -> Path:
    return CHECKOUT / f".cache/lab-{name}.log"


def _pytest(suffix: str, *arguments: str, out: int | None = None) -> int:
    argv = [sys.executable, "-m", "pytest", f"--junitxml=.cache/junit{suffix}.xml", *arguments]
    return subprocess.run(argv, cwd=CHECKOUT, stdout=out, stderr=out and subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
