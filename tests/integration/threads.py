"""A process with threads that stands for a VMM, for tests of where threads run."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# On "more" it starts another thread and says its id; it ends with its standard input.
_PROGRAM = """\
import sys, threading, time
def start():
    thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    thread.start()
    print(thread.native_id, flush=True)
for _ in range(int(sys.argv[1])):
    start()
for line in sys.stdin:
    start()
"""


class Threads:
    """A running process; `vcpus` are the ids of threads that it started, beside its first one."""

    def __init__(self, vcpus: int, groups: Sequence[Path]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(vcpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid
        self.vcpus = tuple(self._next() for _ in range(vcpus))
        for group in groups:
            (group / "cgroup.procs").write_text(str(self.pid))

    def more(self) -> int:
        """Start a further thread."""
        assert self._child.stdin is not None
        print("more", file=self._child.stdin, flush=True)
        return self._next()

    def allowed(self, tid: int) -> str:
        status = Path(f"/proc/{self.pid}/task/{tid}/status").read_text()
        return next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list:"))

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def _next(self) -> int:
        assert self._child.stdout is not None
        return int(self._child.stdout.readline())
