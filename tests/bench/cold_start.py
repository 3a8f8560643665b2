"""From exec of the plugin to its handshake line: an agent waits for that three times before its API opens."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from driver.main import NOMAD
from tests.bench.measure import Line, Settings, in_turns, line


def run(settings: Settings) -> list[Line]:
    plain = {"PATH": os.environ["PATH"]}
    asked = {
        **plain,
        NOMAD.cookie_name: NOMAD.cookie_value,
        "PLUGIN_PROTOCOL_VERSIONS": "2",
        "TMPDIR": str(settings.directory("cold")),
    }
    bare, grpc, ours = in_turns(
        [
            lambda: first_line_s([sys.executable, "-I", "-c", "print()"], plain),
            lambda: first_line_s([sys.executable, "-c", "import grpc.aio; print()"], plain),
            lambda: first_line_s([str(settings.chv)], asked),
        ],
        pairs=2 * settings.pairs,
    )
    return [
        line("cold start", "plugin to its handshake line / bare interpreter to a line", ours=ours, baseline=bare),
        line(
            "cold start, grpc", "plugin to its handshake line / `import grpc.aio` to a line", ours=ours, baseline=grpc
        ),
    ]


def first_line_s(argv: Sequence[str], environment: dict[str, str]) -> float:
    """From starting a program to the first line it says; it is ended then."""
    begin = time.perf_counter()
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        took = time.perf_counter() - begin
        process.terminate()
    if not said:
        raise RuntimeError(f"{argv[0]} said nothing and ended with {process.returncode}")
    return took
