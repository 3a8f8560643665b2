"""What can be known of file servers and of this host as their client without a mount, and without waiting for long."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Collection
from pathlib import Path

from vmlib.disk import nfs_options
from vmlib.spec import NfsExport

_ANSWER_S = 5.0


def silence(exports: Collection[NfsExport], *, timeout_s: float = _ANSWER_S) -> dict[str, str]:
    """By the export's name why its server cannot be reached, "" when it can be. All are asked at once, by TCP."""
    found: dict[str, str] = {}
    # Threads that nobody waits for at the end: a name may take minutes to be resolved.
    threads = [threading.Thread(target=_ask, args=(one, timeout_s, found), daemon=True) for one in exports]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {one.name: found.get(one.name, f"no answer within {timeout_s:g} s") for one in exports}


def _ask(export: NfsExport, timeout_s: float, found: dict[str, str]) -> None:
    try:
        with socket.create_connection((export.server, nfs_options.port(export.options)), timeout=timeout_s):
            found[export.name] = ""
    except TimeoutError:
        found[export.name] = f"no answer within {timeout_s:g} s"
    except OSError as exc:
        found[export.name] = (exc.strerror or str(exc)).lower()


def client_id(root: Path = Path("/")) -> str:
    """What tells this host from others of its name to a file server; "" when nothing does.

    A server takes two clients that call themselves the same for one that was rebooted: it gives the second one the
    locks and open files of the first.
    """
    for name in ("sys/fs/nfs/net/nfs_client/identifier", "sys/module/nfs/parameters/nfs4_unique_id"):
        with contextlib.suppress(OSError):
            if (found := (root / name).read_text().strip()) not in ("", "(null)"):
                return found
    return ""


def kernel_has_nfs(root: Path = Path("/")) -> bool:
    """Whether the kernel has NFS version 4 built in, loaded, or as a module that it can load."""
    with contextlib.suppress(OSError):
        if "nfs4" in (root / "proc/filesystems").read_text().split():
            return True
    with contextlib.suppress(OSError):
        modules = root / "lib/modules" / os.uname().release
        return any("/nfsv4.ko" in (modules / name).read_text() for name in ("modules.dep", "modules.builtin"))
    return False
