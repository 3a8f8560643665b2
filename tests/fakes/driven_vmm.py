"""A VMM that does what a test tells it, in Cloud Hypervisor's dialect: events, log, pty, API, vsock. No guest.

Run as `driven_vmm.py DRIVE --api-socket fd=N --event-monitor fd=N …`. It listens at DRIVE for one step a line, as JSON,
and answers each. Standard library only, Python 3.9 or later.
"""

import json
import os
import pty
import signal
import socket
import sys
import threading
import time
import tty
from typing import Any


class Vmm:
    def __init__(self, api_fd: int, events_fd: int) -> None:
        self.events_fd = events_fd
        self.began = time.monotonic()
        self.main = self.slave = -1
        self.path = ""
        self.api_answers = True
        self.calls: list[str] = []
        self.api = socket.socket(fileno=api_fd)
        threading.Thread(target=self.serve_api, daemon=True).start()

    # -- steps ---------------------------------------------------------------------------------------------------

    def do(self, step: "dict[str, Any]") -> object:
        ((name, value),) = step.items()
        return getattr(self, f"do_{name}")(value)

    def do_event(self, words: "list[Any]") -> None:
        source, event, *properties = words
        said = {
            "timestamp": {"secs": 1, "nanos": 2},
            "source": source,
            "event": event,
            "properties": properties[0] if properties else None,
        }
        os.write(self.events_fd, json.dumps(said, indent=2).encode() + b"\n\n")

    def do_raw_event(self, text: str) -> None:
        os.write(self.events_fd, text.encode("latin-1"))

    def do_log(self, text: str) -> None:
        """`INFO words`: a line of that level."""
        level, _, words = text.partition(" ")
        seconds = time.monotonic() - self.began
        os.write(2, f"cloud-hypervisor: {seconds:10.6f}s: <vmm> {level}:vmm/src/lib.rs:1 -- {words} \r\n".encode())

    def do_stderr(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(2, data) :]

    def do_stdout(self, text: str) -> None:
        os.write(1, text.encode())

    def do_pty(self, _: object) -> str:
        """A new one, as at vm.create and at each reboot. The one before is closed first."""
        self.do_close_pty(None)
        self.main, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        os.fchmod(self.slave, 0o600)
        return self.path

    def do_close_slave(self, _: object) -> None:
        """Whoever reads the console has it by now."""
        os.close(self.slave)
        self.slave = -1

    def do_close_pty(self, _: object) -> None:
        for fd in (self.main, self.slave):
            if fd >= 0:
                os.close(fd)
        self.main = self.slave = -1

    def do_say(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self.main, data) :]

    def do_hear(self, count: int) -> str:
        heard = b""
        while len(heard) < count:
            heard += os.read(self.main, count - len(heard))
        return heard.decode()

    def do_call(self, what: "list[str]") -> None:
        """A guest that calls its host: connects at a path and says something."""
        path, text = what
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(text.encode("latin-1"))

    def do_listen(self, path: str) -> None:
        """A guest in which somebody listens: calls that come at `path` are answered, and what is said is said back."""
        self.callers: list[socket.socket] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(8)
        threading.Thread(target=self.serve_calls, args=(listener,), daemon=True).start()

    def do_answer(self, text: str) -> int:
        """The guest says something to all who have called it and are still there; so many they are."""
        return sum(self.said_to(caller, text.encode("latin-1")) for caller in list(self.callers))

    def do_hang_up(self, _: object) -> None:
        """As at a reboot of the guest: whoever listened is gone."""
        for caller in self.callers:
            caller.shutdown(socket.SHUT_RDWR)
        self.callers.clear()

    def do_api(self, answers: bool) -> None:
        self.api_answers = answers

    def do_calls(self, _: object) -> "list[str]":
        return self.calls

    def do_ignore_term(self, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def do_exit(self, status: int) -> None:
        os._exit(status)

    def do_kill(self, number: int) -> None:
        os.kill(os.getpid(), number)

    # -- the guest -----------------------------------------------------------------------------------------------

    def serve_calls(self, listener: socket.socket) -> None:
        while True:
            caller, _ = listener.accept()
            if caller.makefile("rb", buffering=0).readline() == b"CONNECT 1000\n":
                caller.sendall(b"OK 1073741824\n")
                self.callers.append(caller)
                threading.Thread(target=self.echo, args=(caller,), daemon=True).start()

    def echo(self, caller: socket.socket) -> None:
        while data := caller.recv(1 << 16):
            if not self.said_to(caller, data):
                break
        if caller in self.callers:
            self.callers.remove(caller)

    def said_to(self, caller: socket.socket, data: bytes) -> bool:
        """False when it has hung up, which its own thread may not have seen yet. No data is an error then, too."""
        try:
            caller.sendall(data)
        except ConnectionError:
            return False
        return True

    # -- the API -------------------------------------------------------------------------------------------------

    def serve_api(self) -> None:
        while True:
            caller, _ = self.api.accept()
            head = caller.recv(4096).split(b"\r\n")[0].decode()
            self.calls.append(head)
            while not self.api_answers:
                time.sleep(0.01)
            info = {"config": {"serial": {"mode": "Pty", "file": self.path}}, "state": "Running"}
            body = json.dumps(info).encode() if "vm.info" in head else b""
            length = b"Content-Length: %d\r\n" % len(body) if body else b""
            answer = b"HTTP/1.1 %d \r\nServer: x\r\n%s\r\n%s" % (200 if body else 204, length, body)
            for at in range(0, len(answer), 100):  # in pieces
                try:
                    caller.sendall(answer[at : at + 100])
                except OSError:
                    break
            caller.close()


def main() -> None:
    drive, words = sys.argv[1], sys.argv[2:]
    fds = {words[at]: int(words[at + 1].partition("=")[2]) for at in (0, 2)}
    os.set_blocking(fds["--event-monitor"], False)
    vmm = Vmm(fds["--api-socket"], fds["--event-monitor"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(drive)
    listener.listen()
    while True:
        caller, _ = listener.accept()
        with caller, caller.makefile("rb") as steps:
            for line in steps:
                caller.sendall(json.dumps(vmm.do(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
