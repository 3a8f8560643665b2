"""`make bench`: ratios measured side by side in one run. Names of benchmarks as arguments run only those.

CHV_BENCH_PAIRS (default 5) is how often slow things are measured, CHV_BENCH_MACHINES (default 200) how many machines
a full node has, CHV_BENCH_STATS_MACHINES (default 1000) how many give numbers or are shown by commands.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests import needs
from tests import setup as machine_setup
from tests.bench import (
    cold_start,
    commands,
    disks,
    executor,
    exits,
    full_node,
    guest_agent,
    links,
    measure,
    migrations,
    placement,
    recover,
    start,
    stats,
    submit,
    sweep,
)
from tests.bench.measure import Line, Settings
from tests.guest import build

RESULT = machine_setup.LOCAL / "bench.json"

BENCHMARKS: dict[str, Callable[[Settings], list[Line]]] = {
    "cold-start": cold_start.run,
    "start": start.run,
    "ch-start": start.run_cloud,
    "ch-start-real": start.run_real_cloud,
    "exit": exits.run,
    "recover": recover.run,
    "full-node": full_node.run,
    "stats": stats.run,
    "commands": commands.run,
    "memory": executor.run,
    "exec": guest_agent.run_exec,
    "agent-throughput": guest_agent.run_throughput,
    "submit": submit.run,
    "root-disk": disks.run,
    "reflink": disks.run_reflink,
    "starts": disks.run_starts,
    "seed": disks.run_seed,
    "links": links.run,
    "sweep": sweep.run,
    "placement": placement.run,
    "migrations": migrations.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description="ratios against a baseline, never bare times")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}: expected some of {', '.join(BENCHMARKS)}")
    if reason := needs.lacking("root") or needs.lacking("qemu"):
        print(f"make bench: {reason}: machines need root and QEMU", file=sys.stderr)
        return 1
    base = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
    settings = Settings(
        pairs=int(os.environ.get("CHV_BENCH_PAIRS", "5")),
        machines=int(os.environ.get("CHV_BENCH_MACHINES", "200")),
        stats_machines=int(os.environ.get("CHV_BENCH_STATS_MACHINES", "1000")),
        chv=machine_setup.LOCAL / "plugins/chv",
        guest_dir=build.ensure(machine_setup.cache_dir()).directory,
        base=base,
    )
    lines: list[Line] = []
    left_out: dict[str, str] = {}
    try:
        for name in names:
            measure.say(name)
            try:
                lines += BENCHMARKS[name](settings)
            except measure.LeftOutError as exc:
                left_out[name] = str(exc)
    finally:
        shutil.rmtree(base, ignore_errors=True)
        # Also when one raises: the others took their time.
        print(measure.table(lines))
        for name, why in left_out.items():
            print(f"{name}: left out, {why}")
        measure.write_json(RESULT, lines, left_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
