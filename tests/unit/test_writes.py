"""What is kept on disk is written in few places, each of which syncs it; nobody else writes, renames or makes files."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_WRITES = re.compile(
    r"\.write_text\(|\.write_bytes\(|\.rename\(|os\.replace\(|O_CREAT"
    r"|\bopen\([^)]*[\"'][wax]b?\+?[\"']"
)
ALLOWED = {
    "vmlib/files.py": "write_atomic, and locks, which are empty",
    "vmlib/journal.py": "note",
    "vmlib/disk/copy.py": "made_beside",
    "vmlib/disk/persistent.py": "a disk that is removed is renamed first",
    "vmlib/aside.py": "set_aside",
    "vmlib/cage.py": "a root of its own, in memory",
    "vmlib/remote.py": "a file without a name",
    "vmlib/process.py": "means nothing after a reboot",
    "vmlib/launcher.py": "the same; and the kernel's files",
    "vmlib/cores/service.py": "means nothing after a reboot",
    "vmlib/keeper/client.py": "a lock, and the keeper's log",
    "vmlib/keeper/__main__.py": "the kernel's files",
    "vmlib/keeper/fds.py": "the kernel's files",
    "vmlib/cgroup.py": "the kernel's files",
    "vmlib/cpuset.py": "the kernel's files",
    "vmlib/hypervisor/fake_vmm.py": "the kernel's files",
    "vmlib/guest/service.py": "inside the guest",
    "vmlib/guest/agent.py": "inside the guest",
    "vmlib/guest/runs.py": "inside the guest",
}


def test_nobody_else_writes() -> None:
    found = {
        str(path.relative_to(CHECKOUT))
        for top in ("vmlib", "driver")
        for path in (CHECKOUT / top).rglob("*.py")
        if "devhost" not in path.parts and "_pb" not in path.parts and _WRITES.search(path.read_text())
    }
    assert found <= ALLOWED.keys(), found - ALLOWED.keys()
