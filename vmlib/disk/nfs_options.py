"""The mount options that an operator may choose for an export, and those that are ours. Pure."""

import re
from collections.abc import Iterator

DEFAULT_VERSION = "4.2"
DEFAULT_PORT = 2049

# On every mount. `hard`: a disk whose server is silent waits; an I/O error would reach the guest as a broken disk.
# `nosharecache`: what frees one machine from a dead server must leave the others alone.
OURS = ("hard", "nosharecache")

_NUMBER = re.compile(r"[0-9]{1,7}")
_VERSIONS = ("4", "4.0", "4.1", "4.2")
_WORDS = {
    "proto": ("tcp", "tcp6", "rdma", "rdma6"),
    "sec": ("sys", "krb5", "krb5i", "krb5p"),
    "lookupcache": ("all", "none", "pos", "positive"),
    "xprtsec": ("none", "tls", "mtls"),
}
_NUMBERS = ("port", "rsize", "wsize", "timeo", "retrans", "nconnect", "max_connect", "actimeo")
_NUMBERS_OF_CACHE = ("acregmin", "acregmax", "acdirmin", "acdirmax")
_FLAGS = ("ac", "noac", "cto", "nocto", "resvport", "noresvport", "trunkdiscovery", "notrunkdiscovery")
_ALREADY = {*OURS, "nosuid", "nodev", "noexec"}
_UNDOING = {
    "soft": "a disk needs hard: with soft a slow server is a broken disk to the guest",
    "softerr": "a disk needs hard: with softerr a slow server is a broken disk to the guest",
    "softreval": "a disk needs hard: with softreval a slow server is a broken disk to the guest",
    "sharecache": "each machine needs a mount that can be forced without the others",
    "suid": "chv mounts with nosuid",
    "dev": "chv mounts with nodev",
    "exec": "chv mounts with noexec",
    "ro": "expected read_only = true instead",
    "rw": "expected read_only = false instead",
    "nolock": "two hosts must not have one disk, which locks prevent",
    "local_lock": "two hosts must not have one disk, which locks prevent",
    "bg": "a mount is tried once, in the foreground",
    "retry": "a mount is tried once",
}


def split(text: str) -> tuple[str, ...]:
    """The options of `a,b=c`, without those that every mount has anyway."""
    return tuple(one for part in text.split(",") if (one := part.strip()) and one not in _ALREADY)


def faults(options: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with an operator's options, a sentence each."""
    seen: set[str] = set()
    for option in options:
        name, given, value = option.partition("=")
        name = "vers" if name == "nfsvers" else name
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)
        if name in _UNDOING:
            yield f"{option}: {_UNDOING[name]}"
        elif name == "vers":
            if value not in _VERSIONS:
                yield f"{option}: {_one_of(_VERSIONS)}, whose locks hold between hosts"
        elif name in _WORDS:
            if value not in _WORDS[name]:
                yield f"{option}: {_one_of(_WORDS[name])}"
        elif name in _NUMBERS or name in _NUMBERS_OF_CACHE:
            if not _NUMBER.fullmatch(value):
                yield f"{option}: expected a number"
        elif name not in _FLAGS or given:
            known = ", ".join(sorted(("vers", *_WORDS, *_NUMBERS, *_NUMBERS_OF_CACHE, *_FLAGS)))
            yield f"{option}: expected one of {known}"


def _one_of(words: tuple[str, ...]) -> str:
    return f"expected {', '.join(words[:-1])} or {words[-1]}"


def kernel_options(options: tuple[str, ...]) -> str:
    """What mount(2) is given, but for the addresses."""
    named = [option.replace("nfsvers=", "vers=") for option in options]
    version = () if any(option.startswith("vers=") for option in named) else (f"vers={DEFAULT_VERSION}",)
    return ",".join([*version, *named, *OURS])


def port(options: tuple[str, ...]) -> int:
    """Where the server listens."""
    found = [value for name, _, value in (option.partition("=") for option in options) if name == "port"]
    return int(found[0]) if found else DEFAULT_PORT
