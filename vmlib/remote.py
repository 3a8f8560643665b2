"""Files on an operator's file server as jobs name them: `vmlib.far` in the words of a start that may be tried again."""

import base64
import errno
import os
from dataclasses import dataclass
from typing import Literal

from vmlib import far, files
from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.hold import hold_image
from vmlib.spec import FileRef

HEAD_BYTES = 64 * 1024
_OPEN_S = 10.0
_SILENT_S = 30.0  # without a byte of a copy

# What a server, or the way to it, says when another try may go better.
_PASSING = {
    errno.EIO,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EREMOTEIO,
    errno.EPIPE,
}
Hold = Literal["", "shared", "alone"]  # as `vmlib.hold` has it

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A regular file that a job named, open for a VMM, and all that we want to know of it.

    Nothing is to be done with the descriptor of a `remote` one but to pass it on and to `close` it.
    """

    fd: int
    mode: int
    inode: int
    size_bytes: int
    mtime_ns: int
    head: bytes  # its first HEAD_BYTES
    remote: bool

    def close(self) -> None:
        if self.remote:
            far.close(self.fd)
        else:
            os.close(self.fd)

    def resize(self, size_bytes: int, ref: FileRef, *, key: str) -> None:
        """Give it another size. Raises NoCapacityError, OSError."""
        if not self.remote:
            os.ftruncate(self.fd, size_bytes)
            return
        try:
            far.call("resize", {"size": size_bytes}, timeout_s=_OPEN_S, fds=[self.fd])
        except (far.FarError, far.SilentError) as exc:
            raise in_words(exc, ref, key=key) from exc


def open_source(ref: FileRef, *, key: str, write: bool = False, hold: Hold = "") -> Source:
    """Open a file where it lies, with a hold on it that belongs to the descriptor; the caller closes it.

    Raises SpecError, NoCapacityError when its server is silent or the file is somebody else's, HostError.
    """
    if ref.nfs is None:
        fd = files.open_ref(ref, key=key, writable=write)
        try:
            if hold:
                hold_image(fd, alone=hold == "alone", what=f"{key} = {str(ref)!r}")
            return local_source(fd)
        except BaseException:
            os.close(fd)
            raise
    details = {"root": str(ref.root), "relative": ref.relative, "write": write, "hold": hold, "head_bytes": HEAD_BYTES}
    try:
        answer, (fd,) = far.call("open", details, timeout_s=_OPEN_S)
    except (far.FarError, far.SilentError) as exc:
        raise in_words(exc, ref, key=key, writable=write) from exc
    status = answer["status"]
    return Source(
        fd=fd,
        mode=status["st_mode"],
        inode=status["st_ino"],
        size_bytes=status["st_size"],
        mtime_ns=status["st_mtime_ns"],
        head=base64.b64decode(answer["head"]),
        remote=True,
    )


def local_source(fd: int) -> Source:
    """The same of a descriptor of a file on this host, whose closing it takes over."""
    status = os.fstat(fd)
    return Source(
        fd=fd,
        mode=status.st_mode,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        head=os.pread(fd, HEAD_BYTES, 0),
        remote=False,
    )


def fetch(ref: FileRef, *, key: str, max_bytes: int) -> int:
    """Copy a file from its server into one without a name beside the machine's mounts; the caller owns the descriptor.

    Raises SpecError, NoCapacityError.
    """
    path = ref.root.parent / f".fetched-{os.urandom(4).hex()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()
        details = {"root": str(ref.root), "relative": ref.relative, "max_bytes": max_bytes}
        far.call("fetch", details, timeout_s=_SILENT_S, fds=[fd])
    except (far.FarError, far.SilentError) as exc:
        os.close(fd)
        raise in_words(exc, ref, key=key, max_bytes=max_bytes) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


def in_words(
    exc: far.FarError | far.SilentError, ref: FileRef, *, key: str, writable: bool = False, max_bytes: int = 0
) -> VmError:
    """What went wrong with a file, for the one who can act on it."""
    assert ref.nfs is not None
    what, server = f"{key} = {str(ref)!r}", ref.nfs.server
    if isinstance(exc, far.SilentError):
        return NoCapacityError(f"{what}: {server} did not answer within {exc.after_s:g} s")
    match exc.step:
        case "kind":
            return SpecError(f"{what}: {exc}")
        case "held":
            return NoCapacityError(f"{what}: {exc}")
        case "locks":
            return HostError(f"{what}: {exc}")
        case "size":
            return SpecError(f"{what}: {exc} bytes, expected at most {max_bytes}")
        case "write" if exc.code in _FULL:
            return NoCapacityError(f"{what}: no space left on the host")
    if exc.code in _PASSING or exc.step == "child":
        return NoCapacityError(f"{what}: {exc} ({server})")
    error = files.refused(ref, exc.code, str(exc), key=key, writable=writable)
    if exc.code in (errno.EACCES, errno.EPERM):
        error.hint = "this host reads it as root, which a server takes for nobody unless it exports with no_root_squash"
    return error


def is_passing(code: int) -> bool:
    """True for an errno that says nothing against another try."""
    return code in _PASSING
