"""What the agent tells of its guest. Runs inside guests as old as Python 3.6; reads /proc and asks the kernel."""

import json
import os
import socket
import struct
from typing import Any, Dict, Iterator, List

HOOKS = "/etc/chv/signals"  # NAME.d/ holds the executables for that signal
HOOKED_SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2")

_CLOUD_INIT_DONE = "/run/cloud-init/result.json"
_RTM_GETADDR, _NLM_DUMP, _NLMSG_DONE, _NLMSG_ERROR, _RTM_NEWADDR = 22, 0x301, 3, 2, 20
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SCOPE_GLOBAL, _TENTATIVE = 0, 0x40
_MOST = 64  # addresses or shares: all that is told has to fit into one frame


def quick_facts() -> Dict[str, Any]:
    """What a change of is told at once."""
    return {"addresses": addresses(), "signals": hooked_signals(), "shares": shares()}


def numbers() -> Dict[str, Any]:
    """What changes all the time."""
    memory = {}
    for line in _lines("/proc/meminfo"):
        words = line.split()
        if words[0] in ("MemTotal:", "MemAvailable:"):
            memory["total_bytes" if words[0] == "MemTotal:" else "available_bytes"] = int(words[1]) * 1024
    return {"load": list(os.getloadavg()), "memory": memory, "uptime_s": uptime_s()}


def uptime_s() -> float:
    """Seconds since the guest's kernel began."""
    return float(next(_lines("/proc/uptime"), "0").split()[0])


def boot_id() -> str:
    return next(_lines("/proc/sys/kernel/random/boot_id"), "").strip()


def hooked_signals() -> List[str]:
    """The signals for which somebody has put an executable into their directory."""
    return [name for name in HOOKED_SIGNALS if any(hooks(name))]


def hooks(name: str) -> Iterator[str]:
    """What runs at a signal, in the order of names."""
    folder = os.path.join(HOOKS, name + ".d")
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for one in names:
        path = os.path.join(folder, one)
        if not one.startswith(".") and os.path.isfile(path) and os.access(path, os.X_OK):
            yield path


def shares() -> Dict[str, str]:
    """The directories that the host shares: "" = mounted, else why not; without those that may still be mounted."""
    wanted = [words[1] for words in map(str.split, _lines("/etc/fstab")) if len(words) > 2 and words[2] == "virtiofs"]
    wanted = [path for path in wanted if len(json.dumps(path)) < 256][:_MOST]
    if not wanted:
        return {}
    mounted = [words[1] for words in map(str.split, _lines("/proc/mounts")) if words[2] == "virtiofs"]
    found = {path: "" for path in wanted if path in mounted}
    if os.path.exists(_CLOUD_INIT_DONE):  # before that it may be on its way to them
        known = any("virtiofs" in line for line in _lines("/proc/filesystems"))
        why = "the mount failed" if known else "the guest's kernel has no virtiofs"
        found.update({path: why for path in wanted if path not in mounted})
    return found


def addresses() -> List[str]:
    """The guest's global addresses, those of IPv4 first; [] when the kernel does not tell."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    except OSError:
        return []
    found: List[str] = []
    try:
        sock.settimeout(1.0)
        sock.send(struct.pack("=IHHIIBxxxI", 24, _RTM_GETADDR, _NLM_DUMP, 1, 0, socket.AF_UNSPEC, 0))
        while True:
            data = sock.recv(1 << 16)
            while len(data) >= 16:
                size, kind = struct.unpack_from("=IH", data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or size < 16:
                    v4 = [one for one in found if ":" not in one]
                    return (v4 + [one for one in found if ":" in one])[:_MOST]
                if kind == _RTM_NEWADDR:
                    found.extend(_address(data[16:size]))
                data = data[(size + 3) & ~3 :]
    except (OSError, struct.error):
        return []
    finally:
        sock.close()


def _address(message: bytes) -> Iterator[str]:
    """The address of one RTM_NEWADDR, if it is one that others can use."""
    family, _, flags, scope = struct.unpack_from("=BBBB", message)
    if scope != _SCOPE_GLOBAL or flags & _TENTATIVE or family not in (socket.AF_INET, socket.AF_INET6):
        return
    at, by_kind = 8, {}
    while at + 4 <= len(message):
        size, kind = struct.unpack_from("=HH", message, at)
        if size < 4:
            break
        by_kind[kind] = message[at + 4 : at + size]
        at += (size + 3) & ~3
    raw = by_kind.get(_IFA_LOCAL) or by_kind.get(_IFA_ADDRESS)
    if raw:
        yield socket.inet_ntop(family, raw)


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.strip():
                    yield line
    except OSError:
        return
