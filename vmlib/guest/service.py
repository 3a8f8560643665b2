"""How the agent comes to stay in its guest, and `chv-exit`. Runs in guests as old as Python 3.6.

What it needs lies in /run and comes anew with each boot, by the seed's boothook: an image that is made of this guest
has no agent in it (but OpenRC's script, in no runlevel), and a machine without a seed has none.
"""

import os
import socket
import struct
import subprocess
import sys
from typing import Any, List, Tuple

HOME = "/run/chv"
SOCKET = HOME + "/agent.sock"
PORT_NAME = "org.chv.agent.0"  # of the virtio-serial port
EXIT_PORT = 5000  # of the host, over vsock: who may not be the agent says `exit N` there
HOST_CID = 2

_AF_VSOCK = 40  # Python has the name since 3.7, and addresses of that family
_SOCKADDR_VM = struct.Struct("=HxxIIxxxx")  # family, port, CID
_SOCK_CLOEXEC = 0o2000000
_EXIT_PROGRAM = "/usr/local/bin/chv-exit"
_SYSTEMD_UNIT = """[Unit]
Description=Guest agent of chv
DefaultDependencies=no
StartLimitIntervalSec=0
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart={command}
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-500
"""
_OPENRC_SERVICE = """#!/sbin/openrc-run
name="guest agent of chv"
supervisor=supervise-daemon
command="{program}"
command_args="{arguments}"
"""


def find_port() -> str:
    """The device of the virtio-serial port that is ours; "" when there is none."""
    base = "/sys/class/virtio-ports"
    try:
        ports = sorted(os.listdir(base))
    except OSError:
        return ""
    for port in ports:
        try:
            with open(os.path.join(base, port, "name")) as file:
                if file.read().strip() == PORT_NAME:
                    return "/dev/" + port
        except OSError:
            continue
    return ""


def command(python: str) -> List[str]:
    return [python, "-IS", os.path.join(HOME, "agent.py")]


def install(python: str) -> str:
    """Have the agent run from now on, and say how: by systemd, by OpenRC, or plain. The agent's file is in place."""
    run = [*command(python), "run"]
    _install_exit_program(python)
    if os.path.isdir("/run/systemd/system"):
        _write("/run/systemd/system/chv-agent.service", _SYSTEMD_UNIT.format(command=" ".join(run)), 0o644)
        subprocess.call(["systemctl", "daemon-reload"])
        if subprocess.call(["systemctl", "restart", "--no-block", "chv-agent.service"]) == 0:
            return "systemd"
    elif os.path.isdir("/run/openrc"):
        try:
            text = _OPENRC_SERVICE.format(program=run[0], arguments=" ".join(run[1:]))
            _write("/etc/init.d/chv-agent", text, 0o755)
            if subprocess.call(["rc-service", "chv-agent", "restart"]) == 0:
                return "OpenRC"
        except OSError:  # a root that is read-only
            pass
    loop = 'while :; do "$@"; sleep 1; done'
    with open(os.devnull, "r+") as nothing:
        subprocess.Popen(
            ["/bin/sh", "-c", loop, "chv-agent", *run],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )
    return "plain"


def _install_exit_program(python: str) -> None:
    text = '#!/bin/sh\nexec {} exit "$@"\n'.format(" ".join(command(python)))
    for path in (HOME + "/chv-exit", _EXIT_PROGRAM):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _write(path, text, 0o755)
        except OSError as exc:
            sys.stderr.write("chv: {}: {}\n".format(path, exc.strerror))


def _write(path: str, text: str, mode: int) -> None:
    beside = path + ".new"
    with open(beside, "w") as file:
        file.write(text)
    os.chmod(beside, mode)
    os.replace(beside, path)


def end_machine(code: str) -> int:
    """`chv-exit N`: tell the host the exit code, then power off. Returns this program's own exit code."""
    if code not in map(str, range(256)):
        sys.stderr.write("usage: chv-exit N, with N from 0 to 255\n")
        return 2
    line = "exit {}\n".format(code).encode()
    ways = (_by_agent, _by_port, _by_vsock)
    if not any(way(line) for way in ways):
        sys.stderr.write("chv-exit: the host does not listen, or you are not root\n")
        return 1
    for off in (["systemctl", "poweroff"], ["poweroff"], ["/sbin/poweroff"], ["busybox", "poweroff", "-f"]):
        if off[0] == "systemctl" and not os.path.isdir("/run/systemd/system"):
            continue
        try:
            if subprocess.call(off) == 0:
                return 0
        except OSError:
            continue
    return 0  # the host does it in a few seconds


def _by_agent(line: bytes) -> bool:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5.0)
    try:
        sock.connect(SOCKET)
        sock.sendall(line)
        return sock.recv(16) == b"ok\n"
    except OSError:
        return False
    finally:
        sock.close()


def _by_port(line: bytes) -> bool:
    path = find_port()
    if not path:
        return False
    try:
        with open(path, "wb", buffering=0) as port:
            port.write(b"\n" + line)
        return True
    except OSError:
        return False


def _by_vsock(line: bytes) -> bool:
    try:
        sock = vsock("connect", HOST_CID, EXIT_PORT)
    except OSError:
        return False
    sock.settimeout(5.0)
    try:
        sock.sendall(line)
        return True
    except OSError:
        return False
    finally:
        sock.close()


def vsock(step: str, cid: int, port: int) -> socket.socket:
    """A stream socket after `bind` or `connect`. Raises OSError."""
    sock = socket.socket(_AF_VSOCK, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "AF_VSOCK"):
            getattr(sock, step)((cid, port))
        else:
            address = _SOCKADDR_VM.pack(_AF_VSOCK, port, cid)
            _libc(step, sock.fileno(), address, len(address))
    except OSError:
        sock.close()
        raise
    return sock


def accept_vsock(listener: socket.socket) -> Tuple[socket.socket, int]:
    """The next caller and its CID. Raises OSError."""
    if hasattr(socket, "AF_VSOCK"):
        sock, peer = listener.accept()
        return sock, int(peer[0])
    import ctypes

    address = ctypes.create_string_buffer(_SOCKADDR_VM.size)
    size = ctypes.c_uint32(_SOCKADDR_VM.size)
    fd = _libc("accept4", listener.fileno(), address, ctypes.byref(size), _SOCK_CLOEXEC)
    return socket.socket(_AF_VSOCK, socket.SOCK_STREAM, fileno=fd), int(_SOCKADDR_VM.unpack(address.raw)[2])


def _libc(name: str, *arguments: Any) -> int:
    """What Python 3.6 cannot ask the kernel itself, because it knows no addresses of that family."""
    import ctypes  # only there: not every guest has it

    found = int(getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
