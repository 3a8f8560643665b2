"""What Cloud Hypervisor's log says about the end of a machine: a few words are kept, of the rest the level counts.

It runs with -v, because the reason of an end is told at that level only; people get what is a warning or worse. No I/O.
"""

import re
from dataclasses import dataclass

_MAX_LINE = 4096  # a line has the whole configuration in it; of a longer one the beginning is kept
_RECENT_S = 1.0  # an error that made the VMM give up stands directly before
_KNOWS_GUEST_EXIT = 52  # the first version that tells a guest's power-off from every other end

_LINE = re.compile(r"cloud-hypervisor: +([0-9]+\.[0-9]+)s: <([^>]*)> ([A-Z]+):(\S+) -- (.*)")
_VERSION = re.compile(r"v([0-9]+)\.[0-9]+\S* starting$")
_CAUSE = re.compile(r" +([0-9]+): (.*)")  # of the failure, the outermost first
_NO_REASONS = ("note: ", "====", "Try running", "Error: Cloud Hypervisor exited")
_SYSCALL = re.compile(r"Syscall number: ([0-9]+) .*thread: ([^)]*)\)")


@dataclass(slots=True)
class LogWords:
    """What was understood so far."""

    tells_guest_exit: bool = False
    guest_exit: bool = False  # the guest powered itself off
    other_exit: bool = False  # a signal, or a failure of the VMM's own
    api_exit: bool = False  # the VMM was told to end
    why_exit: str = ""  # the error right before `other_exit`
    reset_by_guest: bool = False  # of the last reset
    button: bool = False
    seccomp: str = ""
    last_error: str = ""


class LogReader:
    """Takes the log's bytes, gives back what people should see of it, and keeps `words`.

    With `torn` somebody else has read it until now, perhaps up to the middle of a line.
    """

    def __init__(self, *, torn: bool = False) -> None:
        self._torn = torn
        self.words = LogWords()
        self._rest = bytearray()
        self._now_s = 0.0
        self._error_at_s = 0.0

    def feed(self, data: bytes) -> bytes:
        *ends, rest = data.split(b"\n")
        shown = bytearray()
        for end in ends:
            self._add(end)
            line = bytes(self._rest).rstrip()  # it writes CR LF
            self._rest.clear()
            if self._understand(line.decode(errors="replace")):
                shown += line + b"\n"
        self._add(rest)
        return bytes(shown)

    def finish(self) -> bytes:
        """What stands there without a line break, at the end."""
        return self.feed(b"\n") if self._rest else b""

    def _add(self, piece: bytes) -> None:
        self._rest += piece[: max(0, _MAX_LINE - len(self._rest))]

    def _understand(self, line: str) -> bool:
        """True when it is for people."""
        found = _LINE.match(line)
        torn, self._torn = self._torn, False
        if found is None:
            return not torn and self._on_bare_line(line)
        seconds, _, level, _, said = found.groups()
        self._now_s = float(seconds)
        if level == "ERROR":
            self._on_error(said)
        elif level == "INFO":
            self._on_info(said)
        return level in ("ERROR", "WARN")

    def _on_bare_line(self, line: str) -> bool:
        """A panic of the program, or what it prints when it gives up."""
        if (found := _SYSCALL.match(line)) is not None:
            self.words.seccomp = f"system call {found[1]} in thread {found[2]}"
        elif (found := _CAUSE.match(line)) is not None:
            self._on_error(found[2] if found[1] == "0" else f"{self.words.last_error}: {found[2]}")
        elif line.strip() and not line.startswith(_NO_REASONS):
            self._on_error(line.strip())
        return bool(line.strip())

    def _on_error(self, said: str) -> None:
        self.words.last_error = said[:300]
        self._error_at_s = self._now_s

    def _on_info(self, said: str) -> None:
        words = self.words
        match said:
            case "VM guest exit event":
                words.guest_exit = True
            case "VM exit event":
                words.other_exit = True
                if words.last_error and self._now_s - self._error_at_s <= _RECENT_S:
                    words.why_exit = words.last_error
            case "VM reset event":
                words.reset_by_guest = True
            case "API request event: VmReboot":
                words.reset_by_guest = False
            case "API request event: VmPowerButton":
                words.button = True
            case "API request event: VmmShutdown" | "API request event: VmDelete" | "API request event: VmShutdown":
                words.api_exit = True
            case _ if (found := _VERSION.match(said)) is not None:
                words.tells_guest_exit = int(found[1]) >= _KNOWS_GUEST_EXIT
