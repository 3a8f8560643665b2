"""A real NFS server in the node itself, on loopback; a firewall rule cuts it off and heals it."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.spec import FileRef, NfsExport

ADDRESS = "127.0.0.1"
_CUT = (
    "table inet chv_test { chain i { type filter hook input priority 0; tcp dport 2049 drop; tcp sport 2049 drop; }; }"
)
_LEASE_S = 10  # the default of 90 s makes tests of locks long


@dataclass(slots=True)
class NfsServer:
    """What it exports lies in `directory`."""

    directory: Path
    is_cut: bool = False
    exports: dict[str, Path] = field(default_factory=dict)

    def export(self, name: str = "vms", *, options: tuple[str, ...] = (), read_only: bool = False) -> NfsExport:
        """The operator's words for it."""
        return NfsExport(name=name, server=ADDRESS, export=str(self.directory), options=options, read_only=read_only)

    def file(self, relative: str, *, read_only: bool = False) -> FileRef:
        return FileRef(root=Path("/"), relative=relative, nfs=self.export(read_only=read_only))

    def cut(self) -> None:
        """From now on every packet to or from it is lost."""
        _run("nft", _CUT)
        self.is_cut = True

    def heal(self) -> None:
        if self.is_cut:
            _run("nft", "delete table inet chv_test")
            self.is_cut = False


def mounts(beneath: Path) -> list[str]:
    """Lines of mountinfo, of NFS mounts beneath a directory."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(f"{beneath}/") and " - nfs" in line]


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[NfsServer]:
    """Serve `directory` to this node until the block ends."""
    _run("modprobe", "-a", "nfsd", "nfsv4", "nf_tables")
    for path, kind in (("/proc/fs/nfsd", "nfsd"), ("/var/lib/nfs/rpc_pipefs", "rpc_pipefs")):
        Path(path).mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", kind, kind, path)
    for name in ("lease", "grace"):
        Path(f"/proc/fs/nfsd/nfsv4{name}time").write_text(str(_LEASE_S))
    directory.mkdir(parents=True)
    # A file system of its own, of which there is nothing to be seen but by way of the server.
    _run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    _run("exportfs", "-i", "-o", "rw,sync,fsid=1,no_root_squash,no_subtree_check,insecure", f"127.0.0.0/8:{directory}")
    _run("rpc.nfsd", "-N", "3", "8")
    mountd = subprocess.Popen(["rpc.mountd", "--foreground", "-N", "3"], stdin=subprocess.DEVNULL)
    server = NfsServer(directory)
    try:
        yield server
    finally:
        server.heal()
        _run("exportfs", "-ua")
        _run("rpc.nfsd", "0")
        mountd.send_signal(signal.SIGTERM)
        mountd.wait(20)
        for path in (str(directory), "/proc/fs/nfsd", "/var/lib/nfs/rpc_pipefs"):
            _run("umount", path)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
