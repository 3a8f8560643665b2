"""A VMM that its guest has taken over: a program that is confined exactly as a machine's VMM, and tries one thing after
the other.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.integration.machines import Running
from vmlib.keeper.plan import KeeperPlan
from vmlib.keeper.spawn import launch, vmm_spec

# Runs as `python -I -S -c`, without a line of ours to import.
_PROGRAM = r"""
import ctypes, errno, json, os, signal, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
wishes = json.loads(sys.argv[1])
done = {}

def attempt(name, act):
    try:
        done[name] = act() or "done"
    except OSError as exc:
        done[name] = errno.errorcode[exc.errno]

def called(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "")

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(path):
    os.close(os.open(path, os.O_WRONLY))

def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        sock.connect(address)

for path in wishes["paths"]:
    attempt(f"read {path}", lambda: read(path))
    attempt(f"write {path}", lambda: write(path))
for path in wishes["sockets"]:
    attempt(f"connect {path}", lambda: connect(socket.AF_UNIX, path))
attempt("abstract socket", lambda: connect(socket.AF_UNIX, "\0" + wishes["abstract"]))
attempt("loopback", lambda: connect(socket.AF_INET, ("127.0.0.1", wishes["port"])))
attempt("datagram", lambda: connect(socket.AF_INET, ("127.0.0.1", wishes["port"]), socket.SOCK_DGRAM))
pid = wishes["pid"]
attempt("memory", lambda: read(f"/proc/{pid}/mem"))
attempt("ptrace", lambda: called(101, 16, pid, 0, 0))
attempt("process_vm_readv", lambda: called(310, pid, None, 0, None, 0, 0))
attempt("pidfd_getfd", lambda: called(438, os.pidfd_open(pid), 0, 0))
attempt("prlimit", lambda: called(302, pid, 7, None, None))
attempt("affinity", lambda: os.sched_setaffinity(pid, {0}))
attempt("signal", lambda: os.kill(pid, signal.SIGCONT))
attempt("user namespace", lambda: called(272, 0x10000000))
attempt("clone into one", lambda: called(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: called(435, None, 0))
attempt("mount", lambda: called(165, b"none", b"/proc", b"tmpfs", 0, None))
attempt("bpf", lambda: called(321, 0, None, 0))
attempt("keyring", lambda: called(250, 0, -3, 0, 0, 0))
attempt("perf", lambda: called(298, None, 0, -1, -1, 0))
attempt("make a file", lambda: os.close(os.open("/intruder", os.O_CREAT | os.O_WRONLY)))
attempt("make a device", lambda: os.mknod("/dev/pts/intruder", 0o020600, os.makedev(1, 1)))
done["root"] = sorted(os.listdir("/"))
done["proc"] = sorted(os.listdir("/proc"))
done["securebits"] = libc.prctl(27, 0, 0, 0, 0)
print(json.dumps(done))
"""


def attempts(
    one: Running,
    *,
    pid: int,
    port: int,
    abstract: str,
    paths: Sequence[Path] = (),
    sockets: Sequence[Path] = (),
) -> dict[str, Any]:
    """What became of each attempt on the given things, which are somebody else's: "done", or the name of an errno."""
    plan = KeeperPlan.load(one.machine.run.plan.read_bytes())
    wishes = {
        "paths": [str(path) for path in paths],
        "sockets": [str(path) for path in sockets],
        "pid": pid,
        "port": port,
        "abstract": abstract,
    }
    place = one.host.directory / "intruder"
    place.mkdir(exist_ok=True)
    argv = ["/usr/bin/python3", "-I", "-S", "-c", _PROGRAM, json.dumps(wishes)]
    spec = vmm_spec(replace(plan, argv=argv), {}) | {"identity": str(place / "identity")}
    said = place / "said"
    with said.open("wb") as out, open(os.devnull, "rb") as nothing:
        child = launch(spec, "vmm", [nothing.fileno(), out.fileno(), sys.stderr.fileno()], [])
        assert child.wait(30) == 0
    answers = json.loads(said.read_text())
    assert isinstance(answers, dict)
    return answers
