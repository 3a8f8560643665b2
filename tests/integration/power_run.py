"""What is recorded for tests of a power loss: a machine starts, ends, starts again and is removed, in its own process.

Run as `python -m tests.integration.power_run DIRECTORY GUEST_DIRECTORY`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from tests.integration.machines import DATA, Host, root_of
from vmlib.keeper.client import reap
from vmlib.spec import CoresSpec, MachineSpec, SeedSpec


def spec_of(host: Host, *, start: int, task: str = "web", words: str = "tick") -> MachineSpec:
    """Everything that a machine keeps: a core, a persistent disk, an overlay, a seed and boot files."""
    spec = host.spec(
        words,
        task=task,
        cores=CoresSpec(exclusive=True),
        disks=(DATA,),
        seed=SeedSpec(instance_id="i", hostname="h"),
        root=root_of(host.guest, "disk.qcow2"),
    )
    return replace(spec, id=f"{host.directory.name}/{task}/{start}")


def main() -> None:
    host = Host(Path(sys.argv[1]), Path(sys.argv[2]), "fake")
    first = host.machines.start(spec_of(host, start=1))
    first.stop(10.0)
    first.destroy()
    second = host.machines.start(spec_of(host, start=2))
    second.kill()
    second.wait(10.0)
    host.machines.remove(second.record.name)
    reap()


if __name__ == "__main__":
    main()
