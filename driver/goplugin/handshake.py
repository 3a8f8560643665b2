"""The handshake between a host and the plugin that it starts: a cookie in the environment, one line on stdout. Pure.

The host's view is here too (`parse_line`), for whoever starts plugins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CORE_PROTOCOL = 1
VERSIONS_VARIABLE = "PLUGIN_PROTOCOL_VERSIONS"
SOCKET_DIR_VARIABLE = "PLUGIN_UNIX_SOCKET_DIR"

# sun_path has 108 bytes, the last of which is a zero.
SOCKET_PATH_MAX_BYTES = 107


class HandshakeError(Exception):
    """Host and plugin cannot come together; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """What a host and its plugins have agreed on beforehand."""

    cookie_name: str
    cookie_value: str
    versions: tuple[int, ...]  # of the protocol spoken over gRPC

    def greets(self, environ: Mapping[str, str]) -> bool:
        """Whether the process with this environment was started as a plugin."""
        return environ.get(self.cookie_name) == self.cookie_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the plugin says on stdout, once."""

    version: int
    address: str  # absolute path of a unix socket
    core: int = CORE_PROTOCOL
    network: str = "unix"
    protocol: str = "grpc"

    def render(self) -> str:
        if "|" in self.address or "\n" in self.address:
            raise HandshakeError(f"socket path {self.address!r}: cannot stand in the handshake line")
        return f"{self.core}|{self.version}|{self.network}|{self.address}|{self.protocol}\n"


def parse_line(line: str) -> Line:
    """What a host makes of the line. Fields after the fifth (certificate, multiplexing) are passed over."""
    fields = line.strip().split("|")
    if len(fields) < 4 or not (fields[0].isdecimal() and fields[1].isdecimal()):
        raise HandshakeError(f"handshake line {line.strip()!r}: expected CORE|VERSION|NETWORK|ADDRESS|PROTOCOL")
    if int(fields[0]) != CORE_PROTOCOL:
        raise HandshakeError(f"core protocol {fields[0]}: expected {CORE_PROTOCOL}")
    # The oldest plugins end after the address and speak net/rpc.
    protocol = fields[4] if len(fields) > 4 else "netrpc"
    return Line(version=int(fields[1]), network=fields[2], address=fields[3], protocol=protocol)


def choose_version(environ: Mapping[str, str], ours: Iterable[int]) -> int:
    """The newest version that both sides know.

    Without one in common our newest is the answer: the host refuses it and can name both sides' versions, which is
    more than it could say about a plugin that just ended. A host that lists nothing is as old as our oldest.
    """
    known = sorted(ours)
    listed = environ.get(VERSIONS_VARIABLE, "").split(",")
    theirs = {int(word) for word in map(str.strip, listed) if word.isdecimal()}
    if not theirs:
        return known[0]
    return max(theirs.intersection(known), default=known[-1])


def socket_dirs(environ: Mapping[str, str], temporary: str) -> list[Path]:
    """Where the socket's directory may be made, best first. A directory named by the host is the only choice."""
    if named := environ.get(SOCKET_DIR_VARIABLE):
        return [Path(named).absolute()]
    return list(dict.fromkeys([Path(temporary).absolute(), Path("/tmp")]))
