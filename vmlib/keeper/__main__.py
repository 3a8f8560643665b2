"""Run by path, as `python -I -S …/vmlib/keeper/__main__.py start|adopt LOCK_FD`, with the lease on standard input."""

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

# Isolated mode knows no site-packages; the library is found from where this file lies.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from vmlib.keeper.keeper import Keeper, SpawnError
from vmlib.keeper.plan import KeeperPlan
from vmlib.lines import LineBuffer

_OOM_SCORE_ADJ = "-900"  # the VMM sets its own back to 0


def main() -> int:
    """The lease says the plan in its first line; its end before `commit` ends the machine."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    lease = socket.socket(fileno=os.dup(0))
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Ours as long as we live, and nobody's who is started by us.
    os.set_inheritable(int(sys.argv[2]), False)
    os.umask(0o077)
    with contextlib.suppress(PermissionError):  # not root: the kernel decides
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    plan = _read_plan(lease)
    if plan is None:
        return 1
    try:
        keeper = Keeper(plan, lease)
        if sys.argv[1] == "adopt":
            adopted = keeper.adopt()
            _say(lease, {"adopted": adopted})
            if not adopted:
                return 0
        else:
            vmm = keeper.start()
            _say(lease, {"spawned": {"pid": vmm.pid, "start_time": vmm.start_time}})
    except SpawnError as exc:
        _say(lease, {"failed": str(exc)})
        return 1
    except OSError as exc:
        _say(lease, {"failed": f"{exc.filename or 'keeper'}: {(exc.strerror or str(exc)).lower()}"})
        return 1
    keeper.run()
    return 0


def _read_plan(lease: socket.socket) -> KeeperPlan | None:
    lines = LineBuffer(1 << 22)
    while data := lease.recv(1 << 16):
        for line in lines.feed(data):
            return KeeperPlan.load(line)
    return None


def _say(lease: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # whoever started us is gone; the loop sees that too
        lease.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
