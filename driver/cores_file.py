"""What the driver tells its neighbours (the device plugin, the command line) about this host's cores, in one file."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmlib import files, process
from vmlib.aside import set_aside
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.plan import Host

VERSION = 1


def content(host: Host, *, boot_id: str, mhz: Mapping[int, int]) -> dict[str, Any]:
    """The file as a value. Units are the dedicated ones; `mhz` by CPU."""
    packages = {core.id: (core.package, core.kind) for core in host.topology.cores}
    return {
        "version": VERSION,
        "boot_id": boot_id,
        "dedicated": format_cpus(host.dedicated),
        "usable": format_cpus(host.shared_out),
        "housekeeping": format_cpus(host.policy.housekeeping),
        "smt": host.policy.smt,
        "units": [
            {
                "id": unit.id,
                "cpus": list(unit.cpus),
                "node": unit.node,
                "l3": unit.l3,
                "package": packages[unit.core][0],
                "kind": packages[unit.core][1],
                "mhz": min((mhz.get(cpu, 0) for cpu in unit.cpus), default=0),
            }
            for unit in host.units(host.dedicated)
        ],
    }


def publish(path: Path, host: Host, *, mhz: Mapping[int, int]) -> None:
    """Write the file when it says something else than before. Raises OSError."""
    text = json.dumps(content(host, boot_id=process.boot_id(), mhz=mhz), indent=1) + "\n"
    files.make_directory(path.parent)
    with files.locked(path.with_suffix(".lock")):
        for torn in path.parent.glob(f".{path.name}.*"):  # by somebody who was killed here
            torn.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            before = path.read_bytes()
            if before == text.encode():
                return
            try:
                files.parse_json(before)
            except ValueError as exc:
                set_aside(path, str(exc))
        files.write_atomic(path, text.encode())


def published_mhz(path: Path) -> dict[int, int]:
    """What Nomad counts for the dedicated CPUs, as the driver wrote it; empty where it did not, or does not know."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        units = json.loads(path.read_text())["units"]
        return {int(cpu): int(unit["mhz"]) for unit in units for cpu in unit["cpus"] if unit["mhz"]}
    return {}
