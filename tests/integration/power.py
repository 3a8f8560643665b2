"""What may be on a disk after a power loss: real system calls, recorded by strace, on a simulated disk.

After each call that changes the disk four states are possible, and everything between them: all that was written is
there; only what was synced is, names by their directory and content by its file; all names and of content only what was
synced; all names and half of what was not.
"""

import codecs
import itertools
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,ioctl,"
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat"
)
_LINE = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<args>.*)\) += (?P<result>-?\d+|\?)(?P<rest>.*)", re.DOTALL)
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[^,"]+')
_FD = re.compile(r"(?:\d+|AT_FDCWD)<(?P<path>[^>]*)>")

_NAMING = frozenset(
    f"{call}{at}"
    for call in ("open", "creat", "rename", "link", "unlink", "mkdir", "rmdir", "truncate", "symlink")
    for at in ("", "at", "at2")
)

Variant = Literal["written", "synced", "names", "torn"]
VARIANTS: tuple[Variant, ...] = ("written", "synced", "names", "torn")
Tree = dict[str, bytes | None]  # by path below the top; None is a directory


def record(argv: Sequence[str], log: Path, *, cwd: Path) -> None:
    """Run a program and all that it starts, and write their system calls down."""
    strace = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-s", "4000000", "-o", str(log), "-e", f"trace={_CALLS}"]
    subprocess.run([*strace, *argv], cwd=cwd, check=True, stdin=subprocess.DEVNULL, timeout=120)


@dataclass(slots=True)
class _File:
    data: bytes = b""
    synced: bytes = b""

    def content(self, variant: Variant) -> bytes:
        if variant == "written":
            return self.data
        if variant == "torn" and self.data != self.synced:
            return self.data[: len(self.data) // 2]
        return self.synced

    def write(self, data: bytes, at: int) -> None:
        self.data = self.data[:at].ljust(at, b"\0") + data + self.data[at + len(data) :]


@dataclass(slots=True)
class _Directory:
    entries: "dict[str, _File | _Directory]" = field(default_factory=dict)
    synced: "dict[str, _File | _Directory]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """One state that the disk may be in after the call of that number, which is about `path`."""

    number: int
    call: str
    path: str
    variant: Variant
    tree: Tree

    @property
    def whole(self) -> frozenset[tuple[str, bytes | None]]:
        """To be compared: bytes know their own hash once it was asked for."""
        return frozenset(self.tree.items())


class Disk:
    """The directory `top` and what is in it."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._root = _Directory()

    def states(self, log: Path) -> Iterator[State]:
        """Every state that differs from all before it, in the order of the calls; an empty disk is the first one."""
        seen = set()
        for number, (call, path) in enumerate(itertools.chain([("mkdir", "")], self._replay(log))):
            for variant in VARIANTS:
                state = State(number, call, path, variant, self.tree(variant))
                if state.whole not in seen:
                    seen.add(state.whole)
                    yield state

    def tree(self, variant: Variant) -> Tree:
        found: Tree = {}

        def walk(directory: _Directory, prefix: str) -> None:
            for name, one in (directory.synced if variant == "synced" else directory.entries).items():
                if isinstance(one, _Directory):
                    found[prefix + name] = None
                    walk(one, f"{prefix}{name}/")
                else:
                    found[prefix + name] = one.content(variant)

        walk(self._root, "")
        return found

    # -- system calls ------------------------------------------------------------------------------------------------

    def _replay(self, log: Path) -> Iterator[tuple[str, str]]:
        """Call and path of each one that has changed something."""
        for call, args, result in _calls(log):
            if result < 0:
                continue
            paths = [path for path in _paths(call, args) if self._below(path) is not None]
            if paths and self._do(call, args, result, paths):
                yield call, str(self._below(paths[-1]))

    def _do(self, call: str, args: list[str], result: int, paths: list[Path]) -> bool:
        match call.removesuffix("2").removesuffix("at").removesuffix("64"):
            case "open" | "creat":
                return self._open(paths[-1], "".join(args))
            case "write":
                self._file(paths[0]).write(_text(args[1])[:result], len(self._file(paths[0]).data))
            case "pwrite":
                self._file(paths[0]).write(_text(args[1])[:result], int(args[3]))
            case "ftruncate" | "truncate":
                size = int(args[1])
                file = self._file(paths[0])
                file.data = file.data[:size].ljust(size, b"\0")
            case "copy_file_range" | "sendfile":
                self._copy(args, result)
            case "fsync" | "fdatasync":
                one = self._node(paths[0])
                if isinstance(one, _Directory):
                    one.synced = dict(one.entries)
                else:
                    one.synced = one.data
            case "rename":
                source, target = paths
                self._parent(target).entries[target.name] = self._parent(source).entries.pop(source.name)
            case "link":
                source, target = paths
                self._parent(target).entries[target.name] = self._node(source)
            case "unlink" | "rmdir":
                self._parent(paths[-1]).entries.pop(paths[-1].name, None)
            case "mkdir":
                self._parent(paths[-1]).entries[paths[-1].name] = _Directory()
            case "ioctl" if "FICLONE" not in args[1]:
                return False
            case _:
                raise NotImplementedError(f"{call}({', '.join(args)[:300]})")
        return True

    def _open(self, path: Path, flags: str) -> bool:
        if path == self._top:
            return False
        known = path.name in self._parent(path).entries
        if not known and "O_CREAT" in flags:
            self._parent(path).entries[path.name] = _File()
            return True
        if known and "O_TRUNC" in flags and self._file(path).data:
            self._file(path).data = b""
            return True
        return False

    def _copy(self, args: list[str], count: int) -> None:
        source, target = (Path(found["path"]) for found in map(_FD.match, (args[0], args[2])) if found)
        start, at = (int(args[index].strip(" []")) for index in (1, 3))
        data = self._file(source).data if self._below(source) is not None else source.read_bytes()
        self._file(target).write(data[start : start + count], at)

    def _below(self, path: Path) -> Path | None:
        return path.relative_to(self._top) if path.is_relative_to(self._top) else None

    def _node(self, path: Path) -> _File | _Directory:
        one: _File | _Directory = self._root
        for name in path.relative_to(self._top).parts:
            assert isinstance(one, _Directory), path
            one = one.entries[name]
        return one

    def _file(self, path: Path) -> _File:
        one = self._node(path)
        assert isinstance(one, _File), path
        return one

    def _parent(self, path: Path) -> _Directory:
        one = self._node(path.parent)
        assert isinstance(one, _Directory), path
        return one


def _calls(log: Path) -> Iterator[tuple[str, list[str], int]]:
    """Every call that was made, when it was done: one that another process interrupted stands on two lines."""
    begun: dict[str, str] = {}
    for line in log.read_text(errors="surrogateescape").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<... "):
            rest = begun.pop(pid) + rest.partition(" resumed>")[2]
        found = _LINE.fullmatch(f"{pid} {rest}")
        if found is not None and found["result"] != "?":
            parts = (part.strip() for part in _PART.findall(found["args"]))
            yield found["call"], [part for part in parts if part], int(found["result"])


def _paths(call: str, args: list[str]) -> list[Path]:
    """The paths that a call is about: of its descriptors, or those that it names, below a descriptor or not."""
    if call not in _NAMING:
        return [Path(fd["path"].removesuffix(" (deleted)")) for fd in map(_FD.match, args) if fd is not None]
    found = []
    base = Path("/")
    for arg in args:
        if (fd := _FD.match(arg)) is not None:
            base = Path(fd["path"])
        elif arg.startswith('"'):
            found.append(base / _text(arg).decode(errors="replace"))
    return found


def _text(arg: str) -> bytes:
    decoded, _ = codecs.escape_decode(arg[1 : arg.rindex('"')].encode(errors="surrogateescape"))
    return bytes(decoded)


def write_tree(tree: Tree, top: Path) -> None:
    """Make that tree in an empty directory."""
    for path, data in tree.items():
        if data is None:
            (top / path).mkdir(mode=0o700)
        elif data.count(0) == len(data):
            with (top / path).open("wb") as file:
                file.truncate(len(data))
        else:
            (top / path).write_bytes(data)
