"""A hold on an image while a machine uses it in place: as many as like may build on it, or one alone may write to it.

It is a lock on one byte far beyond any data, and it belongs to the open file: whoever inherits the descriptor keeps
it, the VMM to its end, and nothing is left to clean up. On NFSv4 the server keeps it, so it holds between hosts too.
"""

import errno
import fcntl
import os
import struct

from vmlib.errors import HostError, NoCapacityError

_AT = int.from_bytes(b"chv\0\0\0\0\0")  # of the byte; QEMU's own locks are at 100 and above
_FLOCK = "hhxxxxqqixxxx"  # struct flock
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def hold_image(fd: int, *, alone: bool, what: str) -> None:
    """Raises NoCapacityError while the image is somebody else's; `what` is `image = 'x.qcow2'`. HostError."""
    kind = fcntl.F_WRLCK if alone else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, _AT, 1, 0))
    except OSError as exc:
        if exc.errno in _TAKEN:
            whose = "in use by another machine" if alone else "another machine writes to it (root_mode = direct)"
            raise NoCapacityError(f"{what}: {whose}") from exc
        if exc.errno not in _NO_LOCKS:
            raise
        if alone:  # to build on it without a hold is what everybody did before there were any
            raise HostError(f"{what}: its filesystem has no locks, which root_mode = direct needs") from exc
