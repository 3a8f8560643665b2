"""What `chv doctor` says of file servers. Pure, on what `vmlib.disk.nfs_probe` has found."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vmlib.spec import NfsExport


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsFacts:
    """This host as a client of file servers."""

    in_kernel: bool
    client_id: str
    host_name: str
    silence: Mapping[str, str]  # by export, "" where the server answers


Line = tuple[str, Literal["ok", "warning", "problem"], str, str]


def nfs_lines(exports: Mapping[str, NfsExport], facts: NfsFacts) -> Iterator[Line]:
    """Check, verdict, text and cure of each."""
    if not exports:
        return
    if not facts.in_kernel:
        yield "nfs", "problem", "this kernel has no NFS version 4", "install a kernel with the module nfsv4"
    for name, export in exports.items():
        what = f"{export.server}:{export.export}{' read-only' if export.read_only else ''}"
        if why := facts.silence[name]:
            yield f"nfs {name}", "problem", f"{what}: {why}", "look at the server, and at firewalls on the way to it"
        else:
            yield f"nfs {name}", "ok", f"{what}: the server answers", ""
    if facts.client_id:
        yield "nfs client", "ok", f"has an identity of its own, {facts.client_id!r}", ""
    else:
        found = (
            f"servers know this host by its name {facts.host_name!r} alone: another one of that name would take its"
            " locks and open disks"
        )
        cure = "in /etc/modprobe.d: options nfs nfs4_unique_id=WORD, with another word on each host"
        yield "nfs client", "warning", found, cure
