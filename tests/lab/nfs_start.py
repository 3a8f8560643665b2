"""Starts a machine whose image lies on a server, in a process that a test lets die.

Run as `python -m tests.lab.nfs_start DIRECTORY EXPORTED`.
"""

import sys
from pathlib import Path

from tests.integration.machines import Host
from tests.lab.nfs_server import NfsServer
from vmlib.spec import RootDisk

TASK = "killed"


def main() -> None:
    host = Host(Path(sys.argv[1]), Path("/nowhere"), "qemu")
    root = RootDisk(image=NfsServer(Path(sys.argv[2])).file("disk.qcow2"), format="qcow2")
    host.machines.start(host.spec(task=TASK, boot=None, root=root))


if __name__ == "__main__":
    main()
