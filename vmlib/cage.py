"""What a VMM or a helper sees of the host: a root of its own with what it is shown, and nothing else.

There are the system's programs and libraries, to be read; a few device nodes; of /proc only itself; and directories
that it was given, under the names that they have on the host. Everything else that the host has mounted is not hidden
but gone, so that nothing of it is held. Standard library only.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from vmlib import mounts

# Where distributions keep programs, libraries and what these read. /etc has secrets, so of that a few names only.
_SYSTEM = ("/usr", "/nix/store", "/gnu/store")
_SYSTEM_OR_LINK = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SETTINGS = (
    "/etc/alternatives",
    "/etc/crypto-policies",
    "/etc/gnutls",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/ssl/openssl.cnf",
)
_NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_BESIDE_PROGRAMS = ("lib", "lib64", "libexec", "share")
_RESOLVERS = "/etc/resolv.conf"
# Covered by the new root while that is being made: there is such a directory everywhere, and nothing else is needed.
_BUILT_AT = "/dev"


def enter(cage: Mapping[str, Any], fds: Mapping[str, int], program: str) -> None:
    """Make the cage and enter it for good; `program` is the real path of what will be executed there.

    Each open directory among `fds` becomes one of the cage: the way up from it ends at the cage's root.
    Raises OSError. Needs root, and Linux 5.2.
    """
    shown = {path: _shown(path, below=path != "/sys") for path in _paths(cage, program) if os.path.exists(path)}
    nodes = {path: mounts.clone_tree(path) for path in (*_NODES, *cage["nodes"]) if os.path.exists(path)}
    itself = mounts.clone_tree("/proc/self", below=False)
    directories = {}
    for fd in fds.values():
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            path = os.readlink(f"/proc/self/fd/{fd}")
            directories[fd] = path, mounts.clone_tree(path, fd=fd)
    links = {path: os.readlink(path) for path in _SYSTEM_OR_LINK if os.path.islink(path)}
    links |= {path: os.path.realpath(path) for path in cage["shows"] if os.path.islink(path)}

    own_network = mounts.CLONE_NEWNET if cage["own_network"] else 0
    mounts.leave_for_own(mounts.CLONE_NEWNS | mounts.CLONE_NEWIPC | mounts.CLONE_NEWUTS | own_network)
    no_programs = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    mounts.mount("chv", _BUILT_AT, "tmpfs", no_programs, "mode=755,size=1m")
    os.chdir(_BUILT_AT)
    mask = os.umask(0o022)
    for path, tree in shown.items():
        _attach(tree, path)
    for path in cage["hides"]:
        if os.path.isdir(f".{path}"):
            mounts.mount("chv", f".{path}", "tmpfs", no_programs, "mode=755,size=1m")
    for path, tree in nodes.items():
        _attach(tree, path)
    _attach(itself, "/proc/self")
    if cage["terminals"]:
        _make_terminals()
    for path, tree in directories.values():
        _attach(tree, path)
    for path, target in links.items():
        _make_place(path, directory=True, itself=False)
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f".{path}")
    os.umask(mask)
    mounts.make_root()
    mounts.mount("chv", "/", None, mounts.MS_REMOUNT | mounts.MS_RDONLY | no_programs)
    mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_SLAVE)
    for fd, (path, _) in directories.items():
        within = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.dup2(within, fd, inheritable=False)
        os.close(within)


def program_path(name: str, search: str) -> str:
    """The file that a program's name leads to, links followed. Raises FileNotFoundError, PermissionError."""
    places = [name] if "/" in name else [os.path.join(place, name) for place in search.split(":")]
    found = [place for place in places if os.path.isfile(place)]
    for place in found:
        if os.access(place, os.X_OK):
            return os.path.realpath(place)
    code = errno.EACCES if found else errno.ENOENT
    raise OSError(code, os.strerror(code), name)


def _paths(cage: Mapping[str, Any], program: str) -> list[str]:
    """What is shown, outer directories first."""
    real_ones = (path for path in _SYSTEM_OR_LINK if not os.path.islink(path))
    wanted = {*_SYSTEM, *_SETTINGS, *real_ones, *_of_program(program)}
    for path in cage["shows"]:
        # What changes is replaced, in its directory: a name server's address in particular.
        target = os.path.realpath(path)
        wanted.add(os.path.dirname(target) if path == _RESOLVERS else target)
    return sorted(wanted)


def _of_program(program: str) -> Iterator[str]:
    """What a program needs that an operator keeps elsewhere: its directory, and what lies beside a bin."""
    directory = os.path.dirname(program)
    if any(directory == path or directory.startswith(f"{path}/") for path in (*_SYSTEM, *_SYSTEM_OR_LINK)):
        return
    yield program if directory == "/" else directory
    prefix, name = os.path.split(directory)
    if name in ("bin", "sbin", "libexec"):
        yield from (found for word in _BESIDE_PROGRAMS if os.path.isdir(found := os.path.join(prefix, word)))


def _shown(path: str, *, below: bool) -> int:
    tree = mounts.clone_tree(path, below=below)
    try:
        mounts.set_attributes(tree, mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV, path)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:  # before Linux 5.12 the files' own modes have to do
            raise
    return tree


def _attach(tree: int, path: str) -> None:
    _make_place(path, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
    mounts.attach(tree, f".{path}")


def _make_place(path: str, *, directory: bool, itself: bool = True) -> None:
    """Something to mount on, or what has to be above it; within a directory that is shown it is there already."""
    os.makedirs(f".{path}" if directory and itself else f".{os.path.dirname(path)}", mode=0o755, exist_ok=True)
    if not directory and not os.path.exists(f".{path}"):
        os.close(os.open(f".{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))


def _make_terminals() -> None:
    """A devpts of its own: nobody else's terminal has a name here."""
    os.mkdir("dev/pts", 0o755)
    mounts.mount("devpts", "dev/pts", "devpts", mounts.MS_NOSUID | mounts.MS_NOEXEC, "mode=600,ptmxmode=666")
    os.symlink("pts/ptmx", "dev/ptmx")
